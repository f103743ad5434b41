// soft_mutual_normalize for CUDA tensors; see soft_mutual_normalize.cuh.
#include "cuda/common.cuh"
#include "cuda/soft_mutual_normalize.cuh"

namespace pose_kernels {

// `grad` null: forward.
template <class E, class G>
static MapPair<E, G> maps_of(const Tensor& map, const Tensor* grad) {
  return {map.size(0), map.size(1), map.size(2) * map.size(3), const_data<E>(map),
          grad == nullptr ? nullptr : const_data<G>(*grad)};
}

static void normalize(
    const Tensor& map, double eps, const StatisticsTensors& statistics, const Tensor& result, Call& call) {
  fill_map({result, false, true}, map.scalar_type(), [&](const MapResult& to) {
    dispatch_map(map.scalar_type(), to.map.scalar_type(), "soft_mutual_normalize", [&](auto zero, auto narrow) {
      using E = decltype(zero);
      using G = decltype(narrow);
      run_soft_mutual_normalize(
          maps_of<E, G>(map, nullptr), statistics.of<compute_t<E>>(eps), mutable_data<G>(to.map), call.context());
    });
  });
}

static MapAndStatistics soft_mutual_normalize(const Tensor& map_, double eps, ScalarType out_dtype) {
  check_map(map_);
  check_map_type(out_dtype, "out_dtype", map_.scalar_type());
  Call call(map_);
  const Tensor map = torch::stable::contiguous(map_), result = empty_map(map, map.size(1), false, out_dtype);
  const StatisticsTensors statistics(map, map.size(0), map.size(1), map.size(2) * map.size(3));
  normalize(map, eps, statistics, result, call);
  return {result, statistics.row_max, statistics.row_argmax, statistics.norm};
}

// Rows are written as a whole: a channels-last result is a copy of such a one.
static void soft_mutual_normalize_out(const Tensor& map_, double eps, Tensor out) {
  check_map(map_);
  check_out(out, {map_.size(0), map_.size(1), map_.size(2), map_.size(3)}, map_.scalar_type());
  Call call(map_);
  const Tensor map = torch::stable::contiguous(map_);
  const Tensor rows = given_map(out).channels_last ? new_like(out) : out;
  const StatisticsTensors statistics(map, map.size(0), map.size(1), map.size(2) * map.size(3));
  normalize(map, eps, statistics, rows, call);
  if (given_map(out).channels_last) {
    torch::stable::copy_(out, rows);
  }
}

static Tensor soft_mutual_normalize_backward(
    const Tensor& grad_, const Tensor& map_, const Tensor& row_max, const Tensor& row_argmax, const Tensor& norm,
    double eps) {
  check_map(map_);
  Call call(map_);
  const Tensor map = torch::stable::contiguous(map_);
  const Tensor grad = torch::stable::contiguous(readable_gradient(grad_, map.scalar_type()));
  const StatisticsTensors statistics(row_max, row_argmax, norm);
  check_normalize_backward(grad, map, statistics);
  const Tensor result = new_like(map);
  if (map.size(0) > 0) {
    dispatch_map(map.scalar_type(), grad.scalar_type(), "soft_mutual_normalize_backward", [&](auto zero, auto narrow) {
      using E = decltype(zero);
      using G = decltype(narrow);
      run_soft_mutual_normalize_backward(
          maps_of<E, G>(map, &grad), statistics.of<compute_t<E>>(eps), mutable_data<E>(result), call.context());
    });
  }
  return result;
}

}  // namespace pose_kernels

STABLE_TORCH_LIBRARY_IMPL(pose_kernels, CUDA, m) {
  m.impl("soft_mutual_normalize", TORCH_BOX(&pose_kernels::soft_mutual_normalize));
  m.impl("soft_mutual_normalize_out", TORCH_BOX(&pose_kernels::soft_mutual_normalize_out));
  m.impl("soft_mutual_normalize_backward", TORCH_BOX(&pose_kernels::soft_mutual_normalize_backward));
}
