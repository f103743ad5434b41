// guided_correlation on CUDA: Eqs. 1, 9 and 2 in three sweeps of C forward and two backward, no 4D tensor but the
// result. The mathematics is at the top of csrc/cpu/guided_correlation.cpp; what is computed where:
//
//   row_maxima     tiles of 128 x 128, a block walks along its rows: maxima and the patches they are in, per run of tiles
//   finish_rows    b_s, 1 / b_s and the patch (statistics.cuh)
//   locate_maxima  t*(s) in its patch
//   column_sums    a block walks down its columns: sum_s u^2 (forward) or sum_s G u (backward), per run of tiles
//   finish_columns n_t; backward: 1 / n_t and the factor of u in du (statistics.cuh)
//   write_map      the same tiles once more, scaled and stored (correlation_map.cuh)
//   backward       dC in tiles and the gradients of the features (feature_gradients.cuh)
//
// No floating-point atomics anywhere: partial results have places of their own and are added in order. What each
// should take is in docs/kernels.md.
#pragma once

#include "cuda/correlation_map.cuh"
#include "cuda/feature_gradients.cuh"
#include "cuda/sort.cuh"
#include "cuda/statistics.cuh"

namespace pose_kernels {

// 128 sources high; half as wide where three passes need the registers.
template <int Passes>
using MaximaTile = TileShape<4, 2, Passes == 3 ? 4 : 8>;
constexpr int kColumnParts = MaximaTile<1>::kWarpColumns;  // warps side by side, each with maxima of its own

template <class T>
struct RowMaximaArguments {
  Walk walk;
  int targets;
  T* best;  // [B, kColumnParts runs, padded sources]
  int32_t* where;  // the first target of a patch
};

template <class T, class E>
struct ColumnSumsArguments {
  Walk walk;
  const T* inverse_b;
  Map<const E> grad;  // backward only
  T* sums;  // [B, runs, padded targets]
};

// With a gradient tiles are 64 sources high, whatever the passes: two of its tiles shall fit in shared memory.
template <int Passes, class E>
using ColumnSumsTile = MapTile<std::is_void_v<E> ? Passes : kThreePasses>;

// E = void: no gradient.
template <class T, class E>
struct ColumnSumsShared {
  using Tile = ColumnSumsTile<kOnePass, E>;

  PatchStages<E, Tile::MT / 2 * Tile::NT / 2> grad;
  T sums[Tile::kWarpRows][kTile];
};
template <class T>
struct ColumnSumsShared<T, void> {
  T sums[MapTile<kOnePass>::kWarpRows][kTile];
};

// ---- kernels

// Columns of the padding must not win.
template <class T, int NT>
DEVICE void lower_padding(T (&acc)[2][NT][4], int first, int targets) {
#pragma unroll
  for (int q = 0; q < NT / 2; ++q) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      if (first + 16 * q + c >= targets) {
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          patch(acc, 0, q, r, c) = -INFINITY;
        }
      }
    }
  }
}

// Of a row the largest value and the patch, 4 targets wide, where it is first: what is done for each element is to take
// the larger of two. `locate_maxima_kernel` looks at one patch a row again.
template <class T, int Passes>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor<T>)
    row_maxima_kernel(RowMaximaArguments<T> x, Packed<T, Passes> source, Packed<T, Passes> target) {
  using Tile = MaximaTile<Passes>;
  constexpr int kParts = kTile / Tile::kColumns;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int row = Tile::row(warp) + patch_row(lane), column = Tile::column(warp) + patch_column(lane);
  const Place place = place_of(x.walk, blockIdx.x);
  T best[4];
  int32_t where[4];
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    best[r] = -INFINITY;
    where[r] = place.first * kTile + column;  // where all is minus infinity
  }
  for (int tile = place.first * kParts; tile < place.last * kParts; ++tile) {
    T acc[Tile::MT][Tile::NT][4];
    multiply_tile<Tile>(source, target, place.b, place.tile, tile, acc);
    const int first = tile * Tile::kColumns + column;
    if ((tile + 1) * Tile::kColumns > x.targets) {
      lower_padding<T, Tile::NT>(acc, first, x.targets);
    }
#pragma unroll
    for (int q = 0; q < Tile::NT / 2; ++q) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const T left = larger(patch(acc, 0, q, r, 0), patch(acc, 0, q, r, 1));
        const T top = larger(left, larger(patch(acc, 0, q, r, 2), patch(acc, 0, q, r, 3)));
        const bool wins = !(top <= best[r]) && best[r] == best[r];
        best[r] = larger(best[r], top);
        where[r] = wins ? first + 16 * q : where[r];
      }
    }
  }
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    reduce_best<4>(best[r], where[r]);
    if (lane % 4 == 0) {
      const int64_t part = (int64_t{place.b} * x.walk.runs + place.run) * kColumnParts + warp % kColumnParts;
      const int64_t at = (part * x.walk.tiles + place.tile) * kTile + row + r;
      x.best[at] = best[r];
      x.where[at] = where[r];
    }
  }
}

