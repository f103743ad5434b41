// guided_correlation and its bands for CUDA tensors; see guided_correlation.cuh.
#include "cuda/common.cuh"
#include "cuda/guided_correlation.cuh"

namespace pose_kernels {

static void guide(
    const Tensor& source, const Tensor& target, double eps, bool tf32, const StatisticsTensors& statistics,
    const MapResult& result) {
  check_positions(source, target);
  Call call(source);
  fill_map(result, source.scalar_type(), [&](const MapResult& to) {
    dispatch_map(source.scalar_type(), to.map.scalar_type(), "guided_correlation", [&](auto zero, auto narrow) {
      using In = decltype(zero);
      using E = decltype(narrow);
      const Features<In> z = features_of<In>(source, target);
      const auto found = statistics.of<compute_t<In>>(eps);
      const auto map = make_map(mutable_data<E>(to.map), z.sources, z.targets, to.channels_last);
      if constexpr (std::is_same_v<In, E>) {
        run_guided_correlation(z, found, tf32, map, call.context());
      } else {  // a band of all targets may be narrower
        run_row_max(z, found, tf32, call.context());
        run_band(z, found, tf32, map, call.context());
      }
    });
  });
}

static MapAndStatistics guided_correlation(
    const Tensor& source_, const Tensor& target_, double eps, bool tf32, bool channels_last, ScalarType out_dtype) {
  check_features(source_, target_);
  check_map_type(out_dtype, "out_dtype", source_.scalar_type());
  const Tensor source = torch::stable::contiguous(source_), target = torch::stable::contiguous(target_);
  const Tensor result = empty_map(target, positions(source), channels_last, out_dtype);
  const StatisticsTensors statistics(source, source.size(0), positions(source), positions(target));
  guide(source, target, eps, tf32, statistics, {result, channels_last, true});
  return {result, statistics.row_max, statistics.row_argmax, statistics.norm};
}

static void guided_correlation_out(const Tensor& source_, const Tensor& target_, double eps, bool tf32, Tensor out) {
  check_features(source_, target_);
  check_out(out, source_, target_);
  const Tensor source = torch::stable::contiguous(source_), target = torch::stable::contiguous(target_);
  const StatisticsTensors statistics(source, source.size(0), positions(source), positions(target));
  guide(source, target, eps, tf32, statistics, given_map(out));
}

static std::tuple<Tensor, Tensor> guided_correlation_backward(
    const Tensor& grad_, const Tensor& source_, const Tensor& target_, const Tensor& row_max,
    const Tensor& row_argmax, const Tensor& norm, double eps, bool tf32, bool want_source, bool want_target) {
  check_features(source_, target_);
  check_positions(source_, target_);
  check_map_gradient(grad_, source_, target_);
  Call call(source_);
  bool channels_last;
  const Tensor grad = readable_map(readable_gradient(grad_, source_.scalar_type()), &channels_last);
  const Tensor source = torch::stable::contiguous(source_), target = torch::stable::contiguous(target_);
  const StatisticsTensors statistics(row_max, row_argmax, norm);
  const int64_t B = source.size(0), S = positions(source), T = positions(target);
  check_statistics(statistics, B, S, T, source.scalar_type());
  const Tensor source_grad = new_like(source, want_source), target_grad = new_like(target, want_target);
  const Tensor beta = empty(source, {B, S}, compute_type(source.scalar_type()));
  if (B > 0) {
    dispatch_map(source.scalar_type(), grad.scalar_type(), "guided_correlation_backward", [&](auto zero, auto narrow) {
      using In = decltype(zero);
      using E = decltype(narrow);
      using C = compute_t<In>;
      FeatureGrads<In> out{};
      out.source = data_or_null<In>(source_grad);
      out.target = data_or_null<In>(target_grad);
      out.beta = mutable_data<C>(beta);
      out.through_row_max = true;
      run_guided_backward(
          features_of<In>(source, target), statistics.of<C>(eps), tf32,
          make_map(const_data<E>(grad), S, T, channels_last), out, call.context());
    });
  }
  return {source_grad, target_grad};
}

// ---- bands: features [B, m, S] and [B, m, T], all but the map contiguous; statistics and gradients in the compute type

static std::tuple<Tensor, Tensor> guided_correlation_row_max(
    const Tensor& source, const Tensor& target, double eps, bool tf32) {
  check_band_features(source, target);
  check_positions(source, target);
  Call call(source);
  const int64_t B = source.size(0), S = source.size(2);
  const Tensor row_max = empty(source, {B, S}, compute_type(source.scalar_type()));
  const Tensor row_argmax = empty(source, {B, S}, ScalarType::Long);
  if (B > 0) {
    dispatch_floating(source.scalar_type(), "source", [&](auto zero) {
      using In = decltype(zero);
      run_row_max(
          features_of<In>(source, target), statistics_of<compute_t<In>>(eps, row_max, &row_argmax, nullptr), tf32,
          call.context());
    });
  }
  return {row_max, row_argmax};
}

// A band [B, S, n], contiguous or channels-last: its memory [B, n, S].
static bool check_band_layout(
    const Tensor& band, const char* name, const Tensor& source, const Tensor& target, const Tensor& row_max,
    const Tensor& norm, int64_t begin) {
  const bool last = band.dim() == 3 && !band.is_contiguous() && band.stride(1) == 1 &&
      band.stride(2) == band.size(1) && (band.size(0) == 1 || band.stride(0) == band.size(1) * band.size(2));
  // Of a channels-last one the rest is checked of its memory as if it were contiguous.
  const Tensor checked =
      last ? torch::stable::view(torch::stable::transpose(band, 1, 2), {band.size(0), band.size(1), band.size(2)})
           : band;
  check_band(checked, name, source, target, row_max, norm, begin);
  return last;
}

static void guided_correlation_band(
    const Tensor& source, const Tensor& target, const Tensor& row_max, double eps, bool tf32, int64_t begin,
    Tensor out, Tensor norm) {
  const bool channels_last = check_band_layout(out, "out", source, target, row_max, norm, begin);
  check_positions(source, target);
  Call call(source);
  if (source.size(0) > 0) {
    dispatch_features_and_band(source.scalar_type(), out.scalar_type(), [&](auto of_features, auto zero) {
      using In = decltype(of_features);
      using E = decltype(zero);
      run_band(
          band_of<In>(source, target, begin, out.size(2)),
          statistics_of<compute_t<In>>(eps, row_max, nullptr, &norm), tf32,
          make_map(mutable_data<E>(out), source.size(2), out.size(2), channels_last), call.context());
    });
  }
}

static void guided_correlation_band_backward(
    const Tensor& grad, const Tensor& source, const Tensor& target, const Tensor& row_max, const Tensor& norm,
    double eps, bool tf32, int64_t begin, Tensor source_grad, Tensor target_grad, Tensor beta) {
  const bool channels_last = check_band_layout(grad, "grad", source, target, row_max, norm, begin);
  check_band_gradients(source, target, source_grad, target_grad, beta);
  check_positions(source, target);
  Call call(source);
  if (source.size(0) > 0) {
    dispatch_features_and_band(source.scalar_type(), grad.scalar_type(), [&](auto of_features, auto zero) {
      using In = decltype(of_features);
      using E = decltype(zero);
      using C = compute_t<In>;
      FeatureGrads<C> out{};
      out.source = data_or_null<C>(source_grad);
      out.target = data_or_null<C>(target_grad);
      out.beta = mutable_data<C>(beta);
      out.add = true;
      run_guided_backward(
          band_of<In>(source, target, begin, grad.size(2)),
          statistics_of<compute_t<In>>(eps, row_max, nullptr, &norm), tf32,
          make_map(const_data<E>(grad), source.size(2), grad.size(2), channels_last), out, call.context());
    });
  }
}

static void guided_correlation_row_max_backward(
    const Tensor& source, const Tensor& target, const Tensor& row_max, const Tensor& row_argmax, double eps,
    const Tensor& beta, Tensor source_grad, Tensor target_grad) {
  check_row_max_backward(source, target, row_max, row_argmax);
  check_band_gradients(source, target, source_grad, target_grad, beta);
  Call call(source);
  if (source.size(0) > 0) {
    dispatch_floating(source.scalar_type(), "source", [&](auto zero) {
      using In = decltype(zero);
      using C = compute_t<In>;
      run_row_max_backward(
          features_of<In>(source, target), statistics_of<C>(eps, row_max, &row_argmax, nullptr), const_data<C>(beta),
          data_or_null<C>(source_grad), data_or_null<C>(target_grad), call.context());
    });
  }
}

}  // namespace pose_kernels

STABLE_TORCH_LIBRARY_IMPL(pose_kernels, CUDA, m) {
  m.impl("guided_correlation", TORCH_BOX(&pose_kernels::guided_correlation));
  m.impl("guided_correlation_out", TORCH_BOX(&pose_kernels::guided_correlation_out));
  m.impl("guided_correlation_backward", TORCH_BOX(&pose_kernels::guided_correlation_backward));
  m.impl("guided_correlation_row_max", TORCH_BOX(&pose_kernels::guided_correlation_row_max));
  m.impl("guided_correlation_band", TORCH_BOX(&pose_kernels::guided_correlation_band));
  m.impl("guided_correlation_band_backward", TORCH_BOX(&pose_kernels::guided_correlation_band_backward));
  m.impl("guided_correlation_row_max_backward", TORCH_BOX(&pose_kernels::guided_correlation_row_max_backward));
}
