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
#include <type_traits>

#include "checks.h"
#include "cpu/memory.h"
#include "cpu/simd.h"

namespace pose_kernels {

// Maps [B, S, T].
template <class In>
struct NormalizeArguments {
  int64_t batch, sources, targets;
  Statistics<compute_t<In>> statistics;
  const In* map;
  In* result;
};

template <class In>
struct NormalizeBackwardArguments {
  int64_t batch, sources, targets;
  Statistics<compute_t<In>> statistics;
  const In* map;
  const In* grad;
  MapStrides grad_strides;
  In* map_grad;
};

}  // namespace pose_kernels

#define SIMD_INL "cpu/soft_mutual_normalize.inl"
#include "cpu/foreach_target.h"

namespace pose_kernels {

static MapAndStatistics soft_mutual_normalize(const Tensor& map_, double eps) {
  check_map(map_);
  const Tensor map = torch::stable::contiguous(map_), result = new_like(map);
  const int64_t B = map.size(0), S = map.size(1), T = map.size(2) * map.size(3);
  const StatisticsTensors statistics(map, B, S, T);
  if (B > 0) {
    dispatch_floating(map.scalar_type(), "soft_mutual_normalize", [&](auto zero) {
      using In = decltype(zero);
      prefault(result.mutable_data_ptr(), B * S * T * static_cast<int64_t>(sizeof(In)));
      SIMD_DISPATCH(normalize<In>)
      ({B, S, T, statistics.of<compute_t<In>>(eps), const_data<In>(map), mutable_data<In>(result)});
    });
  }
  return {result, statistics.row_max, statistics.row_argmax, statistics.norm};
}

static Tensor soft_mutual_normalize_backward(
    const Tensor& grad_, const Tensor& map_, const Tensor& row_max, const Tensor& row_argmax, const Tensor& norm,
    double eps) {
  check_map(map_);
  const Tensor map = torch::stable::contiguous(map_), map_grad = new_like(map);
  const StatisticsTensors statistics(row_max, row_argmax, norm);
  check_normalize_backward(grad_, map, statistics);
  const int64_t B = map.size(0), S = map.size(1), T = map.size(2) * map.size(3);
  MapStrides strides;
  const Tensor grad = with_map_strides(grad_, strides);
  if (B > 0) {
    dispatch_floating(map.scalar_type(), "soft_mutual_normalize_backward", [&](auto zero) {
      using In = decltype(zero);
      prefault(map_grad.mutable_data_ptr(), B * S * T * static_cast<int64_t>(sizeof(In)));
      SIMD_DISPATCH(normalize_backward<In>)
      ({B, S, T, statistics.of<compute_t<In>>(eps), const_data<In>(map), const_data<In>(grad), strides,
        mutable_data<In>(map_grad)});
    });
  }
  return map_grad;
}

}  // namespace pose_kernels

STABLE_TORCH_LIBRARY_IMPL(pose_kernels, CPU, m) {
  m.impl("soft_mutual_normalize", TORCH_BOX(&pose_kernels::soft_mutual_normalize));
  m.impl("soft_mutual_normalize_backward", TORCH_BOX(&pose_kernels::soft_mutual_normalize_backward));
}
