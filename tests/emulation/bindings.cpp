// The launchers of csrc/cuda for NumPy arrays, executed on the CPU. Results are arrays that the caller made.
// float16 arrays are half precision, uint16 arrays hold the bits of bfloat16.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "cuda/correlation_4d.cuh"
#include "cuda/flow_sample.cuh"
#include "cuda/guided_correlation.cuh"
#include "cuda/soft_mutual_normalize.cuh"
#include "scratch.h"

namespace py = pybind11;
using namespace pose_kernels;

namespace {

template <class F>
void dispatch(const py::array& x, F&& f) {
  const char kind = x.dtype().kind();
  const auto bytes = x.dtype().itemsize();
  if (kind == 'f' && bytes == 4) {
    f(float{});
  } else if (kind == 'f' && bytes == 8) {
    f(double{});
  } else if (kind == 'f' && bytes == 2) {
    f(Half{});
  } else if (kind == 'u' && bytes == 2) {
    f(BFloat16{});
  } else {
    throw py::type_error("an array of float32, float64, float16 or uint16 (bfloat16)");
  }
}

template <class F>
void dispatch_wide(const py::array& x, F&& f) {
  x.dtype().itemsize() == 8 ? f(double{}) : f(float{});
}

template <class F>
void dispatch_band(const py::array& features, const py::array& map, F&& f) {
  dispatch_wide(features, [&](auto wide) {
    dispatch(map, [&](auto zero) {
      if constexpr (!(std::is_same_v<decltype(zero), double> && std::is_same_v<decltype(wide), float>)) {
        f(wide, zero);
      }
    });
  });
}

template <class T>
const T* in(const py::array& x) {
  return static_cast<const T*>(x.data());
}
template <class T>
T* out(py::array& x) {
  return x.size() == 0 ? nullptr : static_cast<T*>(x.mutable_data());
}

// [B, m, S], [B, m, T]
template <class In>
Features<In> features(const py::array& source, const py::array& target, int64_t begin = 0, int64_t count = -1) {
  return {source.shape(0), source.shape(1), source.shape(2), target.shape(2), in<In>(source), in<In>(target), begin,
          count < 0 ? target.shape(2) : count};
}

template <class T>
Statistics<T> statistics(double eps, py::array& row_max, py::array& row_argmax, py::array& norm) {
  return {static_cast<T>(eps), out<T>(row_max), out<int64_t>(row_argmax), out<T>(norm)};
}

void correlation_4d(py::array source, py::array target, bool tf32, bool channels_last, py::array result) {
  dispatch(source, [&](auto zero) {
    using In = decltype(zero);
    Scratch scratch;
    run_correlation_4d<In>(
        features<In>(source, target), tf32,
        make_map(out<In>(result), source.shape(2), target.shape(2), channels_last), scratch.allocate(), nullptr);
  });
}

void correlation_4d_backward(
    py::array grad, bool channels_last, py::array source, py::array target, bool tf32, py::array source_grad,
    py::array target_grad) {
  dispatch(source, [&](auto zero) {
    using In = decltype(zero);
    Scratch scratch;
    run_correlation_4d_backward<In>(
        features<In>(source, target), tf32, make_map(in<In>(grad), source.shape(2), target.shape(2), channels_last),
        out<In>(source_grad), out<In>(target_grad), scratch.allocate(), nullptr);
  });
}

void guided_correlation(
    py::array source, py::array target, double eps, bool tf32, bool channels_last, py::array result, py::array row_max,
    py::array row_argmax, py::array norm) {
  dispatch(source, [&](auto zero) {
    using In = decltype(zero);
    Scratch scratch;
    run_guided_correlation<In>(
        features<In>(source, target), statistics<Compute<In>>(eps, row_max, row_argmax, norm), tf32,
        make_map(out<In>(result), source.shape(2), target.shape(2), channels_last), scratch.allocate(), nullptr);
  });
}

void guided_correlation_backward(
    py::array grad, bool channels_last, py::array source, py::array target, py::array row_max, py::array row_argmax,
    py::array norm, double eps, bool tf32, py::array source_grad, py::array target_grad) {
  dispatch(source, [&](auto zero) {
    using In = decltype(zero);
    using T = Compute<In>;
    Scratch scratch;
    T* beta = allocate_array<T>(scratch.allocate(), source.shape(0) * source.shape(2));
    run_backward<true, In, In>(
        features<In>(source, target), statistics<T>(eps, row_max, row_argmax, norm), tf32,
        make_map(in<In>(grad), source.shape(2), target.shape(2), channels_last),
        FeatureGrads<In>{out<In>(source_grad), out<In>(target_grad), beta, false, true}, scratch.allocate(), nullptr);
  });
}

void guided_correlation_row_max(
    py::array source, py::array target, double eps, bool tf32, py::array row_max, py::array row_argmax) {
  dispatch_wide(source, [&](auto zero) {
    using In = decltype(zero);
    Scratch scratch;
    run_row_max<In>(
        features<In>(source, target), {static_cast<In>(eps), out<In>(row_max), out<int64_t>(row_argmax), nullptr},
        tf32, scratch.allocate(), nullptr);
  });
}

void guided_correlation_band(
    py::array source, py::array target, py::array row_max, double eps, bool tf32, int64_t begin, py::array result,
    py::array norm) {
  dispatch_band(source, result, [&](auto wide, auto zero) {
    using In = decltype(wide);
    using E = decltype(zero);
    Scratch scratch;
    run_band<In, E>(
        features<In>(source, target, begin, result.shape(2)),
        {static_cast<In>(eps), out<In>(row_max), nullptr, out<In>(norm)}, tf32,
        make_map(out<E>(result), source.shape(2), result.shape(2), false), scratch.allocate(), nullptr);
  });
}

void guided_correlation_band_backward(
    py::array grad, py::array source, py::array target, py::array row_max, py::array norm, double eps, bool tf32,
    int64_t begin, py::array source_grad, py::array target_grad, py::array beta) {
  dispatch_band(source, grad, [&](auto wide, auto zero) {
    using In = decltype(wide);
    using E = decltype(zero);
    Scratch scratch;
    run_backward<true, In, E>(
        features<In>(source, target, begin, grad.shape(2)),
        {static_cast<In>(eps), out<In>(row_max), nullptr, out<In>(norm)}, tf32,
        make_map(in<E>(grad), source.shape(2), grad.shape(2), false),
        FeatureGrads<In>{out<In>(source_grad), out<In>(target_grad), out<In>(beta), true, false}, scratch.allocate(),
        nullptr);
  });
}

void guided_correlation_row_max_backward(
    py::array source, py::array target, py::array row_max, py::array row_argmax, double eps, py::array beta,
    py::array source_grad, py::array target_grad) {
  dispatch_wide(source, [&](auto zero) {
    using In = decltype(zero);
    run_row_max_backward<In>(
        features<In>(source, target), {static_cast<In>(eps), out<In>(row_max), out<int64_t>(row_argmax), nullptr},
        in<In>(beta), out<In>(source_grad), out<In>(target_grad), nullptr);
  });
}

// Maps are [B, S, T].
void soft_mutual_normalize(
    py::array map, double eps, py::array result, py::array row_max, py::array row_argmax, py::array norm) {
  dispatch(map, [&](auto zero) {
    using E = decltype(zero);
    Scratch scratch;
    run_soft_mutual_normalize<E>(
        in<E>(map), map.shape(0), map.shape(1), map.shape(2),
        statistics<Compute<E>>(eps, row_max, row_argmax, norm), out<E>(result), scratch.allocate(), nullptr);
  });
}

void soft_mutual_normalize_backward(
    py::array grad, py::array map, py::array row_max, py::array row_argmax, py::array norm, double eps,
    py::array result) {
  dispatch(map, [&](auto zero) {
    using E = decltype(zero);
    Scratch scratch;
    run_soft_mutual_normalize_backward<E>(
        in<E>(grad), in<E>(map), map.shape(0), map.shape(1), map.shape(2),
        statistics<Compute<E>>(eps, row_max, row_argmax, norm), out<E>(result), scratch.allocate(), nullptr);
  });
}

template <class T>
SampleGeometry<T> geometry(
    const py::array& image, const py::array& flow, int64_t height, int64_t width, bool zeros, Scratch& scratch) {
  SampleGeometry<T> g{
      image.shape(0), image.shape(1), make_axis<T>(image.shape(3), flow.shape(3), width),
      make_axis<T>(image.shape(2), flow.shape(2), height), zeros, nullptr};
  dispatch(flow, [&](auto zero) {
    using Flow = decltype(zero);
    g.displacement = make_displacement<Flow, T>(
        flow.shape(0), flow.shape(2), flow.shape(3), in<Flow>(flow), scratch.allocate(), nullptr);
  });
  return g;
}

void flow_sample(py::array image, py::array flow, bool zeros, py::array result) {
  dispatch(image, [&](auto zero) {
    using In = decltype(zero);
    Scratch scratch;
    run_flow_sample<In>(
        geometry<Compute<In>>(image, flow, result.shape(2), result.shape(3), zeros, scratch), in<In>(image),
        out<In>(result), nullptr);
  });
}

// An empty array for a gradient that is not wanted. `most` as in run_image_gradient.
void flow_sample_backward(
    py::array grad, py::array image, py::array flow, bool zeros, int64_t most, py::array image_grad,
    py::array flow_grad) {
  dispatch(image, [&](auto zero) {
    using In = decltype(zero);
    Scratch scratch;
    const auto g = geometry<Compute<In>>(image, flow, grad.shape(2), grad.shape(3), zeros, scratch);
    if (image_grad.size() > 0) {
      run_image_gradient<In>(g, in<In>(grad), out<In>(image_grad), scratch.allocate(), nullptr, most);
    }
    if (flow_grad.size() > 0) {
      dispatch(flow, [&](auto flow_zero) {
        using Flow = decltype(flow_zero);
        run_flow_gradient<In, Flow>(
            g, in<In>(image), in<In>(grad), out<Flow>(flow_grad), scratch.allocate(), nullptr);
      });
    }
  });
}

}  // namespace

PYBIND11_MODULE(pose_kernels_emulated, m) {
  m.def("set_reversed", [](bool reversed) { emulation::state().reversed = reversed; });
  m.def("set_few_blocks", [](bool few) { emulation::state().few_blocks = few; });
  m.def("map_offset", &map_offset);
  m.def("correlation_4d", &correlation_4d);
  m.def("correlation_4d_backward", &correlation_4d_backward);
  m.def("guided_correlation", &guided_correlation);
  m.def("guided_correlation_backward", &guided_correlation_backward);
  m.def("guided_correlation_row_max", &guided_correlation_row_max);
  m.def("guided_correlation_band", &guided_correlation_band);
  m.def("guided_correlation_band_backward", &guided_correlation_band_backward);
  m.def("guided_correlation_row_max_backward", &guided_correlation_row_max_backward);
  m.def("soft_mutual_normalize", &soft_mutual_normalize);
  m.def("soft_mutual_normalize_backward", &soft_mutual_normalize_backward);
  m.def("flow_sample", &flow_sample);
  m.def("flow_sample_backward", &flow_sample_backward);
}
