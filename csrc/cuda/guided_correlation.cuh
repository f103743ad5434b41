// guided_correlation on CUDA: Eqs. 1, 9 and 2 in three sweeps of C forward and two backward, no 4D tensor but the
// result. The mathematics is at the top of csrc/cpu/guided_correlation.cpp; what is computed where:
//
//   row_maxima     tiles of 128 x 128, a block walks along its rows: maxima and where they are, per run of tiles
//   finish_rows    b_s, t*(s), 1 / b_s
//   column_sums    a block walks down its columns: sum_s u^2 (forward) or sum_s G u (backward), per run of tiles
//   finish_columns n_t; backward: 1 / n_t and the factor of u in du
//   write_map      the same tiles once more, scaled and stored
//   backward       tiles of 128 x 64: dC through shared memory into both small products
//   finish_grads   partial sums added in order, and the beta terms
//
// No floating-point atomics anywhere: partial results have places of their own and are added in order.
//
// Predicted for B = 7, 64 x 64, m = 35 on an H200 (4.3 TB/s, mma.sync TF32 at 300 TFLOP/s, L1 at 128 bytes per clock
// and multiprocessor): a product is 9.4 GFLOP, 0.03 ms in one pass, 0.095 ms in three; the map is 470 MB, 0.11 ms,
// half of that in 16 bits. Forward: 0.04 + 0.04 + 0.13 one pass (0.09 for 16 bits), 0.10 + 0.10 + 0.15 three passes.
// Backward: column_sums reads G beside a product, 0.12 (0.15); backward reads G beside three products, 0.2 (0.4).
#pragma once

#include "cuda/product.cuh"

namespace pose_kernels {

// ---- arguments

template <class T>
struct RowMaximaArguments {
  Walk walk;
  int targets;
  T* best;  // [B, 2 runs, padded sources]
  int32_t* where;
};

template <class T>
struct FinishRowsArguments {
  int64_t batch, sources, parts;
  T eps;
  const T* best;  // null: row_max is given
  const int32_t* where;
  T* row_max;  // [B, S]
  int64_t* row_argmax;
  T* inverse_b;  // [B, padded sources], 0 in the padding; may be null
};

template <class T, class E>
struct ColumnSumsArguments {
  Walk walk;
  const T* inverse_b;
  Map<const E> grad;  // backward only
  T* sums;  // [B, runs, padded targets]
};

template <class T>
struct FinishColumnsArguments {
  int64_t batch, targets, runs;
  int64_t norm_stride, begin;  // norm [B, norm_stride], from `begin` on
  T eps;
  const T* sums;
  T* norm;  // forward: written, backward: read
  T* inverse_n;  // [B, padded targets], 0 in the padding
  T* slope;  // backward only: sum_s G u / n^3, 0 where n is at its floor
};

template <class T, class E>
struct WriteMapArguments {
  Walk walk;
  const T* inverse_b;
  const T* inverse_n;
  Map<E> out;
};

template <class T, class E>
struct BackwardArguments {
  int batch;
  int source_tiles, source_runs, target_tiles, target_runs;  // of 128 sources, of 64 targets
  int padded_sources, padded_targets;
  int features;  // fragments of 8 features
  int chunks;  // of kChunk such fragments
  Map<const E> grad;
  const T* inverse_b;
  const T* inverse_n;
  const T* slope;
  T* source_parts;  // [B, target runs, padded sources, 8 features], null: not wanted
  T* target_parts;  // [B, source runs, padded targets, 8 features], null: not wanted
  T* beta_parts;  // [B, target runs, padded sources]
};

template <class T, class Z>
struct FinishGradsArguments {
  int64_t batch, m, positions, padded, parts;
  int features;
  const T* partial;  // [B, parts, padded, 8 features], null: none
  // The other side's part in the gradient through b_s: beta_s z_t(t*(s)) for a source, for a target the sum of
  // beta_s z_s over its sources.
  const T* beta;  // [B, S], null: none
  const int64_t* row_argmax;
  const Z* others;  // [B, m, others_count]
  int64_t others_count;
  Z* out;  // [B, m, out_stride], positions from `begin` on
  int64_t out_stride, begin;
  bool add;
};

// ---- traits

// Fragments per warp. Doubles take twice the registers.
template <class T>
struct Shapes {
  static constexpr int kBlocksPerMultiprocessor = sizeof(T) == 4 ? 2 : 1;
  static constexpr int kMaximaRows = 2, kMaximaColumns = 8;  // 4 x 2 warps
  static constexpr int kRows = 4, kColumns = 4;  // 2 x 4 warps
  static constexpr int kChunk = sizeof(T) == 4 ? 6 : 4;  // fragments of features whose gradients one block sums
};

constexpr int kHalfTile = 64;
constexpr int kPitch = 72;  // of dC in shared memory: no bank conflicts along rows (8-byte loads) nor columns

// ---- kernels

template <class T>
DEVICE bool better(T value, int32_t at, T than, int32_t than_at) {
  const bool lost = value != value, than_lost = than != than;
  return value > than || (lost && !than_lost) || ((value == than || (lost && than_lost)) && at < than_at);
}

template <class T, int Passes>
__global__ void __launch_bounds__(kThreads, Shapes<T>::kBlocksPerMultiprocessor)
    row_maxima_kernel(RowMaximaArguments<T> x, Packed<T, Passes> source, Packed<T, Passes> target) {
  constexpr int MT = Shapes<T>::kMaximaRows, NT = Shapes<T>::kMaximaColumns;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int row = warp / 2 * 32, column = warp % 2 * 64;
  const Place place = place_of(x.walk, blockIdx.x);
  T best[4];
  int32_t where[4];
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    best[r] = -INFINITY;
    where[r] = INT32_MAX;
  }
  for (int tile = place.first; tile < place.last; ++tile) {
    T acc[MT][NT][4];
    multiply<T, Passes, MT, NT>(
        source.at(place.b, place.tile * 8 + row / 16), target.at(place.b, tile * 8 + column / 16), source.steps, acc);
    const int first = tile * kTile + column + lane % 4 * 4;
    const bool ragged = (tile + 1) * kTile > x.targets;
#pragma unroll
    for (int q = 0; q < NT / 2; ++q) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const int t = first + 16 * q + c;
        if (!ragged || t < x.targets) {  // padding must not win
#pragma unroll
          for (int r = 0; r < 4; ++r) {
            const T value = patch(acc, 0, q, r, c);
            if (value > best[r] || (value != value && best[r] == best[r]) || where[r] == INT32_MAX) {
              best[r] = value;
              where[r] = t;
            }
          }
        }
      }
    }
  }
