// guided_correlation on the CPU: Eqs. 1, 9 and 2 in two sweeps forward and one backward, no 4D tensor but the result.
//
//   C(s,t) = <z_s(s), z_t(t)>,  b_s = max(max_t C, eps),  u = C^3 / b_s,  n_t = max(||u(.,t)||, eps),  Qhat = u / n_t
//
// Forward. Sweep 1: blocks of sources against all targets, maxima b_s and where they are. Sweep 2: blocks of all
// sources against some targets, held in cache: product, cube, column norms, one write. The product is computed twice,
// for writing and reading 4D tensors costs more than 35 multiplications per element do.
//
// Backward, per block of targets, G = dL/dQhat read once: C again, D~_t = sum_s G u; then du = G/n - u D~/n^3,
// dC = 3 C^2 du / b, dz_t = sum_s dC z_s (complete in the block), dz_s += sum_t dC z_t,
// beta_s = -sum_t du C^3 / b^2, and at the end dz_s += beta_s z_t(t*), dz_t(t*) += beta_s z_s.
//
// Sweep 2 and the backward work on any band of targets: guided_correlation_conv2d asks for one after the other.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <tuple>
#include <type_traits>

#include "common.h"
#include "cpu/memory.h"
#include "cpu/simd.h"

namespace pose_kernels {

template <class In>
struct RowMaxArguments {
  int64_t batch, m, S, n_targets;
  compute_t<In> eps;
  const In* source;  // [B, m, S]
  const In* target;  // [B, m, T]
  compute_t<In>* row_max;  // [B, S]
  int64_t* row_argmax;  // [B, S]
  FreshPages* pages;  // of the result, to be brought in on the way; or null
};

// The band is the n targets from `begin` on.
template <class In, class Out>
struct BandArguments {
  int64_t batch, m, S, n_targets, begin, n;
  compute_t<In> eps;
  const In* source;  // [B, m, S]
  const In* target;  // [B, m, T]
  const compute_t<In>* row_max;  // [B, S]
  Out* out;  // [B, S, n]
  MapStrides out_strides;
  compute_t<In>* norm;  // [B, T]
};

template <class In, class G>
struct BandBackwardArguments {
  int64_t batch, m, S, n_targets, begin, n;
  compute_t<In> eps;
  const In* source;  // [B, m, S]
  const In* target;  // [B, m, T]
  const compute_t<In>* row_max;  // [B, S]
  const compute_t<In>* norm;  // [B, T]
  const G* grad;  // [B, S, n]
  MapStrides grad_strides;
  compute_t<In>* source_grad;  // [B, m, S], added to
  compute_t<In>* target_grad;  // [B, m, T], the band's columns written
  compute_t<In>* beta;  // [B, S], added to
};

template <class In>
struct RowMaxBackwardArguments {
  int64_t batch, m, S, n_targets;
  compute_t<In> eps;
  const In* source;  // [B, m, S]
  const In* target;  // [B, m, T]
  const compute_t<In>* row_max;  // [B, S]
  const int64_t* row_argmax;  // [B, S]
  const compute_t<In>* beta;  // [B, S]
  compute_t<In>* source_grad;  // [B, m, S], added to
  compute_t<In>* target_grad;  // [B, m, T], added to
};

}  // namespace pose_kernels

#define SIMD_INL "cpu/guided_correlation.inl"
#include "cpu/foreach_target.h"

