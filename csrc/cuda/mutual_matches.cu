// mutual_matches for CUDA tensors; see mutual_matches.cuh.
#include "cuda/common.cuh"
#include "cuda/mutual_matches.cuh"
#include "matches.h"

namespace pose_kernels {

static MatchesTensors mutual_matches(const Tensor& source_, const Tensor& target_, int64_t k, bool tf32) {
  check_features(source_, target_);
  check_matches(source_, k);
  check_positions(source_, target_);
  Call call(source_);
  const Tensor source = torch::stable::contiguous(source_), target = torch::stable::contiguous(target_);
  const ScalarType type = source.scalar_type(), wide = compute_type(type);
  // Found in the compute type: the next best of a target comes after its exact value.
  const MatchesTensors found = new_matches(source, target, k, wide);
  const auto& [sources, correlations, targets, target_correlations] = found;
  if (source.size(0) > 0) {
    dispatch_floating(type, "mutual_matches", [&](auto zero) {
      using In = decltype(zero);
      using T = compute_t<In>;
      const Matches<T> out{
          k, mutable_data<int64_t>(std::get<0>(found)), mutable_data<T>(std::get<1>(found)),
          mutable_data<int64_t>(std::get<2>(found)), mutable_data<T>(std::get<3>(found))};
      run_mutual_matches(features_of<In>(source, target), tf32, out, call.context());
    });
  }
  if (type == wide) {
    return found;
  }
  return {sources, torch::stable::to(correlations, type), targets, torch::stable::to(target_correlations, type)};
}

}  // namespace pose_kernels

STABLE_TORCH_LIBRARY_IMPL(pose_kernels, CUDA, m) {
  m.impl("mutual_matches", TORCH_BOX(&pose_kernels::mutual_matches));
}
