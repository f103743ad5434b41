// mutual_matches on CUDA: maxima of C along its rows (guided_correlation.cuh) and the best of its columns, in tiles
// that exist in registers only. The next best is one more sweep over what comes after the last one found: as
// quick as the first, with no lists to keep, whatever k. Blocks walk down the columns in runs; what each run found is
// put together by `finish_best_kernel`. All order is that of `better` (statistics.cuh), which is total: the same result
// for any number of blocks. Both sweeps multiply the same fragments in the same order, so that a pair has one value.
#pragma once

#include "cuda/guided_correlation.cuh"

namespace pose_kernels {

// 64 x 128. All rows belong to every warp, so that a thread has few columns to keep the best of.
using BestTile = TileShape<1, 4, 2>;

// Results in the compute type. Targets [B, k, T] have their sources, sources [B, S] their target.
template <class T>
struct Matches {
  int64_t k;
  int64_t* sources;
  T* correlations;
  int64_t* targets;
  T* target_correlations;
};

template <class T>
struct ColumnBestArguments {
  Walk walk;
  int sources, targets;
  int64_t k, rank;  // found is the best of a column after its number rank - 1, which is in:
  const T* correlations;  // [B, k, T]
  const int64_t* places;
  T* best;  // [B, runs, padded targets]
  int32_t* where;
};

template <class T>
struct FinishBestArguments {
  int64_t batch, targets, runs, k, rank;
  const T* best;
  const int32_t* where;
  T* correlations;
  int64_t* places;
};

// What a thread has found in its columns, and what it may still find there: only what comes after the last one found.
template <class T>
struct ColumnBest {
  T best[4];
  int32_t where[4];
  T limit[4];  // numbers up to this one, and those equal to it from after this place on
  int32_t limit_at[4];
  int32_t lost_at[4];  // NaN from after this place on
};

template <bool After, class T>
DEVICE void begin_columns(
    ColumnBest<T>& found, const ColumnBestArguments<T>& x, int b, int first_source, int first_target) {
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    found.best[c] = -INFINITY;
    // Where all is minus infinity, the first one is the best.
    found.where[c] = !After && first_source < x.sources ? first_source : INT32_MAX;
    if constexpr (After) {
      const int64_t at = (b * x.k + x.rank - 1) * x.targets + min(first_target + c, x.targets - 1);
      const T last = x.correlations[at];
      const int32_t last_at = static_cast<int32_t>(x.places[at]);
      const bool lost = last != last;
      found.limit[c] = lost ? static_cast<T>(INFINITY) : last;
      found.limit_at[c] = lost ? -1 : last_at;
      found.lost_at[c] = lost ? last_at : INT32_MAX;
    }
  }
}

template <bool After, class T>
DEVICE void keep_number(ColumnBest<T>& found, int c, T value, int s) {
  bool wins = value > found.best[c];
  if constexpr (After) {
    // No branches: all of it is cheaper than one.
    wins = (wins | (found.where[c] == INT32_MAX)) &
        ((value < found.limit[c]) | ((value == found.limit[c]) & (s > found.limit_at[c])));
  }
  found.best[c] = wins ? value : found.best[c];
  found.where[c] = wins ? s : found.where[c];
}

template <bool After, class T>
DEVICE void keep_lost(ColumnBest<T>& found, int c, T value, int s) {
  if (value != value && found.best[c] == found.best[c] && (!After || s > found.lost_at[c])) {
    found.best[c] = value;
    found.where[c] = s;
  }
}

// Calls f(c, value, s) for a thread's part of a tile, down its columns; rows of the padding must not win.
template <class T, class F>
DEVICE void for_columns(T (&acc)[BestTile::MT][BestTile::NT][4], int first_source, int sources, const F& f) {
#pragma unroll
  for (int p = 0; p < BestTile::MT / 2; ++p) {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int s = first_source + 32 * p + r;
      if (s < sources) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          f(c, patch(acc, p, 0, r, c), s);
        }
      }
    }
  }
}

