// soft_mutual_normalize for CUDA tensors; see soft_mutual_normalize.cuh.
#include "cuda/common.cuh"
#include "cuda/soft_mutual_normalize.cuh"

namespace pose_kernels {

// `grad` null: forward.
template <class E>
static MapPair<E> maps_of(const Tensor& map, const Tensor* grad) {
  return {map.size(0), map.size(1), map.size(2) * map.size(3), const_data<E>(map),
          grad == nullptr ? nullptr : const_data<E>(*grad)};
}

static MapAndStatistics soft_mutual_normalize(const Tensor& map_, double eps) {
  check_map(map_);
  Call call(map_);
  const Tensor map = torch::stable::contiguous(map_), result = new_like(map);
  const StatisticsTensors statistics(map, map.size(0), map.size(1), map.size(2) * map.size(3));
  if (map.size(0) > 0) {
    dispatch_floating(map.scalar_type(), "soft_mutual_normalize", [&](auto zero) {
      using E = decltype(zero);
      run_soft_mutual_normalize(
          maps_of<E>(map, nullptr), statistics.of<compute_t<E>>(eps), mutable_data<E>(result), call.context());
    });
  }
  return {result, statistics.row_max, statistics.row_argmax, statistics.norm};
}

static Tensor soft_mutual_normalize_backward(
    const Tensor& grad_, const Tensor& map_, const Tensor& row_max, const Tensor& row_argmax, const Tensor& norm,
    double eps) {
  check_map(map_);
  Call call(map_);
  const Tensor map = torch::stable::contiguous(map_), grad = torch::stable::contiguous(grad_);
  const StatisticsTensors statistics(row_max, row_argmax, norm);
  check_normalize_backward(grad, map, statistics);
  const Tensor result = new_like(map);
  if (map.size(0) > 0) {
    dispatch_floating(map.scalar_type(), "soft_mutual_normalize_backward", [&](auto zero) {
      using E = decltype(zero);
      run_soft_mutual_normalize_backward(
          maps_of<E>(map, &grad), statistics.of<compute_t<E>>(eps), mutable_data<E>(result), call.context());
    });
  }
  return result;
}

}  // namespace pose_kernels

STABLE_TORCH_LIBRARY_IMPL(pose_kernels, CUDA, m) {
  m.impl("soft_mutual_normalize", TORCH_BOX(&pose_kernels::soft_mutual_normalize));
  m.impl("soft_mutual_normalize_backward", TORCH_BOX(&pose_kernels::soft_mutual_normalize_backward));
}
