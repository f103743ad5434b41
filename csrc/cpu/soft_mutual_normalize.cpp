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
template <class In, class Out>
struct NormalizeArguments {
  int64_t batch, sources, targets;
  Statistics<compute_t<In>> statistics;
  const In* map;
  Out* result;
  MapStrides result_strides;
};

template <class In, class G>
struct NormalizeBackwardArguments {
  int64_t batch, sources, targets;
  Statistics<compute_t<In>> statistics;
  const In* map;
  const G* grad;
  MapStrides grad_strides;
  In* map_grad;
};

}  // namespace pose_kernels

#define SIMD_INL "cpu/soft_mutual_normalize.inl"
#include "cpu/foreach_target.h"

namespace pose_kernels {

static void normalize(const Tensor& map, double eps, const StatisticsTensors& statistics, const MapResult& result) {
  const int64_t B = map.size(0), S = map.size(1), T = map.size(2) * map.size(3);
  fill_map(result, map.scalar_type(), [&](const MapResult& to) {
    dispatch_map(map.scalar_type(), to.map.scalar_type(), "soft_mutual_normalize", [&](auto zero, auto narrow) {
      using In = decltype(zero);
      using Out = decltype(narrow);
      if (to.fresh) {
        prefault(to.map.mutable_data_ptr(), B * S * T * static_cast<int64_t>(sizeof(Out)));
      }
      SIMD_DISPATCH(normalize<In, Out>)
      ({B, S, T, statistics.of<compute_t<In>>(eps), const_data<In>(map), mutable_data<Out>(to.map),
        strides_of(to, S, T)});
    });
  });
}

static MapAndStatistics soft_mutual_normalize(const Tensor& map_, double eps, ScalarType out_dtype) {
  check_map(map_);
  check_map_type(out_dtype, "out_dtype", map_.scalar_type());
  const Tensor map = torch::stable::contiguous(map_), result = empty_map(map, map.size(1), false, out_dtype);
  const StatisticsTensors statistics(map, map.size(0), map.size(1), map.size(2) * map.size(3));
  normalize(map, eps, statistics, {result, false, true});
  return {result, statistics.row_max, statistics.row_argmax, statistics.norm};
}

static void soft_mutual_normalize_out(const Tensor& map_, double eps, Tensor out) {
  check_map(map_);
  check_out(out, {map_.size(0), map_.size(1), map_.size(2), map_.size(3)}, map_.scalar_type());
  const Tensor map = torch::stable::contiguous(map_);
  const StatisticsTensors statistics(map, map.size(0), map.size(1), map.size(2) * map.size(3));
  normalize(map, eps, statistics, given_map(out));
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
  const Tensor grad = with_map_strides(readable_gradient(grad_, map.scalar_type()), strides);
  if (B > 0) {
    dispatch_map(map.scalar_type(), grad.scalar_type(), "soft_mutual_normalize_backward", [&](auto zero, auto narrow) {
      using In = decltype(zero);
      using G = decltype(narrow);
      prefault(map_grad.mutable_data_ptr(), B * S * T * static_cast<int64_t>(sizeof(In)));
      SIMD_DISPATCH(normalize_backward<In, G>)
      ({B, S, T, statistics.of<compute_t<In>>(eps), const_data<In>(map), const_data<G>(grad), strides,
        mutable_data<In>(map_grad)});
    });
  }
  return map_grad;
}

}  // namespace pose_kernels

STABLE_TORCH_LIBRARY_IMPL(pose_kernels, CPU, m) {
  m.impl("soft_mutual_normalize", TORCH_BOX(&pose_kernels::soft_mutual_normalize));
  m.impl("soft_mutual_normalize_out", TORCH_BOX(&pose_kernels::soft_mutual_normalize_out));
  m.impl("soft_mutual_normalize_backward", TORCH_BOX(&pose_kernels::soft_mutual_normalize_backward));
}