#pragma unroll
  for (int r = 0; r < 4; ++r) {
#pragma unroll
    for (int mask = 1; mask < 4; mask *= 2) {
      const T other = shuffle_xor(best[r], mask);
      const int32_t other_where = shuffle_xor(where[r], mask);
      if (better(other, other_where, best[r], where[r])) {
        best[r] = other;
        where[r] = other_where;
      }
    }
    if (lane % 4 == 0) {
      const int64_t part = (int64_t{place.b} * x.walk.runs + place.run) * 2 + warp % 2;
      const int64_t at = (part * x.walk.tiles + place.tile) * kTile + row + lane / 4 * 4 + r;
      x.best[at] = best[r];
      x.where[at] = where[r];
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
      x.row_max[at] = best < x.eps ? x.eps : best;
      x.row_argmax[at] = where;
    }
    inverse = 1 / x.row_max[at];
  }
  if (x.inverse_b != nullptr) {
    x.inverse_b[index] = inverse;
  }
}

template <class T>
struct ColumnSumsShared {
  T sums[2][kTile];
};

// E = void: sums of squares.
template <class T, int Passes, class E>
__global__ void __launch_bounds__(kThreads, Shapes<T>::kBlocksPerMultiprocessor) column_sums_kernel(
    ColumnSumsArguments<T, std::conditional_t<std::is_void_v<E>, T, E>> x, Packed<T, Passes> source,
    Packed<T, Passes> target) {
  constexpr int MT = Shapes<T>::kRows, NT = Shapes<T>::kColumns;
  ColumnSumsShared<T>& shared = shared_memory<ColumnSumsShared<T>>();
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int row = warp / 4 * 64, column = warp % 4 * 32;
  const Place place = place_of(x.walk, blockIdx.x);
  T sums[NT / 2][4] = {};
  for (int tile = place.first; tile < place.last; ++tile) {
    T acc[MT][NT][4];
    multiply<T, Passes, MT, NT>(
        source.at(place.b, tile * 8 + row / 16), target.at(place.b, place.tile * 8 + column / 16), source.steps, acc);
    const int s = tile * kTile + row + lane / 4 * 4, t = place.tile * kTile + column + lane % 4 * 4;
#pragma unroll
    for (int p = 0; p < MT / 2; ++p) {
      const Quad<T> scale = four_of(x.inverse_b, int64_t{place.b} * x.walk.others * kTile + s + 32 * p);
#pragma unroll
      for (int q = 0; q < NT / 2; ++q) {
#pragma unroll
        for (int r = 0; r < 4; ++r) {
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            const T value = patch(acc, p, q, r, c);
            patch(acc, p, q, r, c) = value * value * (value * scale.v[r]);
          }
        }
        T grad[4][4];
        if constexpr (!std::is_void_v<E>) {
          load_patch(x.grad, place.b, s + 32 * p, t + 16 * q, grad);
        }
#pragma unroll
        for (int r = 0; r < 4; ++r) {
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            const T u = patch(acc, p, q, r, c);
            if constexpr (std::is_void_v<E>) {
              sums[q][c] += u * u;
            } else {
              sums[q][c] += u * grad[r][c];
            }
          }
        }
      }
    }
  }
#pragma unroll
  for (int q = 0; q < NT / 2; ++q) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