template <class T, int Passes, bool After>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor<T>)
    column_best_kernel(ColumnBestArguments<T> x, Packed<T, Passes> source, Packed<T, Passes> target) {
  constexpr int kPerTile = kTile / BestTile::kRows;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int row = patch_row(lane), column = BestTile::column(warp) + patch_column(lane);
  const Place place = place_of(x.walk, blockIdx.x);
  ColumnBest<T> found;
  begin_columns<After>(found, x, place.b, place.first * kTile + row, place.tile * kTile + column);
  for (int tile = place.first * kPerTile; tile < place.last * kPerTile; ++tile) {
    T acc[BestTile::MT][BestTile::NT][4];
    multiply_tile<BestTile>(source, target, place.b, tile, place.tile, acc);
    const int s0 = tile * BestTile::kRows + row;
    T sum = 0;  // NaN where one of them is, or perhaps where some are infinite
    for_columns(acc, s0, x.sources, [&](int c, T value, int s) {
      keep_number<After>(found, c, value, s);
      sum += value;
    });
    if (sum != sum) {
      for_columns(acc, s0, x.sources, [&](int c, T value, int s) { keep_lost<After>(found, c, value, s); });
    }
  }
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    reduce_best<kWarp, 4>(found.best[c], found.where[c]);
    if (lane < 4) {
      const int64_t run = int64_t{place.b} * x.walk.runs + place.run;
      const int64_t at = (run * x.walk.tiles + place.tile) * kTile + column + c;
      x.best[at] = found.best[c];
      x.where[at] = found.where[c];
    }
  }
}

// A thread per target.
template <class T>
__global__ void __launch_bounds__(kThreads) finish_best_kernel(FinishBestArguments<T> x) {
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x, padded = round_up(x.targets, kTile);
  if (index >= x.batch * x.targets) {
    return;
  }
  const int64_t b = index / x.targets, t = index % x.targets;
  T best = -INFINITY;
  int32_t where = INT32_MAX;
  for (int64_t run = 0; run < x.runs; ++run) {
    const int64_t from = (b * x.runs + run) * padded + t;
    if (better(x.best[from], x.where[from], best, where)) {
      best = x.best[from];
      where = x.where[from];
    }
  }
  const int64_t to = (b * x.k + x.rank) * x.targets + t;
  x.correlations[to] = best;
  x.places[to] = where;
}

template <class In, class T, int Passes>
void find_column_best(
    const Features<In>& z, const Packed<T, Passes>& source, const Packed<T, Passes>& target, const Matches<T>& out,
    const Context& context) {
  const Walk walk = make_walk(z.batch, z.targets, z.sources);
  const int64_t n = z.batch * walk.runs * walk.tiles * kTile;
  T* best = context.allocate_array<T>(n);
  int32_t* where = context.allocate_array<int32_t>(n);
  for (int64_t rank = 0; rank < out.k; ++rank) {
    const ColumnBestArguments<T> x{
        walk, static_cast<int>(z.sources), static_cast<int>(z.targets), out.k, rank, out.correlations, out.sources,
        best, where};
    launch(
        rank == 0 ? column_best_kernel<T, Passes, false> : column_best_kernel<T, Passes, true>, walk.blocks(), kThreads,
        0, context.stream, x, source, target);
    launch(
        finish_best_kernel<T>, blocks_for(z.batch * z.targets), kThreads, 0, context.stream,
        FinishBestArguments<T>{
            z.batch, z.targets, walk.runs, out.k, rank, best, where, out.correlations, out.sources});
  }
}

template <class In, class T = compute_t<In>>
void run_mutual_matches(const Features<In>& z, bool tf32, const Matches<T>& out, const Context& context) {
  with_operands(z, tf32, context, [&](const auto& source, const auto& target) {
    const Statistics<T> rows{-INFINITY, out.target_correlations, out.targets, nullptr};
    find_row_maxima(z, source, target, rows, static_cast<T*>(nullptr), context);
    find_column_best(z, source, target, out, context);
  });
}

}  // namespace pose_kernels
