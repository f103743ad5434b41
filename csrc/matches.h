// What mutual_matches returns, on every device.
#pragma once

#include "checks.h"

namespace pose_kernels {

// sources and correlations [B, k, ht, wt], targets and target_correlations [B, hs, ws]
using MatchesTensors = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// Correlations of this type.
inline MatchesTensors new_matches(const Tensor& source, const Tensor& target, int64_t k, ScalarType type) {
  const int64_t B = source.size(0), hs = source.size(2), ws = source.size(3), ht = target.size(2), wt = target.size(3);
  return {
      empty(source, {B, k, ht, wt}, ScalarType::Long), empty(source, {B, k, ht, wt}, type),
      empty(source, {B, hs, ws}, ScalarType::Long), empty(source, {B, hs, ws}, type)};
}

inline void check_matches(const Tensor& source, int64_t k) {
  STD_TORCH_CHECK(k >= 1 && k <= positions(source), "k: expected 1 to the number of source positions");
}

}  // namespace pose_kernels
