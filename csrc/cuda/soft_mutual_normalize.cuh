// soft_mutual_normalize on CUDA: Eqs. 9 and 2 of a map that is there; names as in csrc/cuda/guided_correlation.cuh.
//
// Bound by bytes. Predicted for B = 7, 64 x 64 in float32 on an H200, 470 MB a pass over the map at 4.3 TB/s:
// forward reads three times and writes once, 0.44 ms; backward reads two maps twice and writes one, 0.55 ms.
#pragma once

#include "cuda/guided_correlation.cuh"

namespace pose_kernels {

constexpr int kSumColumns = 256;  // a block's: 64 threads of 4 columns, 4 rows at a time
constexpr int kRowsPerBlock = 4;  // what is read per column serves them all

template <class T, class E>
struct MapRowMaximaArguments {
  int64_t rows, targets;  // rows of all samples
  T eps;
  const E* map;
  T* row_max;
  int64_t* row_argmax;
};

template <class T, class E>
struct MapColumnSumsArguments {
  int64_t batch, sources, targets, padded_targets, tiles, runs;
  const E* map;
  const E* grad;  // null: sums of squares
  const T* row_max;
  bool whole;
  T* sums;  // [B, runs, padded targets]
};

template <class T, class E>
struct MapRowsArguments {
  int64_t batch, sources, targets, padded_targets;
  T eps;
  const E* map;
  const E* grad;  // backward only
  const T* row_max;
  const int64_t* row_argmax;
  const T* inverse_n;
  const T* slope;
  bool whole;
  E* out;
};

// A warp per row.
template <class T, class E>
__global__ void __launch_bounds__(kThreads) map_row_maxima_kernel(MapRowMaximaArguments<T, E> x) {
  const int lane = threadIdx.x % kWarp;
  const int64_t row = int64_t{blockIdx.x} * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (row >= x.rows) {
    return;
  }
  const E* from = x.map + row * x.targets;
  const bool whole = x.targets % 4 == 0 && reinterpret_cast<uintptr_t>(x.map) % alignof(Quad<E>) == 0;
  T best = -INFINITY;
  int32_t where = INT32_MAX;
#pragma unroll 4
  for (int64_t t = 4 * lane; t < x.targets; t += 4 * kWarp) {
    T value[4];
    const int valid = static_cast<int>(x.targets - t < 4 ? x.targets - t : 4);
    load_four(from + t, valid, whole, value);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i < valid && better(value[i], static_cast<int32_t>(t + i), best, where)) {
        best = value[i];
        where = static_cast<int32_t>(t + i);
      }
    }
  }
#pragma unroll
  for (int mask = 1; mask < kWarp; mask *= 2) {
    const T other = shuffle_xor(best, mask);
    const int32_t other_where = shuffle_xor(where, mask);
    if (better(other, other_where, best, where)) {
      best = other;
      where = other_where;
    }
  }
  if (lane == 0) {
    x.row_max[row] = best < x.eps ? x.eps : best;
    x.row_argmax[row] = where;
  }
}

template <class T>
struct MapColumnSumsShared {
  T sums[4][kSumColumns];
};