// A warp finds the targets of kLocatedRows sources: C of a patch once more, by the same fragments in the same order and so
// with the same bits.
constexpr int kLocatedRows = 4;

struct LocateArguments {
  int64_t warps;
  int sources, targets;
  int64_t* row_argmax;  // [B, S]: the first target of a patch becomes that of the maximum
};

template <class T, int Passes>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor<T>)
    locate_maxima_kernel(LocateArguments x, Packed<T, Passes> source, Packed<T, Passes> target) {
  const int64_t index = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp, row = static_cast<int>(index % (kGroup / kLocatedRows)) * kLocatedRows;
  const int64_t groups = int64_t{source.tiles} * kGroups, rest = index / (kGroup / kLocatedRows);
  const int group = static_cast<int>(rest % groups), b = static_cast<int>(rest / groups);
  if (index >= x.warps) {
    return;
  }
  const Quad<T>* rows = source.at(b, group);
  const Quad<T>* columns[kLocatedRows];
  int s[kLocatedRows], where[kLocatedRows];
  T left[kLocatedRows][4] = {}, right[kLocatedRows][4] = {};
#pragma unroll
  for (int i = 0; i < kLocatedRows; ++i) {
    s[i] = row_at(group * kGroup + row + i);
    where[i] = s[i] < x.sources ? static_cast<int>(x.row_argmax[int64_t{b} * x.sources + s[i]]) : 0;
    columns[i] = target.at(b, where[i] / kGroup);
  }
#pragma unroll 1
  for (int step = 0; step < source.steps; ++step) {
    Fragment<T, Passes> a;
    a.load(rows + step * Packed<T, Passes>::kNextStep);
#pragma unroll
    for (int i = 0; i < kLocatedRows; ++i) {
      Fragment<T, Passes> z;
      z.load(columns[i] + step * Packed<T, Passes>::kNextStep);
      multiply_fragments(a, z, left[i], right[i]);
    }
  }
#pragma unroll
  for (int i = 0; i < kLocatedRows; ++i) {
    if (s[i] < x.sources && lane / 4 == (row + i) % 8 && lane % 4 == where[i] % kGroup / 4) {
      T value[4];
#pragma unroll
      for (int e = 0; e < 2; ++e) {  // kLocatedRows divides 8
        value[e] = row >= 8 ? left[i][2 + e] : left[i][e];
        value[2 + e] = row >= 8 ? right[i][2 + e] : right[i][e];
      }
      T best = value[0];
      int at = 0;
#pragma unroll
      for (int c = 1; c < 4; ++c) {
        if (where[i] + c < x.targets && better(value[c], c, best, at)) {
          best = value[c];
          at = c;
        }
      }
      x.row_argmax[int64_t{b} * x.sources + s[i]] = where[i] + at;
    }
  }
}

// A thread per source of some samples.
struct BestTargetsArguments {
  int64_t count, sources, targets;
  const int64_t* row_argmax;
  uint32_t* keys;
  uint32_t* order;
};

static __global__ void __launch_bounds__(kThreads) best_targets_kernel(BestTargetsArguments x) {
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index < x.count) {
    x.keys[index] = static_cast<uint32_t>(index / x.sources * x.targets + x.row_argmax[index]);
    x.order[index] = static_cast<uint32_t>(index % x.sources);
  }
}

