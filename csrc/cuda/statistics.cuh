// The statistics that normalize a map: from partial results in scratch to row maxima and column norms.
#pragma once

#include "cuda/launch.cuh"

namespace pose_kernels {

template <class T>
struct FinishRowsArguments {
  int64_t batch, sources, parts;
  Statistics<T> statistics;  // row_max and row_argmax are written where there is a `best`
  const T* best;  // [B, parts, padded sources], null: row_max is given
  const int32_t* where;
  T* inverse_b;  // [B, padded sources], 0 in the padding; may be null
};

template <class T>
struct FinishColumnsArguments {
  int64_t batch, targets, runs;
  int64_t norm_stride, begin;  // norm [B, norm_stride], from `begin` on
  T eps;
  const T* sums;  // [B, runs, padded targets]
  T* norm;  // forward: written, backward: read
  T* inverse_n;  // [B, padded targets], 0 in the padding
  T* slope;  // backward only: sum_s G u / n^3, 0 where n is at its floor
};

// Ties go to the first place; NaN is the largest value.
template <class T>
DEVICE bool better(T value, int32_t at, T than, int32_t than_at) {
  const bool lost = value != value, than_lost = than != than;
  return value > than || (lost && !than_lost) || ((value == than || (lost && than_lost)) && at < than_at);
}

// The best of those among `Lanes` neighbouring lanes whose numbers are the same modulo `Step`, for each of them.
template <int Lanes, int Step = 1, class T>
DEVICE void reduce_best(T& best, int32_t& where) {
#pragma unroll
  for (int mask = Step; mask < Lanes; mask *= 2) {
    const T other = shuffle_xor(best, mask);
    const int32_t other_where = shuffle_xor(where, mask);
    if (better(other, other_where, best, where)) {
      best = other;
      where = other_where;
    }
  }
}

// A thread per padded source.
template <class T>
__global__ void __launch_bounds__(kThreads) finish_rows_kernel(FinishRowsArguments<T> x) {
  const int64_t padded = round_up(x.sources, kTile), index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= x.batch * padded) {
    return;
  }
  const int64_t b = index / padded, s = index % padded;
  T inverse = 0;
  if (s < x.sources) {
    const int64_t at = b * x.sources + s;
    if (x.best != nullptr) {
      T best = -INFINITY;
      int32_t where = INT32_MAX;
      for (int64_t part = 0; part < x.parts; ++part) {
        const int64_t from = (b * x.parts + part) * padded + s;
        if (better(x.best[from], x.where[from], best, where)) {
          best = x.best[from];
          where = x.where[from];
        }
      }
      x.statistics.row_max[at] = best < x.statistics.eps ? x.statistics.eps : best;
      x.statistics.row_argmax[at] = where;
    }
    inverse = 1 / x.statistics.row_max[at];
  }
  if (x.inverse_b != nullptr) {
    x.inverse_b[index] = inverse;
  }
}

// A thread per padded target.
template <class T>
__global__ void __launch_bounds__(kThreads) finish_columns_kernel(FinishColumnsArguments<T> x) {
  const int64_t padded = round_up(x.targets, kTile), index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= x.batch * padded) {
    return;
  }
  const int64_t b = index / padded, t = index % padded;
  T inverse = 0, slope = 0;
  if (t < x.targets) {
    T sum = 0;
    for (int64_t run = 0; run < x.runs; ++run) {
      sum += x.sums[(b * x.runs + run) * padded + t];
    }
    T& norm = x.norm[b * x.norm_stride + x.begin + t];
    if (x.slope == nullptr) {
      const T length = sqrt(sum);
      norm = length < x.eps ? x.eps : length;
    }
    inverse = 1 / norm;
    slope = norm == x.eps ? 0 : sum * inverse * inverse * inverse;
  }
  x.inverse_n[index] = inverse;
  if (x.slope != nullptr) {
    x.slope[index] = slope;
  }
}

template <class T>
void finish_rows(const FinishRowsArguments<T>& x, Stream stream) {
  launch(finish_rows_kernel<T>, blocks_for(x.batch * round_up(x.sources, kTile)), kThreads, 0, stream, x);
}

template <class T>
void finish_columns(const FinishColumnsArguments<T>& x, Stream stream) {
  launch(finish_columns_kernel<T>, blocks_for(x.batch * round_up(x.targets, kTile)), kThreads, 0, stream, x);
}

}  // namespace pose_kernels
