// guided_correlation and its bands for CUDA tensors; see guided_correlation.cuh.
#include <tuple>

#include "cuda/common.cuh"
#include "cuda/guided_correlation.cuh"

namespace pose_kernels {

template <class C>
static Statistics<C> statistics_of(
    double eps, const Tensor& row_max, const Tensor* row_argmax = nullptr, const Tensor* norm = nullptr) {
  return {static_cast<C>(eps), mutable_data<C>(row_max),
          row_argmax == nullptr ? nullptr : mutable_data<int64_t>(*row_argmax),
          norm == nullptr ? nullptr : mutable_data<C>(*norm)};
}

static std::tuple<Tensor, Tensor, Tensor, Tensor> guided_correlation(
    const Tensor& source_, const Tensor& target_, double eps, bool tf32, bool channels_last) {
  check_features(source_, target_);
  Call call(source_);
  const Tensor source = torch::stable::contiguous(source_), target = torch::stable::contiguous(target_);
  const int64_t B = source.size(0), S = source.size(2) * source.size(3), T = target.size(2) * target.size(3);
  const ScalarType type = source.scalar_type(), wide = compute_type(type);
  const Tensor result = empty_map(source, target, S, channels_last);
  const Tensor row_max = empty(source, {B, S}, wide), row_argmax = empty(source, {B, S}, ScalarType::Long);
  const Tensor norm = empty(source, {B, T}, wide);
  if (B > 0) {
    dispatch_floating(type, "guided_correlation", [&](auto zero) {
      using In = decltype(zero);
      run_guided_correlation<In>(
          features_of<In>(source, target), statistics_of<Compute<In>>(eps, row_max, &row_argmax, &norm), tf32,
          make_map(mutable_data<In>(result), S, T, channels_last), call.allocate(), call.stream());
    });
  }
  return {result, row_max, row_argmax, norm};
}

static std::tuple<Tensor, Tensor> guided_correlation_backward(
    const Tensor& grad_, const Tensor& source_, const Tensor& target_, const Tensor& row_max_,
    const Tensor& row_argmax_, const Tensor& norm_, double eps, bool tf32) {
  check_features(source_, target_);
  Call call(source_);
  bool channels_last;
  const Tensor grad = readable_map(grad_, &channels_last);
  const Tensor source = torch::stable::contiguous(source_), target = torch::stable::contiguous(target_);
  const Tensor row_max = torch::stable::contiguous(row_max_), norm = torch::stable::contiguous(norm_);
  const Tensor row_argmax = torch::stable::contiguous(row_argmax_);
  const int64_t B = source.size(0), m = source.size(1);
  const int64_t S = source.size(2) * source.size(3), T = target.size(2) * target.size(3);
  const ScalarType type = source.scalar_type(), wide = compute_type(type);
  check_shape(grad, "grad", {B, S, target.size(2), target.size(3)});
  check_shape(row_max, "row_max", {B, S});
  check_shape(row_argmax, "row_argmax", {B, S});
  check_shape(norm, "norm", {B, T});
  check_type(grad, "grad", type);
  check_type(row_max, "row_max", wide);
  check_type(row_argmax, "row_argmax", ScalarType::Long);
  check_type(norm, "norm", wide);
  const Tensor source_grad = empty(source, {B, m, source.size(2), source.size(3)}, type);
  const Tensor target_grad = empty(source, {B, m, target.size(2), target.size(3)}, type);
  const Tensor beta = empty(source, {B, S}, wide);
  if (B > 0) {
    dispatch_floating(type, "guided_correlation_backward", [&](auto zero) {
      using In = decltype(zero);
      using C = Compute<In>;
      run_backward<true, In, In>(
          features_of<In>(source, target), statistics_of<C>(eps, row_max, &row_argmax, &norm), tf32,
          make_map(const_data<In>(grad), S, T, channels_last),
          FeatureGrads<In>{
              mutable_data<In>(source_grad), mutable_data<In>(target_grad), mutable_data<C>(beta), false, true},
          call.allocate(), call.stream());
    });
  }
  return {source_grad, target_grad};
}

// ---- bands: features [B, m, S] and [B, m, T], float32 or float64, everything contiguous

static void check_contiguous(const Tensor& x, const char* name) {
  STD_TORCH_CHECK(x.is_contiguous(), name, ": expected a contiguous tensor");
}

// Calls f with a value of the features' type.
template <class F>
static void dispatch_wide(ScalarType type, F&& f) {
  type == ScalarType::Double ? f(double{}) : f(float{});
}

// Calls f with values of the types of the features and of the map. Only double features have maps of doubles.
template <class F>
static void dispatch_band(ScalarType features, ScalarType map, F&& f) {
  dispatch_wide(features, [&](auto wide) {
    dispatch_floating(map, "band", [&](auto zero) {
      if constexpr (std::is_same_v<decltype(zero), double> && std::is_same_v<decltype(wide), float>) {
        STD_TORCH_CHECK(false, "band: a float64 map needs float64 features");
      } else {
        f(wide, zero);
      }
    });
  });
}

template <class In>
static Features<In> band_features(const Tensor& source, const Tensor& target, int64_t begin, int64_t count) {
  return {source.size(0), source.size(1), source.size(2), target.size(2), const_data<In>(source),
          const_data<In>(target), begin, count};
}

static void check_band(
    const Tensor& band, const char* name, const Tensor& source, const Tensor& target, int64_t begin) {
  STD_TORCH_CHECK(
      band.dim() == 3 && band.size(0) == source.size(0) && band.size(1) == source.size(2), name,
      ": expected [B, S, n]");
  STD_TORCH_CHECK(begin >= 0 && begin + band.size(2) <= target.size(2), name, ": expected a band of the targets");
  check_contiguous(band, name);
}

static std::tuple<Tensor, Tensor> guided_correlation_row_max(
    const Tensor& source_, const Tensor& target_, double eps, bool tf32) {
  check_band_features(source_, target_);
  Call call(source_);
  const Tensor source = torch::stable::contiguous(source_), target = torch::stable::contiguous(target_);
  const int64_t B = source.size(0), S = source.size(2);
  const Tensor row_max = empty(source, {B, S}, source.scalar_type());
  const Tensor row_argmax = empty(source, {B, S}, ScalarType::Long);
  if (B > 0) {
    dispatch_wide(source.scalar_type(), [&](auto zero) {
      using In = decltype(zero);
      run_row_max<In>(
          band_features<In>(source, target, 0, target.size(2)), statistics_of<In>(eps, row_max, &row_argmax), tf32,
          call.allocate(), call.stream());
    });
  }
  return {row_max, row_argmax};
}

static void guided_correlation_band(
    const Tensor& source_, const Tensor& target_, const Tensor& row_max_, double eps, bool tf32, int64_t begin,
    Tensor out, Tensor norm) {
  check_band_features(source_, target_);
  Call call(source_);
  const Tensor source = torch::stable::contiguous(source_), target = torch::stable::contiguous(target_);
  const Tensor row_max = torch::stable::contiguous(row_max_);
  const int64_t B = source.size(0), S = source.size(2), T = target.size(2), n = out.size(2);
  check_band(out, "out", source, target, begin);
  check_shape(row_max, "row_max", {B, S});
  check_shape(norm, "norm", {B, T});
  check_type(row_max, "row_max", source.scalar_type());
  check_type(norm, "norm", source.scalar_type());
  check_contiguous(norm, "norm");
  if (B > 0 && n > 0) {
    dispatch_band(source.scalar_type(), out.scalar_type(), [&](auto wide, auto zero) {
      using In = decltype(wide);
      using E = decltype(zero);
      run_band<In, E>(
          band_features<In>(source, target, begin, n), statistics_of<In>(eps, row_max, nullptr, &norm), tf32,
          make_map(mutable_data<E>(out), S, n, false), call.allocate(), call.stream());
    });
  }
}

static void guided_correlation_band_backward(
    const Tensor& grad, const Tensor& source_, const Tensor& target_, const Tensor& row_max_, const Tensor& norm_,
    double eps, bool tf32, int64_t begin, Tensor source_grad, Tensor target_grad, Tensor beta) {
  check_band_features(source_, target_);
  Call call(source_);
  const Tensor source = torch::stable::contiguous(source_), target = torch::stable::contiguous(target_);
  const Tensor row_max = torch::stable::contiguous(row_max_), norm = torch::stable::contiguous(norm_);
  const ScalarType type = source.scalar_type();
  const int64_t B = source.size(0), m = source.size(1), S = source.size(2), T = target.size(2), n = grad.size(2);
  check_band(grad, "grad", source, target, begin);
  check_shape(row_max, "row_max", {B, S});
  check_shape(norm, "norm", {B, T});
  check_shape(source_grad, "source_grad", {B, m, S});
  check_shape(target_grad, "target_grad", {B, m, T});
  check_shape(beta, "beta", {B, S});
  for (const Tensor* x : {&row_max, &norm, static_cast<const Tensor*>(&source_grad),
                          static_cast<const Tensor*>(&target_grad), static_cast<const Tensor*>(&beta)}) {
    check_type(*x, "statistics and gradients", type);
    check_contiguous(*x, "statistics and gradients");
  }
  if (B > 0 && n > 0) {
    dispatch_band(type, grad.scalar_type(), [&](auto wide, auto zero) {
      using In = decltype(wide);
      using E = decltype(zero);
      run_backward<true, In, E>(
          band_features<In>(source, target, begin, n), statistics_of<In>(eps, row_max, nullptr, &norm), tf32,
          make_map(const_data<E>(grad), S, n, false),
          FeatureGrads<In>{
              mutable_data<In>(source_grad), mutable_data<In>(target_grad), mutable_data<In>(beta), true, false},
          call.allocate(), call.stream());
    });
  }
}

static void guided_correlation_row_max_backward(
    const Tensor& source_, const Tensor& target_, const Tensor& row_max_, const Tensor& row_argmax_, double eps,
    const Tensor& beta_, Tensor source_grad, Tensor target_grad) {
  check_band_features(source_, target_);
  Call call(source_);
  const Tensor source = torch::stable::contiguous(source_), target = torch::stable::contiguous(target_);
  const Tensor row_max = torch::stable::contiguous(row_max_), row_argmax = torch::stable::contiguous(row_argmax_);
  const Tensor beta = torch::stable::contiguous(beta_);
  const ScalarType type = source.scalar_type();
  const int64_t B = source.size(0), m = source.size(1), S = source.size(2), T = target.size(2);
  check_shape(row_max, "row_max", {B, S});
  check_shape(row_argmax, "row_argmax", {B, S});
  check_shape(beta, "beta", {B, S});
  check_shape(source_grad, "source_grad", {B, m, S});
  check_shape(target_grad, "target_grad", {B, m, T});
  check_type(row_max, "row_max", type);
  check_type(row_argmax, "row_argmax", ScalarType::Long);
  check_type(beta, "beta", type);
  check_type(source_grad, "source_grad", type);
  check_type(target_grad, "target_grad", type);
  check_contiguous(source_grad, "source_grad");
  check_contiguous(target_grad, "target_grad");
  if (B > 0) {
    dispatch_wide(type, [&](auto zero) {
      using In = decltype(zero);
      run_row_max_backward<In>(
          band_features<In>(source, target, 0, T), statistics_of<In>(eps, row_max, &row_argmax), const_data<In>(beta),
          mutable_data<In>(source_grad), mutable_data<In>(target_grad), call.stream());
    });
  }
}

}  // namespace pose_kernels

STABLE_TORCH_LIBRARY_IMPL(pose_kernels, CUDA, m) {
  m.impl("guided_correlation", TORCH_BOX(&pose_kernels::guided_correlation));
  m.impl("guided_correlation_backward", TORCH_BOX(&pose_kernels::guided_correlation_backward));
  m.impl("guided_correlation_row_max", TORCH_BOX(&pose_kernels::guided_correlation_row_max));
  m.impl("guided_correlation_band", TORCH_BOX(&pose_kernels::guided_correlation_band));
  m.impl("guided_correlation_band_backward", TORCH_BOX(&pose_kernels::guided_correlation_band_backward));
  m.impl("guided_correlation_row_max_backward", TORCH_BOX(&pose_kernels::guided_correlation_row_max_backward));
}