#pragma unroll
      for (int mask = 4; mask < kWarp; mask *= 2) {
        sums[q][c] += shuffle_xor(sums[q][c], mask);
      }
      if (lane < 4) {
        shared.sums[warp / 4][column + 16 * q + lane * 4 + c] = sums[q][c];
      }
    }
  }
  sync_block();
  if (threadIdx.x < kTile) {
    x.sums[((int64_t{place.b} * x.walk.runs + place.run) * x.walk.tiles + place.tile) * kTile + threadIdx.x] =
        shared.sums[0][threadIdx.x] + shared.sums[1][threadIdx.x];
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

// Guided: Qhat, otherwise C itself.
template <class T, int Passes, class E, bool Guided>
__global__ void __launch_bounds__(kThreads, Shapes<T>::kBlocksPerMultiprocessor)
    write_map_kernel(WriteMapArguments<T, E> x, Packed<T, Passes> source, Packed<T, Passes> target) {
  constexpr int MT = Shapes<T>::kRows, NT = Shapes<T>::kColumns;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int row = warp / 4 * 64, column = warp % 4 * 32;
  const Place place = place_of(x.walk, blockIdx.x);
  for (int tile = place.first; tile < place.last; ++tile) {
    T acc[MT][NT][4];
    multiply<T, Passes, MT, NT>(
        source.at(place.b, tile * 8 + row / 16), target.at(place.b, place.tile * 8 + column / 16), source.steps, acc);
    const int s = tile * kTile + row + lane / 4 * 4, t = place.tile * kTile + column + lane % 4 * 4;
#pragma unroll
    for (int p = 0; p < MT / 2; ++p) {
#pragma unroll
      for (int q = 0; q < NT / 2; ++q) {
        T value[4][4];
        Quad<T> row_scale, column_scale;
        if constexpr (Guided) {
          row_scale = four_of(x.inverse_b, int64_t{place.b} * x.walk.others * kTile + s + 32 * p);
          column_scale = four_of(x.inverse_n, int64_t{place.b} * x.walk.tiles * kTile + t + 16 * q);
        }
#pragma unroll
        for (int r = 0; r < 4; ++r) {
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            value[r][c] = patch(acc, p, q, r, c);
            if constexpr (Guided) {
              value[r][c] = value[r][c] * value[r][c] * (value[r][c] * row_scale.v[r]) * column_scale.v[c];
            }
          }
        }
        store_patch(x.out, place.b, s + 32 * p, t + 16 * q, value);
      }
    }
  }
}

template <class T>
struct BackwardShared {
  T dC[kTile][kPitch];  // as the fragments number rows and columns
  T beta[2][kTile];
  int source_run, target_run, s_first;  // of the block: registers are short
};

// The left operand of a small product, in parts.
template <class T, int Passes>
DEVICE void split_fragment(const T (&a)[4], T (&high)[4], T (&low)[4]) {
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    if constexpr (std::is_same_v<T, double>) {
      high[e] = a[e];
    } else {
      high[e] = round_to_tf32(a[e]);
      if constexpr (Passes == 3) {
        low[e] = round_to_tf32(a[e] - high[e]);
      }
    }
  }
}

template <class T, int Passes>
DEVICE void multiply_small(
    T (&acc)[4], const T (&high)[4], const T (&low)[4], const Quad<T>& b, const Quad<T>& b_low, int half) {
  matrix_multiply_add(acc, high, b.v[2 * half], b.v[2 * half + 1]);
  if constexpr (Passes == 3) {
    matrix_multiply_add(acc, high, b_low.v[2 * half], b_low.v[2 * half + 1]);
    matrix_multiply_add(acc, low, b.v[2 * half], b.v[2 * half + 1]);
  }
}

