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
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "checks.h"
#include "cpu/row_max.h"
#include "cpu/simd.h"

namespace pose_kernels {

// Of the targets in the features' band.
template <class In, class Out>
struct BandArguments {
  Features<In> z;
  Statistics<compute_t<In>> statistics;
  Out* out;  // [B, S, n]
  MapStrides out_strides;
};

template <class In, class G>
struct BandBackwardArguments {
  Features<In> z;
  Statistics<compute_t<In>> statistics;
  const G* grad;  // [B, S, n]
  MapStrides grad_strides;
  compute_t<In>* source_grad;  // [B, m, S], added to, or null
  compute_t<In>* target_grad;  // [B, m, T], the band's columns written, or null
  compute_t<In>* beta;  // [B, S], added to
};

}  // namespace pose_kernels

#define SIMD_INL "cpu/guided_correlation.inl"
#include "cpu/foreach_target.h"

namespace pose_kernels {

static void guide(
    const Tensor& source, const Tensor& target, double eps, const StatisticsTensors& statistics,
    const MapResult& result) {
  fill_map(result, source.scalar_type(), [&](const MapResult& to) {
    dispatch_map(source.scalar_type(), to.map.scalar_type(), "guided_correlation", [&](auto zero, auto narrow) {
      using In = decltype(zero);
      using Out = decltype(narrow);
      const Features<In> z = features_of<In>(source, target);
      const auto found = statistics.of<compute_t<In>>(eps);
      FreshPages pages(to.map.mutable_data_ptr(), to.map.numel() * static_cast<int64_t>(sizeof(Out)), to.fresh);
      const BandArguments<In, Out> x{z, found, mutable_data<Out>(to.map), strides_of(to, z.sources, z.targets)};
      SIMD_DISPATCH(guided_map<In, Out>)(x, pages);
    });
  });
}

static MapAndStatistics guided_correlation(
    const Tensor& source_, const Tensor& target_, double eps, bool, bool channels_last, ScalarType out_dtype) {
  check_features(source_, target_);
  check_map_type(out_dtype, "out_dtype", source_.scalar_type());
  const Tensor source = torch::stable::contiguous(source_), target = torch::stable::contiguous(target_);
  const Tensor result = empty_map(target, positions(source), channels_last, out_dtype);
  const StatisticsTensors statistics(source, source.size(0), positions(source), positions(target));
  guide(source, target, eps, statistics, {result, channels_last, true});
  return {result, statistics.row_max, statistics.row_argmax, statistics.norm};
}

static void guided_correlation_out(const Tensor& source_, const Tensor& target_, double eps, bool, Tensor out) {
  check_features(source_, target_);
  check_out(out, source_, target_);
  const Tensor source = torch::stable::contiguous(source_), target = torch::stable::contiguous(target_);
  const StatisticsTensors statistics(source, source.size(0), positions(source), positions(target));
  guide(source, target, eps, statistics, given_map(out));
}

static std::tuple<Tensor, Tensor> guided_correlation_backward(
    const Tensor& grad_, const Tensor& source_, const Tensor& target_, const Tensor& row_max,
    const Tensor& row_argmax, const Tensor& norm, double eps, bool, bool want_source, bool want_target) {
  check_features(source_, target_);
  check_map_gradient(grad_, source_, target_);
  const Tensor source = torch::stable::contiguous(source_), target = torch::stable::contiguous(target_);
  const StatisticsTensors statistics(row_max, row_argmax, norm);
  const int64_t B = source.size(0), S = positions(source), T = positions(target);
  check_statistics(statistics, B, S, T, source.scalar_type());
  MapStrides strides;
  const Tensor grad = with_map_strides(readable_gradient(grad_, source.scalar_type()), strides);
  const Tensor source_grad = new_like(source, want_source), target_grad = new_like(target, want_target);
  if (B > 0) {
    dispatch_map(source.scalar_type(), grad.scalar_type(), "guided_correlation_backward", [&](auto zero, auto narrow) {
      using In = decltype(zero);
      using G = decltype(narrow);
      using C = compute_t<In>;
      const Features<In> z = features_of<In>(source, target);
      const auto given = statistics.of<C>(eps);
      Sums<C> source_sum(source_grad.numel()), target_sum(target_grad.numel()), beta(B * S);
      BandBackwardArguments<In, G> x{z, given, const_data<G>(grad), strides};
      x.source_grad = want_source ? source_sum.data() : nullptr;
      x.target_grad = want_target ? target_sum.data() : nullptr;
      x.beta = beta.data();
      SIMD_DISPATCH(guided_band_backward<In, G>)(x);
      SIMD_DISPATCH(guided_row_max_backward<In>)({z, given, beta.data(), x.source_grad, x.target_grad});
      source_sum.round_to(mutable_data<In>(source_grad));
      target_sum.round_to(mutable_data<In>(target_grad));
    });
  }
  return {source_grad, target_grad};
}

// ---- for guided_correlation_conv2d: features [B, m, S] and [B, m, T] in the compute type, contiguous like the rest

// Loops on float64 features have float64 maps: others are rounded from one, or made one.
template <class Wide, class Map>
using band_t = std::conditional_t<std::is_same_v<Wide, double>, double, Map>;

static bool has_wide_map(const Tensor& source, const Tensor& map) {
  return source.scalar_type() == ScalarType::Double && map.scalar_type() != ScalarType::Double;
}

static std::tuple<Tensor, Tensor> guided_correlation_row_max(
    const Tensor& source, const Tensor& target, double eps, bool) {
  check_band_features(source, target);
  const int64_t B = source.size(0), S = source.size(2);
  const Tensor row_max = empty(source, {B, S}, source.scalar_type());
  const Tensor row_argmax = empty(source, {B, S}, ScalarType::Long);
  if (B > 0) {
    dispatch_wide(source.scalar_type(), "source", [&](auto zero) {
      using T = decltype(zero);
      SIMD_DISPATCH(guided_row_max<T>)
      ({features_of<T>(source, target), statistics_of<T>(eps, row_max, &row_argmax, nullptr), nullptr});
    });
  }
  return {row_max, row_argmax};
}

static void guided_correlation_band(
    const Tensor& source, const Tensor& target, const Tensor& row_max, double eps, bool, int64_t begin, Tensor out,
    Tensor norm) {
  check_band(out, "out", source, target, row_max, norm, begin);
  const int64_t S = source.size(2), n = out.size(2);
  const bool wide = has_wide_map(source, out);
  const Tensor map = wide ? torch::stable::new_empty(out, out.sizes(), ScalarType::Double) : out;
  if (source.size(0) > 0) {
    dispatch_band(source.scalar_type(), map.scalar_type(), [&](auto zero, auto narrow) {
      using C = decltype(zero);
      using Out = band_t<C, decltype(narrow)>;
      SIMD_DISPATCH(guided_band<C, Out>)
      ({band_of<C>(source, target, begin, n), statistics_of<C>(eps, row_max, nullptr, &norm), mutable_data<Out>(map),
        {S * n, n, 1}});
    });
  }
  if (wide) {
    torch::stable::copy_(out, map);
  }
}

static void guided_correlation_band_backward(
    const Tensor& grad_, const Tensor& source, const Tensor& target, const Tensor& row_max, const Tensor& norm,
    double eps, bool, int64_t begin, Tensor source_grad, Tensor target_grad, Tensor beta) {
  check_band(grad_, "grad", source, target, row_max, norm, begin);
  check_band_gradients(source, target, source_grad, target_grad, beta);
  const int64_t S = source.size(2), n = grad_.size(2);
  const Tensor grad = has_wide_map(source, grad_) ? torch::stable::to(grad_, ScalarType::Double) : grad_;
  if (source.size(0) > 0) {
    dispatch_band(source.scalar_type(), grad.scalar_type(), [&](auto zero, auto narrow) {
      using C = decltype(zero);
      using G = band_t<C, decltype(narrow)>;
      BandBackwardArguments<C, G> x{
          band_of<C>(source, target, begin, n), statistics_of<C>(eps, row_max, nullptr, &norm), const_data<G>(grad),
          {S * n, n, 1}};
      x.source_grad = data_or_null<C>(source_grad);
      x.target_grad = data_or_null<C>(target_grad);
      x.beta = mutable_data<C>(beta);
      SIMD_DISPATCH(guided_band_backward<C, G>)(x);
    });
  }
}

static void guided_correlation_row_max_backward(
    const Tensor& source, const Tensor& target, const Tensor& row_max, const Tensor& row_argmax, double eps,
    const Tensor& beta, Tensor source_grad, Tensor target_grad) {
  check_row_max_backward(source, target, row_max, row_argmax);
  check_band_gradients(source, target, source_grad, target_grad, beta);
  dispatch_wide(source.scalar_type(), "source", [&](auto zero) {
    using C = decltype(zero);
    SIMD_DISPATCH(guided_row_max_backward<C>)
    ({features_of<C>(source, target), statistics_of<C>(eps, row_max, &row_argmax, nullptr), const_data<C>(beta),
      data_or_null<C>(source_grad), data_or_null<C>(target_grad)});
  });
}

}  // namespace pose_kernels

STABLE_TORCH_LIBRARY_IMPL(pose_kernels, CPU, m) {
  m.impl("guided_correlation", TORCH_BOX(&pose_kernels::guided_correlation));
  m.impl("guided_correlation_out", TORCH_BOX(&pose_kernels::guided_correlation_out));
  m.impl("guided_correlation_backward", TORCH_BOX(&pose_kernels::guided_correlation_backward));
  m.impl("guided_correlation_row_max", TORCH_BOX(&pose_kernels::guided_correlation_row_max));
  m.impl("guided_correlation_band", TORCH_BOX(&pose_kernels::guided_correlation_band));
  m.impl("guided_correlation_band_backward", TORCH_BOX(&pose_kernels::guided_correlation_band_backward));
  m.impl("guided_correlation_row_max_backward", TORCH_BOX(&pose_kernels::guided_correlation_row_max_backward));
}
