// soft_mutual_normalize for CUDA tensors; see soft_mutual_normalize.cuh.
#include <tuple>

#include "cuda/common.cuh"
#include "cuda/soft_mutual_normalize.cuh"

namespace pose_kernels {

static std::tuple<Tensor, Tensor, Tensor, Tensor> soft_mutual_normalize(const Tensor& map_, double eps) {
  check_map(map_);
  Call call(map_);
  const Tensor map = torch::stable::contiguous(map_);
  const int64_t B = map.size(0), S = map.size(1), T = map.size(2) * map.size(3);
  const ScalarType type = map.scalar_type(), wide = compute_type(type);
  const Tensor result = empty(map, {B, S, map.size(2), map.size(3)}, type);
  const Tensor row_max = empty(map, {B, S}, wide), row_argmax = empty(map, {B, S}, ScalarType::Long);
  const Tensor norm = empty(map, {B, T}, wide);
  if (B > 0) {
    dispatch_floating(type, "soft_mutual_normalize", [&](auto zero) {
      using E = decltype(zero);
      using C = Compute<E>;
      run_soft_mutual_normalize<E>(
          const_data<E>(map), B, S, T,
          {static_cast<C>(eps), mutable_data<C>(row_max), mutable_data<int64_t>(row_argmax), mutable_data<C>(norm)},
          mutable_data<E>(result), call.allocate(), call.stream());
    });
  }
  return {result, row_max, row_argmax, norm};
}

static Tensor soft_mutual_normalize_backward(
    const Tensor& grad_, const Tensor& map_, const Tensor& row_max_, const Tensor& row_argmax_, const Tensor& norm_,
    double eps) {
  check_map(map_);
  Call call(map_);
  const Tensor map = torch::stable::contiguous(map_), grad = torch::stable::contiguous(grad_);
  const Tensor row_max = torch::stable::contiguous(row_max_), norm = torch::stable::contiguous(norm_);
  const Tensor row_argmax = torch::stable::contiguous(row_argmax_);
  const int64_t B = map.size(0), S = map.size(1), T = map.size(2) * map.size(3);
  const ScalarType type = map.scalar_type(), wide = compute_type(type);
  check_shape(grad, "grad", {B, S, map.size(2), map.size(3)});
  check_shape(row_max, "row_max", {B, S});
  check_shape(row_argmax, "row_argmax", {B, S});
  check_shape(norm, "norm", {B, T});
  check_type(grad, "grad", type);
  check_type(row_max, "row_max", wide);
  check_type(row_argmax, "row_argmax", ScalarType::Long);
  check_type(norm, "norm", wide);
  const Tensor result = empty(map, {B, S, map.size(2), map.size(3)}, type);
  if (B > 0) {
    dispatch_floating(type, "soft_mutual_normalize_backward", [&](auto zero) {
      using E = decltype(zero);
      using C = Compute<E>;
      run_soft_mutual_normalize_backward<E>(
          const_data<E>(grad), const_data<E>(map), B, S, T,
          {static_cast<C>(eps), mutable_data<C>(row_max), mutable_data<int64_t>(row_argmax), mutable_data<C>(norm)},
          mutable_data<E>(result), call.allocate(), call.stream());
    });
  }
  return result;
}

}  // namespace pose_kernels

STABLE_TORCH_LIBRARY_IMPL(pose_kernels, CUDA, m) {
  m.impl("soft_mutual_normalize", TORCH_BOX(&pose_kernels::soft_mutual_normalize));
  m.impl("soft_mutual_normalize_backward", TORCH_BOX(&pose_kernels::soft_mutual_normalize_backward));
}
