// soft_mutual_normalize on CUDA: Eqs. 9 and 2 of a map that is there; names as in csrc/cuda/guided_correlation.cuh.
#pragma once

#include "cuda/map.cuh"
#include "cuda/statistics.cuh"

namespace pose_kernels {

constexpr int kSumColumns = 256;  // a block's: 64 threads of 4 columns, 4 rows at a time
constexpr int kRowsPerBlock = 4;  // what is read per column serves them all

// Maps [B, S, T]; G is the type of the normalized one, its gradient here.
template <class E, class G>
struct MapPair {
  int64_t batch, sources, targets;
  const E* map;
  const G* grad;  // backward only
};

template <class T, class E, class G>
struct MapColumnSumsArguments {
  MapPair<E, G> maps;  // without a gradient: sums of squares
  int64_t padded_targets, tiles, runs;
  const T* row_max;
  bool whole;
  T* sums;  // [B, runs, padded targets]
};

template <class T, class E, class G, class Out>
struct MapRowsArguments {
  MapPair<E, G> maps;
  int64_t padded_targets;
  Statistics<T> statistics;
  const T* inverse_n;
  const T* slope;  // backward only
  bool whole;
  Out* out;
};

// A warp per row.
template <class T, class E, class G>
__global__ void __launch_bounds__(kThreads) map_row_maxima_kernel(MapPair<E, G> maps, Statistics<T> statistics) {
  const int lane = threadIdx.x % kWarp;
  const int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  if (row >= maps.batch * maps.sources) {
    return;
  }
  const E* from = maps.map + row * maps.targets;
  const bool whole = maps.targets % 4 == 0 && reinterpret_cast<uintptr_t>(maps.map) % alignof(Quad<E>) == 0;
  T best = -INFINITY;
  int32_t where = INT32_MAX;
#pragma unroll 4
  for (int64_t t = 4 * lane; t < maps.targets; t += 4 * kWarp) {
    T value[4];
    const int valid = static_cast<int>(maps.targets - t < 4 ? maps.targets - t : 4);
    load_four(from + t, valid, whole, value);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i < valid && better(value[i], static_cast<int32_t>(t + i), best, where)) {
        best = value[i];
        where = static_cast<int32_t>(t + i);
      }
    }
  }
  reduce_best<kWarp>(best, where);
  if (lane == 0) {
    statistics.row_max[row] = best < statistics.eps ? statistics.eps : best;
    statistics.row_argmax[row] = where;
  }
}

template <class T>
struct MapColumnSumsShared {
  T sums[4][kSumColumns];
};