namespace pose_kernels {

static std::tuple<Tensor, Tensor, Tensor, Tensor> guided_correlation(
    const Tensor& source_, const Tensor& target_, double eps, bool, bool channels_last) {
  check_features(source_, target_);
  const Tensor source = torch::stable::contiguous(source_), target = torch::stable::contiguous(target_);
  const int64_t B = source.size(0), m = source.size(1), S = source.size(2) * source.size(3);
  const int64_t T = target.size(2) * target.size(3);
  const ScalarType type = source.scalar_type(), wide = compute_type(type);
  Tensor result = empty_map(source, target, S, channels_last);
  Tensor row_max = empty(source, {B, S}, wide), row_argmax = empty(source, {B, S}, ScalarType::Long);
  Tensor norm = empty(source, {B, T}, wide);
  if (B > 0) {
    dispatch_floating(type, "guided_correlation", [&](auto zero) {
      using In = decltype(zero);
      using C = compute_t<In>;
      const In* z_s = const_data<In>(source);
      const In* z_t = const_data<In>(target);
      FreshPages pages(result.mutable_data_ptr(), B * S * T * static_cast<int64_t>(sizeof(In)));
      SIMD_DISPATCH(guided_row_max<In>)
      ({B, m, S, T, static_cast<C>(eps), z_s, z_t, mutable_data<C>(row_max), mutable_data<int64_t>(row_argmax),
        &pages});
      const MapStrides strides = channels_last ? MapStrides{S * T, 1, S} : MapStrides{S * T, T, 1};
      SIMD_DISPATCH(guided_band<In, In>)
      ({B, m, S, T, 0, T, static_cast<C>(eps), z_s, z_t, const_data<C>(row_max), mutable_data<In>(result), strides,
        mutable_data<C>(norm)});
    });
  }
  return {result, row_max, row_argmax, norm};
}

static void check_statistics(const Tensor& row_max, const Tensor& norm, int64_t B, int64_t S, int64_t T, ScalarType wide) {
  check_shape(row_max, "row_max", {B, S});
  check_shape(norm, "norm", {B, T});
  check_type(row_max, "row_max", wide);
  check_type(norm, "norm", wide);
}

static std::tuple<Tensor, Tensor> guided_correlation_backward(
    const Tensor& grad_, const Tensor& source_, const Tensor& target_, const Tensor& row_max_,
    const Tensor& row_argmax_, const Tensor& norm_, double eps, bool) {
  check_features(source_, target_);
  const Tensor source = torch::stable::contiguous(source_), target = torch::stable::contiguous(target_);
  const Tensor row_max = torch::stable::contiguous(row_max_), norm = torch::stable::contiguous(norm_);
  const Tensor row_argmax = torch::stable::contiguous(row_argmax_);
  const int64_t B = source.size(0), m = source.size(1);
  const int64_t S = source.size(2) * source.size(3), T = target.size(2) * target.size(3);
  const ScalarType type = source.scalar_type(), wide = compute_type(type);
  check_shape(grad_, "grad", {B, S, target.size(2), target.size(3)});
  check_type(grad_, "grad", type);
  check_statistics(row_max, norm, B, S, T, wide);
  check_shape(row_argmax, "row_argmax", {B, S});
  check_type(row_argmax, "row_argmax", ScalarType::Long);
  MapStrides strides;
  const Tensor grad = with_map_strides(grad_, strides);
  Tensor source_grad = empty(source, {B, m, source.size(2), source.size(3)}, type);
  Tensor target_grad = empty(source, {B, m, target.size(2), target.size(3)}, type);
  if (B > 0) {
    dispatch_floating(type, "guided_correlation_backward", [&](auto zero) {
      using In = decltype(zero);
      using C = compute_t<In>;
      const C floor = static_cast<C>(eps);
      const In* z_s = const_data<In>(source);
      const In* z_t = const_data<In>(target);
      Scratch<C> source_sum(B * m * S), target_sum(B * m * T), beta(B * S);
      std::fill_n(source_sum.data(), B * m * S, C(0));
      std::fill_n(beta.data(), B * S, C(0));
      SIMD_DISPATCH(guided_band_backward<In, In>)
      ({B, m, S, T, 0, T, floor, z_s, z_t, const_data<C>(row_max), const_data<C>(norm), const_data<In>(grad), strides,
        source_sum.data(), target_sum.data(), beta.data()});
      SIMD_DISPATCH(guided_row_max_backward<In>)
      ({B, m, S, T, floor, z_s, z_t, const_data<C>(row_max), const_data<int64_t>(row_argmax), beta.data(),
        source_sum.data(), target_sum.data()});
      std::transform(source_sum.data(), source_sum.data() + B * m * S, mutable_data<In>(source_grad), [](C x) {
        return static_cast<In>(x);
      });
      std::transform(target_sum.data(), target_sum.data() + B * m * T, mutable_data<In>(target_grad), [](C x) {
        return static_cast<In>(x);
      });
    });
  }
  return {source_grad, target_grad};
}

// ---- for guided_correlation_conv2d: features [B, m, S] and [B, m, T] in the compute type, contiguous like the rest

static void check_contiguous(std::initializer_list<const Tensor*> tensors) {
  for (const Tensor* x : tensors) {
    STD_TORCH_CHECK(x->is_contiguous(), "guided_correlation band: expected contiguous tensors");
  }
}

// Calls f with values of the features' type and of the map's.
template <class F>
static void dispatch_band(ScalarType features, ScalarType map, F&& f) {
  if (features == ScalarType::Double) {
    STD_TORCH_CHECK(map == ScalarType::Double, "band: expected float64 as the features");
    return f(double{}, double{});
  }
  switch (map) {
    case ScalarType::Float:
      return f(float{}, float{});
    case ScalarType::Half:
      return f(float{}, Half{});
    default:
      STD_TORCH_CHECK(map == ScalarType::BFloat16, "band: expected float32, float16 or bfloat16");
      return f(float{}, BFloat16{});
  }
}

static std::tuple<Tensor, Tensor> guided_correlation_row_max(
    const Tensor& source, const Tensor& target, double eps, bool) {
  check_band_features(source, target);
  check_contiguous({&source, &target});
  const int64_t B = source.size(0), S = source.size(2);
  const ScalarType type = source.scalar_type();
  Tensor row_max = empty(source, {B, S}, type), row_argmax = empty(source, {B, S}, ScalarType::Long);
  if (B > 0) {
    dispatch_band(type, type, [&](auto zero, auto) {
      using T = decltype(zero);
      SIMD_DISPATCH(guided_row_max<T>)
      ({B, source.size(1), S, target.size(2), static_cast<T>(eps), const_data<T>(source), const_data<T>(target),
        mutable_data<T>(row_max), mutable_data<int64_t>(row_argmax), nullptr});
    });
  }
  return {row_max, row_argmax};
}

static void guided_correlation_band(
    const Tensor& source, const Tensor& target, const Tensor& row_max, double eps, bool, int64_t begin, Tensor out,
    Tensor norm) {
  check_band_features(source, target);
  const int64_t B = source.size(0), m = source.size(1), S = source.size(2), T = target.size(2), n = out.size(-1);
  check_statistics(row_max, norm, B, S, T, source.scalar_type());
  check_shape(out, "out", {B, S, n});
  check_contiguous({&source, &target, &row_max, &out, &norm});
  STD_TORCH_CHECK(begin >= 0 && n > 0 && begin + n <= T, "begin: the band lies outside the targets");
  if (B > 0) {
    dispatch_band(source.scalar_type(), out.scalar_type(), [&](auto zero, auto map) {
      using C = decltype(zero);
      using Out = decltype(map);
      SIMD_DISPATCH(guided_band<C, Out>)
      ({B, m, S, T, begin, n, static_cast<C>(eps), const_data<C>(source), const_data<C>(target),
        const_data<C>(row_max), mutable_data<Out>(out), {S * n, n, 1}, mutable_data<C>(norm)});
    });
  }
}

static void guided_correlation_band_backward(
    const Tensor& grad, const Tensor& source, const Tensor& target, const Tensor& row_max, const Tensor& norm,
    double eps, bool, int64_t begin, Tensor source_grad, Tensor target_grad, Tensor beta) {
  check_band_features(source, target);
  const ScalarType type = source.scalar_type();
  const int64_t B = source.size(0), m = source.size(1), S = source.size(2), T = target.size(2), n = grad.size(-1);
  check_statistics(row_max, norm, B, S, T, type);
  check_shape(grad, "grad", {B, S, n});
  check_shape(source_grad, "source_grad", {B, m, S});
  check_shape(target_grad, "target_grad", {B, m, T});
  check_shape(beta, "beta", {B, S});
  check_type(source_grad, "source_grad", type);
  check_type(target_grad, "target_grad", type);
  check_type(beta, "beta", type);
  check_contiguous({&source, &target, &row_max, &norm, &grad, &source_grad, &target_grad, &beta});
  STD_TORCH_CHECK(begin >= 0 && n > 0 && begin + n <= T, "begin: the band lies outside the targets");
  if (B > 0) {
    dispatch_band(type, grad.scalar_type(), [&](auto zero, auto map) {
      using C = decltype(zero);
      using G = decltype(map);
      SIMD_DISPATCH(guided_band_backward<C, G>)
      ({B, m, S, T, begin, n, static_cast<C>(eps), const_data<C>(source), const_data<C>(target),
        const_data<C>(row_max), const_data<C>(norm), const_data<G>(grad), {S * n, n, 1}, mutable_data<C>(source_grad),
        mutable_data<C>(target_grad), mutable_data<C>(beta)});
    });
  }
}

static void guided_correlation_row_max_backward(
    const Tensor& source, const Tensor& target, const Tensor& row_max, const Tensor& row_argmax, double eps,
    const Tensor& beta, Tensor source_grad, Tensor target_grad) {
  check_band_features(source, target);
  const ScalarType type = source.scalar_type();
  const int64_t B = source.size(0), m = source.size(1), S = source.size(2), T = target.size(2);
  check_shape(row_max, "row_max", {B, S});
  check_shape(row_argmax, "row_argmax", {B, S});
  check_shape(beta, "beta", {B, S});
  check_shape(source_grad, "source_grad", {B, m, S});
  check_shape(target_grad, "target_grad", {B, m, T});
  check_type(row_max, "row_max", type);
  check_type(beta, "beta", type);
  check_type(source_grad, "source_grad", type);
  check_type(target_grad, "target_grad", type);
  check_type(row_argmax, "row_argmax", ScalarType::Long);
  check_contiguous({&source, &target, &row_max, &row_argmax, &beta, &source_grad, &target_grad});
  dispatch_band(type, type, [&](auto zero, auto) {
    using C = decltype(zero);
    SIMD_DISPATCH(guided_row_max_backward<C>)
    ({B, m, S, T, static_cast<C>(eps), const_data<C>(source), const_data<C>(target), const_data<C>(row_max),
      const_data<int64_t>(row_argmax), const_data<C>(beta), mutable_data<C>(source_grad),
      mutable_data<C>(target_grad)});
  });
}

}  // namespace pose_kernels

STABLE_TORCH_LIBRARY_IMPL(pose_kernels, CPU, m) {
  m.impl("guided_correlation", TORCH_BOX(&pose_kernels::guided_correlation));
  m.impl("guided_correlation_backward", TORCH_BOX(&pose_kernels::guided_correlation_backward));
  m.impl("guided_correlation_row_max", TORCH_BOX(&pose_kernels::guided_correlation_row_max));
  m.impl("guided_correlation_band", TORCH_BOX(&pose_kernels::guided_correlation_band));
  m.impl("guided_correlation_band_backward", TORCH_BOX(&pose_kernels::guided_correlation_band_backward));
  m.impl("guided_correlation_row_max_backward", TORCH_BOX(&pose_kernels::guided_correlation_row_max_backward));
}