// A block owns some tiles of sources by some of targets. Per tile of sources it walks along the targets with the
// source gradient in registers; the target gradient of the whole area is summed in the block's own part of
// target_parts, which only the same thread ever reads again.
template <class T, int Passes, class E, bool Guided>
__global__ void __launch_bounds__(kThreads, Shapes<T>::kBlocksPerMultiprocessor) backward_kernel(
    BackwardArguments<T, E> x, Packed<T, Passes> source, Packed<T, Passes> target, Packed<T, Passes> from_source,
    Packed<T, Passes> from_target) {
  constexpr int MT = 2, NT = 4;  // of C: 4 x 2 warps
  constexpr int kChunk = Shapes<T>::kChunk;
  constexpr int kNextStep = Packed<T, Passes>::kNextStep;
  BackwardShared<T>& shared = shared_memory<BackwardShared<T>>();
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, t4 = lane % 4;
  const int row = warp / 2 * 32, column = warp % 2 * 32;
  const int chunk = blockIdx.x % x.chunks;
  int block = blockIdx.x / x.chunks;
  const int target_run = block % x.target_runs;
  block /= x.target_runs;
  const int source_run = block % x.source_runs, b = block / x.source_runs;
  const int s_first = int64_t{x.source_tiles} * source_run / x.source_runs;
  const int s_last = int64_t{x.source_tiles} * (source_run + 1) / x.source_runs;
  const int t_first = int64_t{x.target_tiles} * target_run / x.target_runs;
  const int t_last = int64_t{x.target_tiles} * (target_run + 1) / x.target_runs;
  if (threadIdx.x == 0) {
    shared.source_run = source_run;
    shared.target_run = target_run;
    shared.s_first = s_first;
  }
  const int first_feature = chunk * kChunk, count = min(kChunk, x.features - first_feature);
  for (int s_tile = s_first; s_tile < s_last; ++s_tile) {
    if constexpr (Guided) {
      if (threadIdx.x < kTile) {  // who reads them at the end
        shared.beta[0][threadIdx.x] = shared.beta[1][threadIdx.x] = 0;
      }
    }
    sync_block();
    T dz_s[2][kChunk / 2][4] = {};
    const int s = s_tile * kTile + row + 4 * g;
    for (int t_tile = t_first; t_tile < t_last; ++t_tile) {
      {
        T beta[4] = {};
        T acc[MT][NT][4];
        if constexpr (Guided) {
          multiply<T, Passes, MT, NT>(
              source.at(b, s_tile * 8 + row / 16), target.at(b, t_tile * 4 + column / 16), source.steps, acc);
        }
#pragma unroll
        for (int q = 0; q < NT / 2; ++q) {
          const int t = t_tile * kHalfTile + column + 16 * q + 4 * t4;
          T grad[4][4];
          load_patch(x.grad, b, s, t, grad);
          if constexpr (Guided) {
            const Quad<T> scale = four_of(x.inverse_b, int64_t{b} * x.padded_sources + s);
            const Quad<T> inverse_n = four_of(x.inverse_n, int64_t{b} * x.padded_targets + t);
            const Quad<T> slope = four_of(x.slope, int64_t{b} * x.padded_targets + t);
#pragma unroll
            for (int r = 0; r < 4; ++r) {
#pragma unroll
              for (int c = 0; c < 4; ++c) {
                const T value = patch(acc, 0, q, r, c), square = value * value * scale.v[r], u = square * value;
                const T du = grad[r][c] * inverse_n.v[c] - u * slope.v[c];
                beta[r] += du * u;
                grad[r][c] = 3 * square * du;
              }
            }
          }
#pragma unroll
          for (int r = 0; r < 4; ++r) {
#pragma unroll
            for (int c = 0; c < 4; c += 2) {
              Pair<T>& to = reinterpret_cast<Pair<T>&>(
                  shared.dC[row + 16 * (r / 2) + 8 * (r % 2) + g][column + 16 * q + 8 * (c / 2) + 2 * t4]);
              to.v[0] = grad[r][c];
              to.v[1] = grad[r][c + 1];
            }
          }
        }
        if constexpr (Guided) {  // kept in shared memory: registers are all in use
#pragma unroll
          for (int r = 0; r < 4; ++r) {
            beta[r] += shuffle_xor(beta[r], 1);
            beta[r] += shuffle_xor(beta[r], 2);
            if (t4 == 0) {
              shared.beta[warp % 2][row + 4 * g + r] += beta[r];
            }
          }
        }
      }
      sync_block();
      if (x.source_parts != nullptr) {
        // 4 x 2 warps: 32 sources each, every other fragment of features
#pragma unroll 1
        for (int step = 0; step < kHalfTile / 16; ++step) {
          const Quad<T>* from = from_target.at(b, t_tile * 4 + step) + first_feature * kNextStep;
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            T high[2][4], low[2][4];
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              const int at = warp % 4 * 32 + 16 * i + g, c = 16 * step + 8 * half + 2 * t4;
              const Pair<T> upper = reinterpret_cast<const Pair<T>&>(shared.dC[at][c]);
              const Pair<T> lower = reinterpret_cast<const Pair<T>&>(shared.dC[at + 8][c]);
              const T a[4] = {upper.v[0], lower.v[0], upper.v[1], lower.v[1]};
              split_fragment<T, Passes>(a, high[i], low[i]);
            }
#pragma unroll
            for (int n = 0; n < kChunk / 2; ++n) {
              const int feature = 2 * n + warp / 4;
              if (feature < count) {
                const Quad<T> z = load_cached(from + feature * kNextStep);
                Quad<T> z_low{};
                if constexpr (Passes == 3) {
                  z_low = load_cached(from + feature * kNextStep + kWarp);
                }
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                  multiply_small<T, Passes>(dz_s[i][n], high[i], low[i], z, z_low, half);
                }
              }
            }
          }
        }
      }
      if (x.target_parts != nullptr) {
        // 4 x 2 warps: 16 targets each, every other fragment of features
        T dz_t[kChunk / 2][4] = {};
#pragma unroll 1
        for (int step = 0; step < kTile / 16; ++step) {
          const Quad<T>* from = from_source.at(b, s_tile * 8 + step) + first_feature * kNextStep;
          T high[2][4], low[2][4];
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const int at = 16 * step + 8 * half + t4, c = warp % 4 * 16 + g;
            const T a[4] = {
                shared.dC[at][c], shared.dC[at][c + 8], shared.dC[at + 4][c], shared.dC[at + 4][c + 8]};
            split_fragment<T, Passes>(a, high[half], low[half]);
          }
#pragma unroll
          for (int n = 0; n < kChunk / 2; ++n) {
            const int feature = 2 * n + warp / 4;
            if (feature < count) {
              const Quad<T> z = load_cached(from + feature * kNextStep);
              Quad<T> z_low{};
              if constexpr (Passes == 3) {
                z_low = load_cached(from + feature * kNextStep + kWarp);
              }
#pragma unroll
              for (int half = 0; half < 2; ++half) {
                multiply_small<T, Passes>(dz_t[n], high[half], low[half], z, z_low, half);
              }
            }
          }
        }