template <class T, class E, class G>
__global__ void __launch_bounds__(kThreads) map_column_sums_kernel(MapColumnSumsArguments<T, E, G> x) {
  MapColumnSumsShared<T>& shared = shared_memory<MapColumnSumsShared<T>>();
  const int group = threadIdx.x / 64, column = threadIdx.x % 64 * 4;
  const int64_t run = blockIdx.x % x.runs, tile = blockIdx.x / x.runs % x.tiles, b = blockIdx.x / x.runs / x.tiles;
  const int64_t first = x.maps.sources * run / x.runs, last = x.maps.sources * (run + 1) / x.runs;
  const int64_t t = tile * kSumColumns + column;
  const int valid = t < x.maps.targets ? static_cast<int>(x.maps.targets - t < 4 ? x.maps.targets - t : 4) : 0;
  T sums[4] = {};
#pragma unroll 4
  for (int64_t s = first + group; s < last; s += 4) {
    const int64_t at = map_offset(b, s, t, x.maps.sources, x.maps.targets);
    const T scale = 1 / x.row_max[b * x.maps.sources + s];
    T value[4], grad[4];
    load_four(x.maps.map + at, valid, x.whole, value);
    if (x.maps.grad != nullptr) {
      load_four(x.maps.grad + at, valid, x.whole, grad);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const T u = value[i] * value[i] * (value[i] * scale);
      sums[i] += u * (x.maps.grad != nullptr ? grad[i] : u);
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    shared.sums[group][column + i] = sums[i];
  }
  sync_block();
  const int64_t own = tile * kSumColumns + threadIdx.x;
  if (own < x.padded_targets) {
    x.sums[(b * x.runs + run) * x.padded_targets + own] =
        (shared.sums[0][threadIdx.x] + shared.sums[1][threadIdx.x]) +
        (shared.sums[2][threadIdx.x] + shared.sums[3][threadIdx.x]);
  }
}

template <class T, class E, class G>
__global__ void __launch_bounds__(kThreads) map_normalize_kernel(MapRowsArguments<T, E, G, G> x) {
  const int64_t groups = ceil_div(x.maps.sources, kRowsPerBlock);
  const int64_t b = blockIdx.x / groups, s = blockIdx.x % groups * kRowsPerBlock;
  T scale[kRowsPerBlock];
#pragma unroll
  for (int r = 0; r < kRowsPerBlock; ++r) {
    scale[r] = s + r < x.maps.sources ? 1 / x.statistics.row_max[b * x.maps.sources + s + r] : 0;
  }
  for (int64_t t = 4 * threadIdx.x; t < x.maps.targets; t += 4 * kThreads) {
    const int valid = static_cast<int>(x.maps.targets - t < 4 ? x.maps.targets - t : 4);
    const Quad<T> inverse_n = load_cached(reinterpret_cast<const Quad<T>*>(x.inverse_n + b * x.padded_targets + t));
#pragma unroll
    for (int r = 0; r < kRowsPerBlock; ++r) {
      if (s + r < x.maps.sources) {
        const int64_t at = map_offset(b, s + r, t, x.maps.sources, x.maps.targets);
        T value[4];
        load_four(x.maps.map + at, valid, x.whole, value);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          value[i] = value[i] * value[i] * (value[i] * scale[r]) * inverse_n.v[i];
        }
        store_four(x.out + at, valid, x.whole, value);
      }
    }
  }
}

template <class T>
DEVICE T map_gradient(T value, T grad, T scale, T inverse_n, T slope, T& beta) {
  const T square = value * value * scale, u = square * value, du = grad * inverse_n - u * slope;
  beta += du * u;
  return 3 * square * du;
}

template <class T>
struct MapBackwardShared {
  T beta[kRowsPerBlock][kWarps];
};

