// correlation_4d on the CPU: C(s,t) = <z_s(s), z_t(t)>, every value written once.
//
// Backward reads G = dL/dC once, in blocks of all sources by some targets: dz_t = sum_s G z_s is complete in the block,
// dz_s += sum_t G z_t.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "checks.h"
#include "cpu/memory.h"
#include "cpu/simd.h"

namespace pose_kernels {

template <class In>
struct CorrelationArguments {
  int64_t batch, m, rows, columns;
  const In* row_features;  // [B, m, rows]
  const In* column_features;  // [B, m, columns]
  In* result;  // [B, rows, columns]
};

template <class In>
struct CorrelationBackwardArguments {
  Features<In> z;
  const In* grad;  // [B, S, T]
  MapStrides grad_strides;
  compute_t<In>* source_grad;  // [B, m, S], added to, or null
  In* target_grad;  // [B, m, T] or null
};

}  // namespace pose_kernels

#define SIMD_INL "cpu/correlation_4d.inl"
#include "cpu/foreach_target.h"

namespace pose_kernels {

static Tensor correlation_4d(const Tensor& source_, const Tensor& target_, bool, bool channels_last) {
  check_features(source_, target_);
  const Tensor source = torch::stable::contiguous(source_), target = torch::stable::contiguous(target_);
  const int64_t B = source.size(0), S = positions(source), T = positions(target);
  Tensor result = empty_map(source, target, S, channels_last);
  if (B > 0) {
    dispatch_floating(source.scalar_type(), "correlation_4d", [&](auto zero) {
      using In = decltype(zero);
      const In* z_s = const_data<In>(source);
      const In* z_t = const_data<In>(target);
      prefault(result.mutable_data_ptr(), B * S * T * static_cast<int64_t>(sizeof(In)));
      CorrelationArguments<In> x{B, source.size(1), S, T, z_s, z_t, mutable_data<In>(result)};
      if (channels_last) {  // the transposed product
        std::swap(x.rows, x.columns);
        std::swap(x.row_features, x.column_features);
      }
      SIMD_DISPATCH(correlate<In>)(x);
    });
  }
  return result;
}

static std::tuple<Tensor, Tensor> correlation_4d_backward(
    const Tensor& grad_, const Tensor& source_, const Tensor& target_, bool, bool want_source, bool want_target) {
  check_features(source_, target_);
  check_map_gradient(grad_, source_, target_);
  const Tensor source = torch::stable::contiguous(source_), target = torch::stable::contiguous(target_);
  MapStrides strides;
  const Tensor grad = with_map_strides(grad_, strides);
  const Tensor source_grad = new_like(source, want_source), target_grad = new_like(target, want_target);
  if (source.size(0) > 0) {
    dispatch_floating(source.scalar_type(), "correlation_4d_backward", [&](auto zero) {
      using In = decltype(zero);
      Sums<compute_t<In>> sum(source_grad.numel());
      CorrelationBackwardArguments<In> x{features_of<In>(source, target), const_data<In>(grad), strides};
      x.source_grad = want_source ? sum.data() : nullptr;
      x.target_grad = data_or_null<In>(target_grad, want_target);
      SIMD_DISPATCH(correlate_backward<In>)(x);
      sum.round_to(mutable_data<In>(source_grad));
    });
  }
  return {source_grad, target_grad};
}

}  // namespace pose_kernels

STABLE_TORCH_LIBRARY_IMPL(pose_kernels, CPU, m) {
  m.impl("correlation_4d", TORCH_BOX(&pose_kernels::correlation_4d));
  m.impl("correlation_4d_backward", TORCH_BOX(&pose_kernels::correlation_4d_backward));
}