// u = C^3 / b in place of C.
template <class T, int MT, int NT>
DEVICE void cube_patch(T (&acc)[MT][NT][4], int p, int q, const Quad<T>& scale) {
#pragma unroll
  for (int r = 0; r < 4; ++r) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const T value = patch(acc, p, q, r, c);
      patch(acc, p, q, r, c) = value * value * (value * scale.v[r]);
    }
  }
}

// Of the columns of all warps: over a warp's lanes, then over the warps above each other.
template <class Tile, class T, class E, class Shared>
DEVICE void store_column_sums(
    const ColumnSumsArguments<T, E>& x, const Place& place, T (&sums)[Tile::NT / 2][4], Shared& shared) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
#pragma unroll
  for (int q = 0; q < Tile::NT / 2; ++q) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
#pragma unroll
      for (int mask = 4; mask < kWarp; mask *= 2) {
        sums[q][c] += shuffle_xor(sums[q][c], mask);
      }
      if (lane < 4) {
        shared.sums[warp / Tile::kWarpColumns][Tile::column(warp) + 16 * q + lane * 4 + c] = sums[q][c];
      }
    }
  }
  sync_block();
  if (threadIdx.x < kTile) {
    x.sums[((int64_t{place.b} * x.walk.runs + place.run) * x.walk.tiles + place.tile) * kTile + threadIdx.x] =
        shared.sums[0][threadIdx.x] + shared.sums[1][threadIdx.x];
  }
}