#pragma unroll
        for (int n = 0; n < kChunk / 2; ++n) {
          const int feature = 2 * n + warp / 4;
          if (feature < count) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
              const int t = t_tile * kHalfTile + column_at(warp % 4 * 16 + g + 8 * h);
              const int64_t line = (int64_t{b} * x.source_runs + shared.source_run) * x.padded_targets + t;
              Pair<T>& to = reinterpret_cast<Pair<T>&>(
                  x.target_parts[(line * x.features + first_feature + feature) * 8 + 2 * t4]);
              Pair<T> sum{{dz_t[n][2 * h], dz_t[n][2 * h + 1]}};
              if (s_tile != shared.s_first) {
                const Pair<T> before = to;
                sum.v[0] += before.v[0];
                sum.v[1] += before.v[1];
              }
              to = sum;
            }
          }
        }
      }
      sync_block();
    }
    if (x.source_parts != nullptr) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int n = 0; n < kChunk / 2; ++n) {
          const int feature = 2 * n + warp / 4;
          if (feature < count) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
              const int at = s_tile * kTile + row_at(warp % 4 * 32 + 16 * i + g + 8 * h);
              const int64_t line = (int64_t{b} * x.target_runs + shared.target_run) * x.padded_sources + at;
              Pair<T>& to = reinterpret_cast<Pair<T>&>(
                  x.source_parts[(line * x.features + first_feature + feature) * 8 + 2 * t4]);
              to = {{dz_s[i][n][2 * h], dz_s[i][n][2 * h + 1]}};
            }
          }
        }
      }
    }
    if constexpr (Guided) {
      if (chunk == 0 && threadIdx.x < kTile) {
        const int64_t line = int64_t{b} * x.target_runs + shared.target_run;
        x.beta_parts[line * x.padded_sources + s_tile * kTile + threadIdx.x] =
            shared.beta[0][threadIdx.x] + shared.beta[1][threadIdx.x];
      }
    }
  }
}

template <class T>
struct FinishBetaArguments {
  int64_t batch, sources, parts;
  const T* partial;  // [B, parts, padded sources]
  const T* row_max;
  T* beta;  // [B, S]
  bool add;
};

// beta_s = dL/db_s. The floor stops it later, where it is used: bands may still add to it.
template <class T>
__global__ void __launch_bounds__(kThreads) finish_beta_kernel(FinishBetaArguments<T> x) {
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= x.batch * x.sources) {
    return;
  }
  const int64_t b = index / x.sources, s = index % x.sources, padded = round_up(x.sources, kTile);
  T sum = 0;
  for (int64_t part = 0; part < x.parts; ++part) {
    sum += x.partial[(b * x.parts + part) * padded + s];
  }
  sum = -sum / x.row_max[index];
  x.beta[index] = x.add ? x.beta[index] + sum : sum;
}

constexpr int kFinishPositions = 32, kFinishFeatures = 64;

template <class T>
struct FinishGradsShared {
  T value[kFinishFeatures][kFinishPositions + 1];
};

// A block makes 32 positions by 64 features, a warp one position at a time with features across its lanes; then it
// writes them with positions across lanes.
template <class T, class Z, bool Source>
__global__ void __launch_bounds__(kThreads)
    finish_grads_kernel(FinishGradsArguments<T, Z> x, const T* row_max, T eps) {
  FinishGradsShared<T>& shared = shared_memory<FinishGradsShared<T>>();
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t chunks = round_up(x.m, kFinishFeatures) / kFinishFeatures;
  const int64_t groups = round_up(x.positions, kFinishPositions) / kFinishPositions;
  const int64_t k0 = blockIdx.x % chunks * kFinishFeatures, p0 = blockIdx.x / chunks % groups * kFinishPositions;
  const int64_t b = blockIdx.x / chunks / groups;
  for (int i = warp; i < kFinishPositions; i += kThreads / kWarp) {
    const int64_t p = p0 + i;
    if (p >= x.positions) {
      break;
    }
    T sum[2] = {};
    const auto add = [&](T factor, int64_t other) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int64_t k = k0 + lane + kWarp * h;
        if (k < x.m) {
          sum[h] += factor * static_cast<T>(x.others[(b * x.m + k) * x.others_count + other]);
        }
      }
    };
    for (int64_t part = 0; part < x.parts; ++part) {
      const T* from = x.partial + ((b * x.parts + part) * x.padded + p) * x.features * 8;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int64_t k = k0 + lane + kWarp * h;
        if (k < x.m) {
          sum[h] += from[k];
        }
      }
    }
    if (x.beta != nullptr) {
      if constexpr (Source) {
        const int64_t at = b * x.positions + p;
        if (row_max[at] != eps) {
          add(x.beta[at], x.row_argmax[at]);
        }
      } else {
        for (int64_t s0 = 0; s0 < x.others_count; s0 += kWarp) {
          const int64_t s = s0 + lane, at = b * x.others_count + s;
          const bool mine = s < x.others_count && x.row_argmax[at] == p && row_max[at] != eps;
          for (uint32_t found = ballot(mine); found != 0; found &= found - 1) {
            const int64_t source = s0 + lowest_bit(found);
            add(x.beta[b * x.others_count + source], source);
          }
        }
      }
    }
    shared.value[lane][i] = sum[0];
    shared.value[lane + kWarp][i] = sum[1];
  }
  sync_block();
  for (int i = warp; i < kFinishFeatures; i += kThreads / kWarp) {
    const int64_t k = k0 + i, p = p0 + lane;
    if (k < x.m && p < x.positions) {
      Z& to = x.out[(b * x.m + k) * x.out_stride + x.begin + p];
      const T value = shared.value[i][lane];
      to = static_cast<Z>(x.add ? static_cast<T>(to) + value : value);
    }
  }
}

