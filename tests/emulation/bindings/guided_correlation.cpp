#include "cuda/guided_correlation.cuh"

#include "bindings.h"

namespace {

// The targets of a band.
template <class In>
Features<In> band_of(Features<In> z, int64_t begin, int64_t count) {
  z.begin = begin;
  z.count = count;
  return z;
}

template <class T>
Statistics<T> statistics_without_argmax(double eps, py::array& row_max, py::array& norm) {
  return {static_cast<T>(eps), out<T>(row_max), nullptr, out<T>(norm)};
}

void guided_correlation(
    py::array source, py::array target, double eps, bool tf32, bool channels_last, py::array result, py::array row_max,
    py::array row_argmax, py::array norm) {
  dispatch(source, result, [&](auto zero, auto narrow, const Context& context) {
    using In = decltype(zero);
    using E = decltype(narrow);
    const auto z = features<In>(source, target);
    const auto found = statistics<compute_t<In>>(eps, row_max, row_argmax, norm);
    const auto map = make_map(out<E>(result), source.shape(2), target.shape(2), channels_last);
    if constexpr (std::is_same_v<In, E>) {
      run_guided_correlation(z, found, tf32, map, context);
    } else {
      run_row_max(z, found, tf32, context);
      run_band(z, found, tf32, map, context);
    }
  });
}

void guided_correlation_backward(
    py::array grad, bool channels_last, py::array source, py::array target, py::array row_max, py::array row_argmax,
    py::array norm, double eps, bool tf32, py::array source_grad, py::array target_grad) {
  dispatch(source, grad, [&](auto zero, auto narrow, const Context& context) {
    using In = decltype(zero);
    using E = decltype(narrow);
    using T = compute_t<In>;
    T* beta = context.allocate_array<T>(source.shape(0) * source.shape(2));
    run_guided_backward(
        features<In>(source, target), statistics<T>(eps, row_max, row_argmax, norm), tf32,
        make_map(in<E>(grad), source.shape(2), target.shape(2), channels_last),
        FeatureGrads<In>{out<In>(source_grad), out<In>(target_grad), beta, false, true, {}}, context);
  });
}

void guided_correlation_row_max(
    py::array source, py::array target, double eps, bool tf32, py::array row_max, py::array row_argmax) {
  dispatch_floating(type_of(source), "emulation", [&](auto zero) {
    using In = decltype(zero);
    Scratch scratch;
    using T = compute_t<In>;
    const Statistics<T> found{static_cast<T>(eps), out<T>(row_max), out<int64_t>(row_argmax), nullptr};
    run_row_max(features<In>(source, target), found, tf32, scratch.context());
  });
}

void guided_correlation_band(
    py::array source, py::array target, py::array row_max, double eps, bool tf32, int64_t begin, py::array result,
    py::array norm) {
  dispatch_features_and_band(type_of(source), type_of(result), [&](auto of_features, auto zero) {
    using In = decltype(of_features);
    using E = decltype(zero);
    using T = compute_t<In>;
    Scratch scratch;
    run_band(
        band_of(features<In>(source, target), begin, result.shape(2)),
        statistics_without_argmax<T>(eps, row_max, norm), tf32,
        make_map(out<E>(result), source.shape(2), result.shape(2), false), scratch.context());
  });
}

void guided_correlation_band_backward(
    py::array grad, py::array source, py::array target, py::array row_max, py::array norm, double eps, bool tf32,
    int64_t begin, py::array source_grad, py::array target_grad, py::array beta) {
  dispatch_features_and_band(type_of(source), type_of(grad), [&](auto of_features, auto zero) {
    using In = decltype(of_features);
    using E = decltype(zero);
    using T = compute_t<In>;
    Scratch scratch;
    run_guided_backward(
        band_of(features<In>(source, target), begin, grad.shape(2)),
        statistics_without_argmax<T>(eps, row_max, norm), tf32,
        make_map(in<E>(grad), source.shape(2), grad.shape(2), false),
        FeatureGrads<T>{out<T>(source_grad), out<T>(target_grad), out<T>(beta), true, false, {}}, scratch.context());
  });
}

void guided_correlation_row_max_backward(
    py::array source, py::array target, py::array row_max, py::array row_argmax, double eps, py::array beta,
    int64_t most, py::array source_grad, py::array target_grad) {
  dispatch_floating(type_of(source), "emulation", [&](auto zero) {
    using In = decltype(zero);
    Scratch scratch;
    using T = compute_t<In>;
    const Statistics<T> given{static_cast<T>(eps), out<T>(row_max), out<int64_t>(row_argmax), nullptr};
    run_row_max_backward(
        features<In>(source, target), given, in<T>(beta), out<T>(source_grad), out<T>(target_grad), scratch.context(),
        most);
  });
}

const Bind guided_correlation_bind([](py::module_& m) {
  m.def("guided_correlation", &guided_correlation);
  m.def("guided_correlation_backward", &guided_correlation_backward);
  m.def("guided_correlation_row_max", &guided_correlation_row_max);
  m.def("guided_correlation_band", &guided_correlation_band);
  m.def("guided_correlation_band_backward", &guided_correlation_band_backward);
  m.def("guided_correlation_row_max_backward", &guided_correlation_row_max_backward);
});

}  // namespace
