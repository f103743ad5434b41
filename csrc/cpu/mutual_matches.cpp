// mutual_matches on the CPU: the best sources of every target and the best target of every source from one sweep of
// C(s,t) = <z_s(s), z_t(t)>, of which no more exists than a register tile.
//
// A task takes all sources against some segments of targets. Of a tile only the largest of each column is compared with
// the least that its target has kept; what is better, which is rare, goes into the target's list. Of a row the largest
// in the segment is kept, and its place is looked for in the end. The order (larger values first, NaN before all, the
// lower index where they are equal) is total, so that the result does not depend on who found what when.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "cpu/bf16_vectors.h"
#include "cpu/memory.h"
#include "cpu/simd.h"
#include "matches.h"

namespace pose_kernels {

template <class In>
struct MatchArguments {
  Features<In> z;
  int64_t k;
  int64_t* sources;  // [B, k, T]
  In* correlations;
  int64_t* targets;  // [B, S]
  In* target_correlations;
};

}  // namespace pose_kernels

#define SIMD_INL "cpu/mutual_matches.inl"
#include "cpu/foreach_target.h"

namespace pose_kernels {

static MatchesTensors mutual_matches(const Tensor& source_, const Tensor& target_, int64_t k, bool) {
  check_features(source_, target_);
  check_matches(source_, k);
  const Tensor source = torch::stable::contiguous(source_), target = torch::stable::contiguous(target_);
  const MatchesTensors result = new_matches(source, target, k, source.scalar_type());
  if (source.size(0) > 0) {
    dispatch_floating(source.scalar_type(), "mutual_matches", [&](auto zero) {
      using In = decltype(zero);
      SIMD_DISPATCH(match<In>)
      ({features_of<In>(source, target), k, mutable_data<int64_t>(std::get<0>(result)),
        mutable_data<In>(std::get<1>(result)), mutable_data<int64_t>(std::get<2>(result)),
        mutable_data<In>(std::get<3>(result))});
    });
  }
  return result;
}

}  // namespace pose_kernels

STABLE_TORCH_LIBRARY_IMPL(pose_kernels, CPU, m) {
  m.impl("mutual_matches", TORCH_BOX(&pose_kernels::mutual_matches));
}
