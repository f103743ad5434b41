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
struct ForwardArguments {
  int64_t batch, m, S, n_targets;
  compute_t<In> eps;
  const In* source;  // [B, m, S]
  const In* target;  // [B, m, T]
  In* result;  // [B, S, T]
  compute_t<In>* row_max;  // [B, S]
  int64_t* row_argmax;  // [B, S]
  compute_t<In>* norm;  // [B, T]
};

template <class In>
struct BackwardArguments {
  int64_t batch, m, S, n_targets;
  compute_t<In> eps;
  const In* grad;  // [B, S, T]
  const In* source;  // [B, m, S]
  const In* target;  // [B, m, T]
  const compute_t<In>* row_max;  // [B, S]
  const int64_t* row_argmax;  // [B, S]
  const compute_t<In>* norm;  // [B, T]
  In* source_grad;  // [B, m, S]
  In* target_grad;  // [B, m, T]
};

// Vectors in the widest block of targets.
constexpr int kMaxVecs = 8;

}  // namespace pose_kernels

#define SIMD_INL "cpu/guided_correlation.inl"
#include "cpu/foreach_target.h"

namespace pose_kernels {

static void check_features(const Tensor& source, const Tensor& target) {
  STD_TORCH_CHECK(source.dim() == 4, "source: expected [B, m, hs, ws]");
  STD_TORCH_CHECK(target.dim() == 4, "target: expected [B, m, ht, wt]");
  STD_TORCH_CHECK(source.size(0) == target.size(0) && source.size(1) == target.size(1),
                  "target: expected the batch and channels of source");
  STD_TORCH_CHECK(source.size(2) * source.size(3) * target.size(2) * target.size(3) > 0,
                  "source, target: expected no empty dimension but B");
  check_type(target, "target", source.scalar_type());
}

static std::tuple<Tensor, Tensor, Tensor, Tensor> guided_correlation(
    const Tensor& source_, const Tensor& target_, double eps) {
  check_features(source_, target_);
  const Tensor source = torch::stable::contiguous(source_), target = torch::stable::contiguous(target_);
  const int64_t B = source.size(0), S = source.size(2) * source.size(3), T = target.size(2) * target.size(3);
  const ScalarType type = source.scalar_type(), wide = compute_type(type);
  Tensor result = empty(source, {B, S, target.size(2), target.size(3)}, type);
  Tensor row_max = empty(source, {B, S}, wide), row_argmax = empty(source, {B, S}, ScalarType::Long);
  Tensor norm = empty(source, {B, T}, wide);
  if (B > 0) {
    dispatch_floating(type, "guided_correlation", [&](auto zero) {
      using In = decltype(zero);
      using C = compute_t<In>;
      prefault(result.mutable_data_ptr(), B * S * T * static_cast<int64_t>(sizeof(In)));
      SIMD_DISPATCH(forward<In>)
      ({B, source.size(1), S, T, static_cast<C>(eps), static_cast<const In*>(source.const_data_ptr()),
        static_cast<const In*>(target.const_data_ptr()), static_cast<In*>(result.mutable_data_ptr()),
        static_cast<C*>(row_max.mutable_data_ptr()), static_cast<int64_t*>(row_argmax.mutable_data_ptr()),
        static_cast<C*>(norm.mutable_data_ptr())});
    });
  }
  return {result, row_max, row_argmax, norm};
}

static std::tuple<Tensor, Tensor> guided_correlation_backward(
    const Tensor& grad_, const Tensor& source_, const Tensor& target_, const Tensor& row_max_,
    const Tensor& row_argmax_, const Tensor& norm_, double eps) {
  check_features(source_, target_);
  // An incoming gradient may be expanded (all strides 0), for one.
  const Tensor grad = torch::stable::contiguous(grad_);
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
  Tensor source_grad = empty(source, {B, m, source.size(2), source.size(3)}, type);
  Tensor target_grad = empty(source, {B, m, target.size(2), target.size(3)}, type);
  if (B > 0) {
    dispatch_floating(type, "guided_correlation_backward", [&](auto zero) {
      using In = decltype(zero);
      using C = compute_t<In>;
      SIMD_DISPATCH(backward<In>)
      ({B, m, S, T, static_cast<C>(eps), static_cast<const In*>(grad.const_data_ptr()),
        static_cast<const In*>(source.const_data_ptr()), static_cast<const In*>(target.const_data_ptr()),
        static_cast<const C*>(row_max.const_data_ptr()), static_cast<const int64_t*>(row_argmax.const_data_ptr()),
        static_cast<const C*>(norm.const_data_ptr()), static_cast<In*>(source_grad.mutable_data_ptr()),
        static_cast<In*>(target_grad.mutable_data_ptr())});
    });
  }
  return {source_grad, target_grad};
}

}  // namespace pose_kernels

STABLE_TORCH_LIBRARY_IMPL(pose_kernels, CPU, m) {
  m.impl("guided_correlation", TORCH_BOX(&pose_kernels::guided_correlation));
  m.impl("guided_correlation_backward", TORCH_BOX(&pose_kernels::guided_correlation_backward));
}