template <class T, class E, class G>
__global__ void __launch_bounds__(kThreads) map_backward_kernel(MapRowsArguments<T, E, G, E> x) {
  MapBackwardShared<T>& shared = shared_memory<MapBackwardShared<T>>();
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t groups = ceil_div(x.maps.sources, kRowsPerBlock);
  const int64_t b = blockIdx.x / groups, s = blockIdx.x % groups * kRowsPerBlock;
  const T* inverse_n = x.inverse_n + b * x.padded_targets;
  const T* slope = x.slope + b * x.padded_targets;
  T scale[kRowsPerBlock], beta[kRowsPerBlock] = {};
#pragma unroll
  for (int r = 0; r < kRowsPerBlock; ++r) {
    scale[r] = s + r < x.maps.sources ? 1 / x.statistics.row_max[b * x.maps.sources + s + r] : 0;
  }
  for (int64_t t = 4 * threadIdx.x; t < x.maps.targets; t += 4 * kThreads) {
    const int valid = static_cast<int>(x.maps.targets - t < 4 ? x.maps.targets - t : 4);
    const Quad<T> inverse = load_cached(reinterpret_cast<const Quad<T>*>(inverse_n + t));
    const Quad<T> slopes = load_cached(reinterpret_cast<const Quad<T>*>(slope + t));
#pragma unroll
    for (int r = 0; r < kRowsPerBlock; ++r) {
      if (s + r < x.maps.sources) {
        const int64_t at = map_offset(b, s + r, t, x.maps.sources, x.maps.targets);
        T value[4], grad[4];
        load_four(x.maps.map + at, valid, x.whole, value);
        load_four(x.maps.grad + at, valid, x.whole, grad);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          grad[i] = map_gradient(value[i], grad[i], scale[r], inverse.v[i], slopes.v[i], beta[r]);
        }
        store_four(x.out + at, valid, x.whole, grad);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kRowsPerBlock; ++r) {
#pragma unroll
    for (int mask = 1; mask < kWarp; mask *= 2) {
      beta[r] += shuffle_xor(beta[r], mask);
    }
    if (lane == 0) {
      shared.beta[r][warp] = beta[r];
    }
  }
  sync_block();  // also orders the stores above before the one below
  if (threadIdx.x < kRowsPerBlock && s + threadIdx.x < x.maps.sources) {
    const int64_t row = b * x.maps.sources + s + threadIdx.x, t = x.statistics.row_argmax[row];
    if (x.statistics.row_max[row] != x.statistics.eps) {
      T sum = 0, unused = 0;
      for (int i = 0; i < kWarps; ++i) {
        sum += shared.beta[threadIdx.x][i];
      }
      const int64_t at = row * x.maps.targets + t;
      const T inverse_b = 1 / x.statistics.row_max[row];
      const T own = map_gradient(
          static_cast<T>(x.maps.map[at]), static_cast<T>(x.maps.grad[at]), inverse_b, inverse_n[t], slope[t], unused);
      x.out[at] = static_cast<E>(own - sum * inverse_b);
    }
  }
}

// ---- calls

// What rows are made with; norm is written, or read where there is a gradient.
template <class E, class G, class Out, class T>
MapRowsArguments<T, E, G, Out> map_columns(
    const MapPair<E, G>& maps, const Statistics<T>& statistics, Out* out, const Context& context) {
  const int64_t padded = round_up(maps.targets, kTile), tiles = ceil_div(maps.targets, kSumColumns);
  const int64_t most_runs = std::min<int64_t>(64, ceil_div(maps.sources, 4));
  const auto aligned = [](const auto* at) {
    return reinterpret_cast<uintptr_t>(at) % alignof(Quad<std::decay_t<decltype(*at)>>) == 0;
  };
  MapColumnSumsArguments<T, E, G> sums{};
  sums.maps = maps;
  sums.padded_targets = padded;
  sums.tiles = tiles;
  sums.runs = std::clamp<int64_t>(enough(2048) / std::max<int64_t>(1, maps.batch * tiles), 1, most_runs);
  sums.row_max = statistics.row_max;
  sums.whole = maps.targets % 4 == 0 && aligned(maps.map) && aligned(maps.grad) && aligned(out);
  sums.sums = context.allocate_array<T>(maps.batch * sums.runs * padded);
  launch(
      map_column_sums_kernel<T, E, G>, maps.batch * tiles * sums.runs, kThreads, sizeof(MapColumnSumsShared<T>),
      context.stream, sums);
  FinishColumnsArguments<T> columns{};
  columns.batch = maps.batch;
  columns.targets = columns.norm_stride = maps.targets;
  columns.runs = sums.runs;
  columns.eps = statistics.eps;
  columns.sums = sums.sums;
  columns.norm = statistics.norm;
  columns.inverse_n = context.allocate_array<T>(maps.batch * padded);
  columns.slope = maps.grad == nullptr ? nullptr : context.allocate_array<T>(maps.batch * padded);
  finish_columns(columns, context.stream);
  return {maps, padded, statistics, columns.inverse_n, columns.slope, sums.whole, out};
}

template <class E, class G, class T = compute_t<E>>
void run_soft_mutual_normalize(
    const MapPair<E, G>& maps, const Statistics<T>& statistics, G* out, const Context& context) {
  launch(
      map_row_maxima_kernel<T, E, G>, ceil_div(maps.batch * maps.sources, kWarps), kThreads, 0, context.stream, maps,
      statistics);
  const MapRowsArguments<T, E, G, G> x = map_columns(maps, statistics, out, context);
  launch(
      map_normalize_kernel<T, E, G>, maps.batch * ceil_div(maps.sources, kRowsPerBlock), kThreads, 0, context.stream, x);
}

template <class E, class G, class T = compute_t<E>>
void run_soft_mutual_normalize_backward(
    const MapPair<E, G>& maps, const Statistics<T>& statistics, E* out, const Context& context) {
  const MapRowsArguments<T, E, G, E> x = map_columns(maps, statistics, out, context);
  launch(
      map_backward_kernel<T, E, G>, maps.batch * ceil_div(maps.sources, kRowsPerBlock), kThreads,
      sizeof(MapBackwardShared<T>), context.stream, x);
}

}  // namespace pose_kernels