// E = void: sums of squares.
template <class T, int Passes, class E>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor<T>) column_sums_kernel(
    ColumnSumsArguments<T, std::conditional_t<std::is_void_v<E>, T, E>> x, Packed<T, Passes> source,
    Packed<T, Passes> target) {
  using Tile = ColumnSumsTile<Passes, E>;
  constexpr int kParts = kTile / Tile::kRows, kPatches = Tile::NT / 2;  // patches side by side
  auto& shared = shared_memory<ColumnSumsShared<T, E>>();
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int row = Tile::row(warp) + patch_row(lane), column = Tile::column(warp) + patch_column(lane);
  const Place place = place_of(x.walk, blockIdx.x);
  const int t = place.tile * kTile + column, first = place.first * kParts, last = place.last * kParts;
  T sums[kPatches][4] = {};
  for (int tile = first; tile < last; ++tile) {
    if constexpr (!std::is_void_v<E>) {
      shared.grad.run_ahead(tile, first, last, [&](int next, auto& to) {
#pragma unroll
        for (int i = 0; i < Tile::MT / 2 * kPatches; ++i) {
          const int s = next * Tile::kRows + row + i / kPatches * 32;
          copy_patch(x.grad, place.b, s, t + i % kPatches * 16, to[i]);
        }
      });
    }
    T acc[Tile::MT][Tile::NT][4];
    multiply_tile<Tile>(source, target, place.b, tile, place.tile, acc);
    const int s = tile * Tile::kRows + row;
#pragma unroll
    for (int p = 0; p < Tile::MT / 2; ++p) {
      const Quad<T> scale = four_of(x.inverse_b, int64_t{place.b} * x.walk.others * kTile + s + 32 * p);
#pragma unroll
      for (int q = 0; q < Tile::NT / 2; ++q) {
        cube_patch(acc, p, q, scale);
        T grad[4][4];
        if constexpr (!std::is_void_v<E>) {
          read_patch(x.grad, shared.grad.wait_for(tile, first)[p * kPatches + q], grad);
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
  store_column_sums<Tile>(x, place, sums, shared);
}

// ---- calls: how each is cut into blocks, what scratch it needs, which kernels run in which order

template <class In, class T, int Passes>
void find_row_maxima(
    const Features<In>& z, const Packed<T, Passes>& source, const Packed<T, Passes>& target,
    const Statistics<T>& statistics, T* inverse_b, const Context& context) {
  const Walk walk = make_walk(z.batch, z.sources, z.count);
  const int64_t parts = kColumnParts * walk.runs, n = z.batch * parts * walk.tiles * kTile;
  T* best = context.allocate_array<T>(n);
  int32_t* where = context.allocate_array<int32_t>(n);
  const RowMaximaArguments<T> maxima{walk, static_cast<int>(z.count), best, where};
  launch(
      row_maxima_kernel<T, Passes>, walk.blocks(), kThreads, 0, context.stream, maxima, source, target);
  finish_rows<T>({z.batch, z.sources, parts, statistics, best, where, inverse_b}, context.stream);
  const int64_t warps = z.batch * walk.tiles * (kTile / kLocatedRows);
  launch(
      locate_maxima_kernel<T, Passes>, ceil_div(warps, kWarps), kThreads, 0, context.stream,
      LocateArguments{warps, static_cast<int>(z.sources), static_cast<int>(z.count), statistics.row_argmax}, source,
      target);
}

template <class In, class T>
T* inverse_row_maxima(const Features<In>& z, const Statistics<T>& statistics, const Context& context) {
  T* inverse_b = context.allocate_array<T>(z.batch * round_up(z.sources, kTile));
  finish_rows<T>({z.batch, z.sources, 0, statistics, nullptr, nullptr, inverse_b}, context.stream);
  return inverse_b;
}

// Sums of squares, or with G, of the targets that take part, finished: norms, their inverses and slopes.
template <class E, class In, class T, int Passes, class G>
FinishColumnsArguments<T> finish_column_sums(
    const Features<In>& z, const Packed<T, Passes>& source, const Packed<T, Passes>& target,
    const Statistics<T>& statistics, const T* inverse_b, const Map<const G>& grad, const Context& context) {
  const Walk walk = make_walk(z.batch, z.count, z.sources);
  const int64_t columns = walk.tiles * kTile;
  T* sums = context.allocate_array<T>(z.batch * walk.runs * columns);
  FinishColumnsArguments<T> x{};
  x.batch = z.batch;
  x.targets = z.count;
  x.runs = walk.runs;
  x.norm_stride = z.targets;
  x.begin = z.begin;
  x.eps = statistics.eps;
  x.sums = sums;
  x.norm = statistics.norm;
  x.inverse_n = context.allocate_array<T>(z.batch * columns);
  x.slope = std::is_void_v<E> ? nullptr : context.allocate_array<T>(z.batch * columns);
  launch(
      column_sums_kernel<T, Passes, E>, walk.blocks(), kThreads, sizeof(ColumnSumsShared<T, E>), context.stream,
      ColumnSumsArguments<T, G>{walk, inverse_b, grad, sums}, source, target);
  finish_columns(x, context.stream);
  return x;
}

// Norms and result of the targets that take part.
template <class In, class T, int Passes, class E>
void make_columns(
    const Features<In>& z, const Packed<T, Passes>& source, const Packed<T, Passes>& target,
    const Statistics<T>& statistics, const T* inverse_b, const Map<E>& out, const Context& context) {
  const auto columns =
      finish_column_sums<void>(z, source, target, statistics, inverse_b, Map<const T>{}, context);
  const Walk walk = make_walk(z.batch, z.count, z.sources);
  write_map<true>(WriteMapArguments<T, E>{walk, inverse_b, columns.inverse_n, out}, source, target, context.stream);
}

// Calls f with values of the types of a band's features and of its map. Only float64 features have float64 maps.
template <class F>
void dispatch_features_and_band(ScalarType features, ScalarType band, F&& f) {
  dispatch_floating(features, "source", [&](auto of_features) {
    using In = decltype(of_features);
    dispatch_floating(band, "band", [&](auto zero) {
      if constexpr (std::is_same_v<decltype(zero), double> && !std::is_same_v<In, double>) {
        STD_TORCH_CHECK(false, "band: a float64 map needs float64 features");
      } else {
        f(In{}, zero);
      }
    });
  });
}

template <class In, class T = compute_t<In>>
void run_guided_correlation(
    const Features<In>& z, const Statistics<T>& statistics, bool tf32, const Map<In>& out, const Context& context) {
  with_operands(z, tf32, context, [&](const auto& source, const auto& target) {
    T* inverse_b = context.allocate_array<T>(z.batch * round_up(z.sources, kTile));
    find_row_maxima(z, source, target, statistics, inverse_b, context);
    make_columns(z, source, target, statistics, inverse_b, out, context);
  });
}

template <class In, class T = compute_t<In>>
void run_row_max(const Features<In>& z, const Statistics<T>& statistics, bool tf32, const Context& context) {
  with_operands(z, tf32, context, [&](const auto& source, const auto& target) {
    find_row_maxima(z, source, target, statistics, static_cast<T*>(nullptr), context);
  });
}

template <class In, class E, class T = compute_t<In>>
void run_band(
    const Features<In>& z, const Statistics<T>& statistics, bool tf32, const Map<E>& out, const Context& context) {
  with_operands(z, tf32, context, [&](const auto& source, const auto& target) {
    make_columns(z, source, target, statistics, inverse_row_maxima(z, statistics, context), out, context);
  });
}

// `most` bounds the keys and the pairs sorted at once, which have 32 bits; samples go in rounds where there are more.
template <class In>
SourcesByTarget sort_by_target(
    const Features<In>& z, const int64_t* row_argmax, const Context& context, int64_t most = INT32_MAX) {
  const int64_t all = z.batch * z.sources;
  const int64_t round = std::clamp<int64_t>(most / std::max(z.sources, z.targets), 1, z.batch);
  uint32_t* keys = context.allocate_array<uint32_t>(round * z.sources);
  uint32_t* order = context.allocate_array<uint32_t>(round * z.sources);
  uint32_t* sorted_keys = context.allocate_array<uint32_t>(all);
  uint32_t* sorted_order = context.allocate_array<uint32_t>(all);
  int bits = 1;
  while (round * z.targets >> bits != 0) {
    ++bits;
  }
  void* scratch = nullptr;
  size_t scratch_bytes = 0;
  const auto sort = [&](int64_t first, int64_t count) {
    sort_pairs(
        scratch, scratch_bytes, keys, sorted_keys + first, order, sorted_order + first, count, bits, context.stream);
  };
  sort(0, round * z.sources);  // only says how much it needs
  scratch = context.allocate(static_cast<int64_t>(scratch_bytes));
  for (int64_t b = 0; b < z.batch; b += round) {
    const int64_t first = b * z.sources, count = std::min(round, z.batch - b) * z.sources;
    launch(
        best_targets_kernel, blocks_for(count), kThreads, 0, context.stream,
        BestTargetsArguments{count, z.sources, z.targets, row_argmax + first, keys, order});
    sort(first, count);
  }
  return {round, z.sources, z.targets, sorted_keys, sorted_order};
}

template <class In, class E, class Out, class T = compute_t<In>>
void run_guided_backward(
    const Features<In>& z, const Statistics<T>& statistics, bool tf32, const Map<const E>& grad,
    FeatureGrads<Out> out, const Context& context) {
  if (out.through_row_max && out.target != nullptr) {
    out.best_of = sort_by_target(z, statistics.row_argmax, context);
  }
  run_backward<true>(
      z, statistics, tf32, grad, out, context, [&](auto& x, const auto& source, const auto& target) {
        x.inverse_b = inverse_row_maxima(z, statistics, context);
        const auto columns = finish_column_sums<E>(z, source, target, statistics, x.inverse_b, grad, context);
        x.inverse_n = columns.inverse_n;
        x.slope = columns.slope;
      });
}

// The gradient through the row maxima, where bands have left it out; null for one that is not asked for.
template <class In, class Out, class T = compute_t<In>>
void run_row_max_backward(
    const Features<In>& z, const Statistics<T>& statistics, const T* beta, Out* source_grad, Out* target_grad,
    const Context& context, int64_t most = INT32_MAX) {
  if (source_grad != nullptr) {
    finish_grads<true>(plan_finish<true>(z, beta, {}, source_grad, true), statistics, context.stream);
  }
  if (target_grad != nullptr) {
    const SourcesByTarget best_of = sort_by_target(z, statistics.row_argmax, context, most);
    finish_grads<false>(plan_finish<false>(z, beta, best_of, target_grad, true), statistics, context.stream);
  }
}

}  // namespace pose_kernels