// ---- launchers

inline int64_t blocks_for(int64_t threads) {
  return round_up(threads, kThreads) / kThreads;
}

template <class T, int Passes>
void row_maxima(
    const RowMaximaArguments<T>& x, const Packed<T, Passes>& source, const Packed<T, Passes>& target, Stream stream) {
  launch(row_maxima_kernel<T, Passes>, x.walk.blocks(), kThreads, 0, stream, x, source, target);
}

template <class T>
void finish_rows(const FinishRowsArguments<T>& x, Stream stream) {
  launch(finish_rows_kernel<T>, blocks_for(x.batch * round_up(x.sources, kTile)), kThreads, 0, stream, x);
}

template <class T, int Passes, class E, class Arguments>
void column_sums(
    const Arguments& x, const Packed<T, Passes>& source, const Packed<T, Passes>& target, Stream stream) {
  launch(
      column_sums_kernel<T, Passes, E>, x.walk.blocks(), kThreads, sizeof(ColumnSumsShared<T>), stream, x, source,
      target);
}

template <class T>
void finish_columns(const FinishColumnsArguments<T>& x, Stream stream) {
  launch(finish_columns_kernel<T>, blocks_for(x.batch * round_up(x.targets, kTile)), kThreads, 0, stream, x);
}

template <bool Guided, class T, int Passes, class E>
void write_map(
    const WriteMapArguments<T, E>& x, const Packed<T, Passes>& source, const Packed<T, Passes>& target,
    Stream stream) {
  launch(write_map_kernel<T, Passes, E, Guided>, x.walk.blocks(), kThreads, 0, stream, x, source, target);
}

template <bool Guided, class T, int Passes, class E>
void backward(
    const BackwardArguments<T, E>& x, const Packed<T, Passes>& source, const Packed<T, Passes>& target,
    const Packed<T, Passes>& from_source, const Packed<T, Passes>& from_target, Stream stream) {
  launch(
      backward_kernel<T, Passes, E, Guided>, int64_t{x.batch} * x.source_runs * x.target_runs * x.chunks, kThreads,
      sizeof(BackwardShared<T>), stream, x, source, target, from_source, from_target);
}

template <class T>
void finish_beta(const FinishBetaArguments<T>& x, Stream stream) {
  launch(finish_beta_kernel<T>, blocks_for(x.batch * x.sources), kThreads, 0, stream, x);
}

template <bool Source, class T, class Z>
void finish_grads(const FinishGradsArguments<T, Z>& x, const T* row_max, T eps, Stream stream) {
  const int64_t blocks = x.batch * (round_up(x.positions, kFinishPositions) / kFinishPositions) *
      (round_up(x.m, kFinishFeatures) / kFinishFeatures);
  launch(
      finish_grads_kernel<T, Z, Source>, blocks, kThreads, sizeof(FinishGradsShared<T>), stream, x, row_max, eps);
}

template <class T, class E>
BackwardArguments<T, E> plan_backward(int64_t batch, int64_t m, int64_t sources, int64_t targets) {
  // Areas of 512 x 1024: few partial sums; smaller ones where that makes too few blocks for a GPU.
  BackwardArguments<T, E> x{};
  x.batch = static_cast<int>(batch);
  x.padded_sources = static_cast<int>(round_up(sources, kTile));
  x.padded_targets = static_cast<int>(round_up(targets, kTile));
  x.source_tiles = x.padded_sources / kTile;
  x.target_tiles = static_cast<int>(round_up(targets, kHalfTile) / kHalfTile);
  x.features = static_cast<int>(round_up(m, kStep) / kStep);
  x.chunks = (x.features + Shapes<T>::kChunk - 1) / Shapes<T>::kChunk;
  x.source_runs = (x.source_tiles + 3) / 4;
  x.target_runs = (x.target_tiles + 15) / 16;
  while (batch * x.source_runs * x.target_runs * x.chunks < enough(256)) {
    if (x.source_runs < x.source_tiles) {
      x.source_runs = std::min(2 * x.source_runs, x.source_tiles);
    } else if (x.target_runs < x.target_tiles) {
      x.target_runs = std::min(2 * x.target_runs, x.target_tiles);
    } else {
      break;
    }
  }
  return x;
}