template <class T, class E>
__global__ void __launch_bounds__(kThreads) map_column_sums_kernel(MapColumnSumsArguments<T, E> x) {
  MapColumnSumsShared<T>& shared = shared_memory<MapColumnSumsShared<T>>();
  const int group = threadIdx.x / 64, column = threadIdx.x % 64 * 4;
  const int64_t run = blockIdx.x % x.runs, tile = blockIdx.x / x.runs % x.tiles, b = blockIdx.x / x.runs / x.tiles;
  const int64_t first = x.sources * run / x.runs, last = x.sources * (run + 1) / x.runs;
  const int64_t t = tile * kSumColumns + column;
  const int valid = t < x.targets ? static_cast<int>(x.targets - t < 4 ? x.targets - t : 4) : 0;
  T sums[4] = {};
#pragma unroll 4
  for (int64_t s = first + group; s < last; s += 4) {
    const int64_t at = map_offset(b, s, t, x.sources, x.targets);
    const T scale = 1 / x.row_max[b * x.sources + s];
    T value[4], grad[4];
    load_four(x.map + at, valid, x.whole, value);
    if (x.grad != nullptr) {
      load_four(x.grad + at, valid, x.whole, grad);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const T u = value[i] * value[i] * (value[i] * scale);
      sums[i] += u * (x.grad != nullptr ? grad[i] : u);
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

template <class T, class E>
__global__ void __launch_bounds__(kThreads) map_normalize_kernel(MapRowsArguments<T, E> x) {
  const int64_t groups = round_up(x.sources, kRowsPerBlock) / kRowsPerBlock;
  const int64_t b = blockIdx.x / groups, s = blockIdx.x % groups * kRowsPerBlock;
  T scale[kRowsPerBlock];
#pragma unroll
  for (int r = 0; r < kRowsPerBlock; ++r) {
    scale[r] = s + r < x.sources ? 1 / x.row_max[b * x.sources + s + r] : 0;
  }
  for (int64_t t = 4 * threadIdx.x; t < x.targets; t += 4 * kThreads) {
    const int valid = static_cast<int>(x.targets - t < 4 ? x.targets - t : 4);
    const Quad<T> inverse_n = load_cached(reinterpret_cast<const Quad<T>*>(x.inverse_n + b * x.padded_targets + t));
#pragma unroll
    for (int r = 0; r < kRowsPerBlock; ++r) {
      if (s + r < x.sources) {
        const int64_t at = map_offset(b, s + r, t, x.sources, x.targets);
        T value[4];
        load_four(x.map + at, valid, x.whole, value);
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
  T beta[kRowsPerBlock][kThreads / kWarp];
};

template <class T, class E>
__global__ void __launch_bounds__(kThreads) map_backward_kernel(MapRowsArguments<T, E> x) {
  MapBackwardShared<T>& shared = shared_memory<MapBackwardShared<T>>();
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t groups = round_up(x.sources, kRowsPerBlock) / kRowsPerBlock;
  const int64_t b = blockIdx.x / groups, s = blockIdx.x % groups * kRowsPerBlock;
  const T* inverse_n = x.inverse_n + b * x.padded_targets;
  const T* slope = x.slope + b * x.padded_targets;
  T scale[kRowsPerBlock], beta[kRowsPerBlock] = {};
#pragma unroll
  for (int r = 0; r < kRowsPerBlock; ++r) {
    scale[r] = s + r < x.sources ? 1 / x.row_max[b * x.sources + s + r] : 0;
  }
  for (int64_t t = 4 * threadIdx.x; t < x.targets; t += 4 * kThreads) {
    const int valid = static_cast<int>(x.targets - t < 4 ? x.targets - t : 4);
    const Quad<T> inverse = load_cached(reinterpret_cast<const Quad<T>*>(inverse_n + t));
    const Quad<T> slopes = load_cached(reinterpret_cast<const Quad<T>*>(slope + t));
#pragma unroll
    for (int r = 0; r < kRowsPerBlock; ++r) {
      if (s + r < x.sources) {
        const int64_t at = map_offset(b, s + r, t, x.sources, x.targets);
        T value[4], grad[4];
        load_four(x.map + at, valid, x.whole, value);
        load_four(x.grad + at, valid, x.whole, grad);
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
  if (threadIdx.x < kRowsPerBlock && s + threadIdx.x < x.sources) {
    const int64_t row = b * x.sources + s + threadIdx.x, t = x.row_argmax[row];
    if (x.row_max[row] != x.eps) {
      T sum = 0, unused = 0;
      for (int i = 0; i < kThreads / kWarp; ++i) {
        sum += shared.beta[threadIdx.x][i];
      }
      const int64_t at = row * x.targets + t;
      const T inverse_b = 1 / x.row_max[row];
      const T own = map_gradient(
          static_cast<T>(x.map[at]), static_cast<T>(x.grad[at]), inverse_b, inverse_n[t], slope[t], unused);
      x.out[at] = static_cast<E>(own - sum * inverse_b);
    }
  }
}

// ---- calls

// norm is written, or read where there is a gradient.
template <class E, class T = Compute<E>>
MapRowsArguments<T, E> map_columns(
    const E* map, const E* grad, int64_t batch, int64_t sources, int64_t targets, const Statistics<T>& statistics,
    const Allocate& allocate, Stream stream) {
  const int64_t padded = round_up(targets, kTile), tiles = round_up(targets, kSumColumns) / kSumColumns;
  const int64_t most_runs = std::min<int64_t>(64, (sources + 3) / 4);
  const int64_t runs = std::clamp<int64_t>(enough(2048) / std::max<int64_t>(1, batch * tiles), 1, most_runs);
  const auto aligned = [](const void* at) { return reinterpret_cast<uintptr_t>(at) % alignof(Quad<E>) == 0; };
  const bool whole = targets % 4 == 0 && aligned(map) && aligned(grad);
  T* sums = allocate_array<T>(allocate, batch * runs * padded);
  T* inverse_n = allocate_array<T>(allocate, batch * padded);
  T* slope = grad == nullptr ? nullptr : allocate_array<T>(allocate, batch * padded);
  launch(
      map_column_sums_kernel<T, E>, batch * tiles * runs, kThreads, sizeof(MapColumnSumsShared<T>), stream,
      MapColumnSumsArguments<T, E>{
          batch, sources, targets, padded, tiles, runs, map, grad, statistics.row_max, whole, sums});
  finish_columns<T>(
      {batch, targets, runs, targets, 0, statistics.eps, sums, statistics.norm, inverse_n, slope}, stream);
  return {batch, sources, targets, padded, statistics.eps, map, grad, statistics.row_max, statistics.row_argmax,
          inverse_n, slope, whole, nullptr};
}

template <class E, class T = Compute<E>>
void run_soft_mutual_normalize(
    const E* map, int64_t batch, int64_t sources, int64_t targets, const Statistics<T>& statistics, E* out,
    const Allocate& allocate, Stream stream) {
  constexpr int kWarps = kThreads / kWarp;
  launch(
      map_row_maxima_kernel<T, E>, round_up(batch * sources, kWarps) / kWarps, kThreads, 0, stream,
      MapRowMaximaArguments<T, E>{
          batch * sources, targets, statistics.eps, map, statistics.row_max, statistics.row_argmax});
  MapRowsArguments<T, E> x =
      map_columns(map, static_cast<const E*>(nullptr), batch, sources, targets, statistics, allocate, stream);
  x.out = out;
  launch(
      map_normalize_kernel<T, E>, batch * (round_up(sources, kRowsPerBlock) / kRowsPerBlock), kThreads, 0, stream, x);
}

template <class E, class T = Compute<E>>
void run_soft_mutual_normalize_backward(
    const E* grad, const E* map, int64_t batch, int64_t sources, int64_t targets, const Statistics<T>& statistics,
    E* out, const Allocate& allocate, Stream stream) {
  MapRowsArguments<T, E> x = map_columns(map, grad, batch, sources, targets, statistics, allocate, stream);
  x.out = out;
  launch(
      map_backward_kernel<T, E>, batch * (round_up(sources, kRowsPerBlock) / kRowsPerBlock), kThreads,
      sizeof(MapBackwardShared<T>), stream, x);
}

}  // namespace pose_kernels
