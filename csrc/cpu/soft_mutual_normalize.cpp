// soft_mutual_normalize on the CPU: Eqs. 9 and 2 of a given map C.
//
//   b_s = max(max_t C, eps),  u = C^3 / b_s,  n_t = max(||u(.,t)||, eps),  Qhat = u / n_t     (a_t cancels)
//
// Forward reads the map twice, rows for b_s and where it is, then blocks of all sources by some targets held in cache.
// Backward reads map and gradient once, in such blocks: D~_t = sum_s G u, du = G/n - u D~/n^3, dC = 3 C^2 du / b, and
// at the end dC(s, t*(s)) += beta_s = -sum_t du C^3 / b^2.
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
struct NormalizeArguments {
  int64_t batch, S, n_targets;
  compute_t<In> eps;
  const In* map;  // [B, S, T]
  In* result;  // [B, S, T]
  compute_t<In>* row_max;  // [B, S]
  int64_t* row_argmax;  // [B, S]
  compute_t<In>* norm;  // [B, T]
};

template <class In>
struct NormalizeBackwardArguments {
  int64_t batch, S, n_targets;
  compute_t<In> eps;
  const In* map;  // [B, S, T]
  const In* grad;  // [B, S, T]
  MapStrides grad_strides;
  const compute_t<In>* row_max;  // [B, S]
  const int64_t* row_argmax;  // [B, S]
  const compute_t<In>* norm;  // [B, T]
  In* map_grad;  // [B, S, T]
};

}  // namespace pose_kernels

#define SIMD_INL "cpu/soft_mutual_normalize.inl"
#include "cpu/foreach_target.h"

namespace pose_kernels {

static std::tuple<Tensor, Tensor, Tensor, Tensor> soft_mutual_normalize(const Tensor& map_, double eps) {
  check_map(map_);
  const Tensor map = torch::stable::contiguous(map_);
  const int64_t B = map.size(0), S = map.size(1), T = map.size(2) * map.size(3);
  const ScalarType type = map.scalar_type(), wide = compute_type(type);
  Tensor result = empty(map, {B, S, map.size(2), map.size(3)}, type);
  Tensor row_max = empty(map, {B, S}, wide), row_argmax = empty(map, {B, S}, ScalarType::Long);
  Tensor norm = empty(map, {B, T}, wide);
  if (B > 0) {
    dispatch_floating(type, "soft_mutual_normalize", [&](auto zero) {
      using In = decltype(zero);
      using C = compute_t<In>;
      prefault(result.mutable_data_ptr(), B * S * T * static_cast<int64_t>(sizeof(In)));
      SIMD_DISPATCH(normalize<In>)
      ({B, S, T, static_cast<C>(eps), const_data<In>(map), mutable_data<In>(result), mutable_data<C>(row_max),
        mutable_data<int64_t>(row_argmax), mutable_data<C>(norm)});
    });
  }
  return {result, row_max, row_argmax, norm};
}

static Tensor soft_mutual_normalize_backward(
    const Tensor& grad_, const Tensor& map_, const Tensor& row_max_, const Tensor& row_argmax_, const Tensor& norm_,
    double eps) {
  check_map(map_);
  const Tensor map = torch::stable::contiguous(map_);
  const Tensor row_max = torch::stable::contiguous(row_max_), norm = torch::stable::contiguous(norm_);
  const Tensor row_argmax = torch::stable::contiguous(row_argmax_);
  const int64_t B = map.size(0), S = map.size(1), T = map.size(2) * map.size(3);
  const ScalarType type = map.scalar_type(), wide = compute_type(type);
  check_shape(grad_, "grad", {B, S, map.size(2), map.size(3)});
  check_type(grad_, "grad", type);
  check_shape(row_max, "row_max", {B, S});
  check_shape(row_argmax, "row_argmax", {B, S});
  check_shape(norm, "norm", {B, T});
  check_type(row_max, "row_max", wide);
  check_type(row_argmax, "row_argmax", ScalarType::Long);
  check_type(norm, "norm", wide);
  MapStrides strides;
  const Tensor grad = with_map_strides(grad_, strides);
  Tensor map_grad = empty(map, {B, S, map.size(2), map.size(3)}, type);
  if (B > 0) {
    dispatch_floating(type, "soft_mutual_normalize_backward", [&](auto zero) {
      using In = decltype(zero);
      using C = compute_t<In>;
      prefault(map_grad.mutable_data_ptr(), B * S * T * static_cast<int64_t>(sizeof(In)));
      SIMD_DISPATCH(normalize_backward<In>)
      ({B, S, T, static_cast<C>(eps), const_data<In>(map), const_data<In>(grad), strides, const_data<C>(row_max),
        const_data<int64_t>(row_argmax), const_data<C>(norm), mutable_data<In>(map_grad)});
    });
  }
  return map_grad;
}

}  // namespace pose_kernels

STABLE_TORCH_LIBRARY_IMPL(pose_kernels, CPU, m) {
  m.impl("soft_mutual_normalize", TORCH_BOX(&pose_kernels::soft_mutual_normalize));
  m.impl("soft_mutual_normalize_backward", TORCH_BOX(&pose_kernels::soft_mutual_normalize_backward));
}