// ---- calls: how each is cut into blocks, what scratch it needs, which kernels run in which order

// Null for what a call has not.
template <class T>
struct Statistics {
  T eps;
  T* row_max;  // [B, S]
  int64_t* row_argmax;  // [B, S]
  T* norm;  // [B, T]
};

template <class In, int Passes, class T = Compute<In>>
void find_row_maxima(
    const Features<In>& z, const Packed<T, Passes>& source, const Packed<T, Passes>& target,
    const Statistics<T>& statistics, T* inverse_b, const Allocate& allocate, Stream stream) {
  const Walk walk = make_walk(z.batch, z.sources, z.count);
  const int64_t n = z.batch * 2 * walk.runs * walk.tiles * kTile;
  T* best = allocate_array<T>(allocate, n);
  int32_t* where = allocate_array<int32_t>(allocate, n);
  row_maxima<T, Passes>({walk, static_cast<int>(z.count), best, where}, source, target, stream);
  finish_rows<T>(
      {z.batch, z.sources, 2 * walk.runs, statistics.eps, best, where, statistics.row_max, statistics.row_argmax,
       inverse_b},
      stream);
}

template <class T>
T* inverse_row_maxima(
    int64_t batch, int64_t sources, const Statistics<T>& statistics, const Allocate& allocate, Stream stream) {
  T* inverse_b = allocate_array<T>(allocate, batch * round_up(sources, kTile));
  finish_rows<T>(
      {batch, sources, 0, statistics.eps, nullptr, nullptr, statistics.row_max, nullptr, inverse_b}, stream);
  return inverse_b;
}

// Norms and result of the targets that take part.
template <class In, int Passes, class E, class T = Compute<In>>
void make_columns(
    const Features<In>& z, const Packed<T, Passes>& source, const Packed<T, Passes>& target,
    const Statistics<T>& statistics, const T* inverse_b, const Map<E>& out, const Allocate& allocate, Stream stream) {
  const Walk walk = make_walk(z.batch, z.count, z.sources);
  const int64_t columns = walk.tiles * kTile;
  T* sums = allocate_array<T>(allocate, z.batch * walk.runs * columns);
  T* inverse_n = allocate_array<T>(allocate, z.batch * columns);
  column_sums<T, Passes, void>(ColumnSumsArguments<T, T>{walk, inverse_b, {}, sums}, source, target, stream);
  finish_columns<T>(
      {z.batch, z.count, walk.runs, z.targets, z.begin, statistics.eps, sums, statistics.norm, inverse_n, nullptr},
      stream);
  write_map<true, T, Passes, E>({walk, inverse_b, inverse_n, out}, source, target, stream);
}

template <class In, class T = Compute<In>>
void run_guided_correlation(
    const Features<In>& z, const Statistics<T>& statistics, bool tf32, const Map<In>& out, const Allocate& allocate,
    Stream stream) {
  with_passes<In>(tf32, [&](auto passes) {
    constexpr int P = passes;
    PackPlan plan(z.batch, z.m);
    const Packed<T, P> source = pack<In, T, P>(plan, Order::kRows, z, allocate);
    const Packed<T, P> target = pack<In, T, P>(plan, Order::kColumns, z, allocate);
    plan.run<In, T, P>(stream);
    T* inverse_b = allocate_array<T>(allocate, z.batch * round_up(z.sources, kTile));
    find_row_maxima<In, P>(z, source, target, statistics, inverse_b, allocate, stream);
    make_columns<In, P, In>(z, source, target, statistics, inverse_b, out, allocate, stream);
  });
}

template <class In, class T = Compute<In>>
void run_row_max(
    const Features<In>& z, const Statistics<T>& statistics, bool tf32, const Allocate& allocate, Stream stream) {
  with_passes<In>(tf32, [&](auto passes) {
    constexpr int P = passes;
    PackPlan plan(z.batch, z.m);
    const Packed<T, P> source = pack<In, T, P>(plan, Order::kRows, z, allocate);
    const Packed<T, P> target = pack<In, T, P>(plan, Order::kColumns, z, allocate);
    plan.run<In, T, P>(stream);
    find_row_maxima<In, P>(z, source, target, statistics, static_cast<T*>(nullptr), allocate, stream);
  });
}

template <class In, class E, class T = Compute<In>>
void run_band(
    const Features<In>& z, const Statistics<T>& statistics, bool tf32, const Map<E>& out, const Allocate& allocate,
    Stream stream) {
  with_passes<In>(tf32, [&](auto passes) {
    constexpr int P = passes;
    PackPlan plan(z.batch, z.m);
    const Packed<T, P> source = pack<In, T, P>(plan, Order::kRows, z, allocate);
    const Packed<T, P> target = pack<In, T, P>(plan, Order::kColumns, z, allocate);
    plan.run<In, T, P>(stream);
    const T* inverse_b = inverse_row_maxima(z.batch, z.sources, statistics, allocate, stream);
    make_columns<In, P, E>(z, source, target, statistics, inverse_b, out, allocate, stream);
  });
}

// Where the gradients of features go. `add`: to what is there (source_grad and beta; a band's columns are written).
template <class In, class T = Compute<In>>
struct FeatureGrads {
  In* source;  // [B, m, S], null: not wanted
  In* target;  // [B, m, T], null: not wanted
  T* beta;  // [B, S]; null without statistics
  bool add, through_row_max;
};

template <bool Guided, class In, class E, class T = Compute<In>>
void run_backward(
    const Features<In>& z, const Statistics<T>& statistics, bool tf32, const Map<const E>& grad,
    const FeatureGrads<In>& out, const Allocate& allocate, Stream stream) {
  with_passes<In>(tf32, [&](auto passes) {
    constexpr int P = passes;
    PackPlan plan(z.batch, z.m);
    Packed<T, P> source{}, target{}, from_source{}, from_target{};
    if (Guided) {
      source = pack<In, T, P>(plan, Order::kRows, z, allocate);
      target = pack<In, T, P>(plan, Order::kColumns, z, allocate);
    }
    if (out.target != nullptr) {
      from_source = pack<In, T, P>(plan, Order::kFromRows, z, allocate);
    }
    if (out.source != nullptr) {
      from_target = pack<In, T, P>(plan, Order::kFromColumns, z, allocate);
    }
    plan.run<In, T, P>(stream);

    BackwardArguments<T, E> x = plan_backward<T, E>(z.batch, z.m, z.sources, z.count);
    x.grad = grad;
    if constexpr (Guided) {
      const Walk walk = make_walk(z.batch, z.count, z.sources);
      T* sums = allocate_array<T>(allocate, z.batch * walk.runs * x.padded_targets);
      T* inverse_n = allocate_array<T>(allocate, z.batch * x.padded_targets);
      T* slope = allocate_array<T>(allocate, z.batch * x.padded_targets);
      x.inverse_b = inverse_row_maxima(z.batch, z.sources, statistics, allocate, stream);
      column_sums<T, P, E>(ColumnSumsArguments<T, E>{walk, x.inverse_b, grad, sums}, source, target, stream);
      finish_columns<T>(
          {z.batch, z.count, walk.runs, z.targets, z.begin, statistics.eps, sums, statistics.norm, inverse_n, slope},
          stream);
      x.inverse_n = inverse_n;
      x.slope = slope;
      x.beta_parts = allocate_array<T>(allocate, z.batch * x.target_runs * x.padded_sources);
    }
    if (out.source != nullptr) {
      x.source_parts = allocate_array<T>(allocate, z.batch * x.target_runs * x.padded_sources * x.features * 8);
    }
    if (out.target != nullptr) {
      x.target_parts = allocate_array<T>(allocate, z.batch * x.source_runs * x.padded_targets * x.features * 8);
    }
    backward<Guided, T, P, E>(x, source, target, from_source, from_target, stream);

    if (Guided) {
      finish_beta<T>(
          {z.batch, z.sources, x.target_runs, x.beta_parts, statistics.row_max, out.beta, out.add}, stream);
    }
    const T* beta = out.through_row_max ? out.beta : nullptr;
    if (out.source != nullptr) {
      finish_grads<true, T, In>(
          {z.batch, z.m, z.sources, x.padded_sources, x.target_runs, x.features, x.source_parts, beta,
           statistics.row_argmax, z.target, z.targets, out.source, z.sources, 0, out.add},
          statistics.row_max, statistics.eps, stream);
    }
    if (out.target != nullptr) {
      finish_grads<false, T, In>(
          {z.batch, z.m, z.count, x.padded_targets, x.source_runs, x.features, x.target_parts, beta,
           statistics.row_argmax, z.source, z.sources, out.target, z.targets, z.begin, false},
          statistics.row_max, statistics.eps, stream);
    }
  });
}

template <class In, class T = Compute<In>>
void run_row_max_backward(
    const Features<In>& z, const Statistics<T>& statistics, const T* beta, In* source_grad, In* target_grad,
    Stream stream) {
  finish_grads<true, T, In>(
      {z.batch, z.m, z.sources, 0, 0, 0, nullptr, beta, statistics.row_argmax, z.target, z.targets, source_grad,
       z.sources, 0, true},
      statistics.row_max, statistics.eps, stream);
  finish_grads<false, T, In>(
      {z.batch, z.m, z.targets, 0, 0, 0, nullptr, beta, statistics.row_argmax, z.source, z.sources, target_grad,
       z.targets, 0, true},
      statistics.row_max, statistics.eps, stream);
}

}  // namespace pose_kernels
