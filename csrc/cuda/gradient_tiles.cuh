// From dC of a map to both small products, dz_s = dC z_t and dz_t = dC^T z_s. The map is handled in pieces: dC of one
// is made once, into scratch that stays in the L2 cache, and then multiplied with all features of either side. So the
// work is linear in the number of features, and the scratch is a constant.
//
//   map_gradient       tiles of 128 x 64 of a piece: G, guided by C, into scratch
//   feature_gradients  a block multiplies 128 positions of one side by 64 features over a run of the other side
//   add_parts          where there are several runs: their sums in order
//
// dC lies in scratch in quads of 2 x 2, sources (f, f + 8) and targets (2 t, 2 t + 1) of a fragment: what a thread has
// after the product C, and what one lane wants of dC for the one small product and, transposed, for the other. So there
// is no shared memory between the three products.
#pragma once

#include "cuda/map.cuh"
#include "cuda/product.cuh"

namespace pose_kernels {

using GradientTile = TileShape<4, 2, 4>;  // of dC: 128 x 64
constexpr int kTargetTiles = kTile / GradientTile::kColumns;  // such tiles in one of 128 x 128
constexpr int kRegion = kGroup * kGroup / 4;  // quads of 16 x 16 elements

// A block of the small products has 128 positions, 4 x 2 warps: each with a quarter of them and every other fragment of
// 8 features.
constexpr int kPositionWarps = 4, kFeatureWarps = kWarps / kPositionWarps;
constexpr int kPositionFragments = kGroups / kPositionWarps;  // of a warp
constexpr int kFeatureFragments = 4;  // of a warp
constexpr int kChunk = kFeatureWarps * kFeatureFragments;  // fragments of features of a block

// The part of a map whose dC is in scratch: samples, and tiles of 128 sources and targets.
struct Piece {
  int b, batch;
  int s_first, s_tiles, t_first, t_tiles;

  // Quads before the region of two groups of 16 positions of the piece.
  DEVICE int region(int sample, int s_group, int t_group) const {
    return ((sample * s_tiles * kGroups + s_group) * t_tiles * kGroups + t_group) * kRegion;
  }
};

template <class T, class E>
struct MapGradientArguments {
  Piece piece;
  Walk walk;  // over the piece: tiles of 128 sources, others are tiles of 64 targets
  Map<const E> grad;
  Quad<T>* dC;
  int padded_sources, padded_targets, beta_runs;
  const T* inverse_b;  // [B, padded sources]; guided only, as all that follows
  const T* inverse_n;  // [B, padded targets]
  const T* slope;  // [B, padded targets]
  T* beta_parts;  // [B, beta_runs, padded sources], pieces further along the targets add to it
};

// The small product of one side's positions.
template <class T, int Passes>
struct SmallProduct {
  Walk walk;  // over the piece: tiles of 128 of this side, others are those of the other side
  int first, first_other;  // tiles before the piece
  int padded;  // positions of this side
  Packed<T, Passes> z;  // of the other side
  T* parts;  // [runs, samples, positions of the piece, features], not read with one run
  T* sums;  // [B, padded, features], null: not wanted
  bool add;  // to the sums of pieces before
};

template <class T, int Passes>
struct FeatureGradientsArguments {
  Piece piece;
  const Quad<T>* dC;
  int features, chunks;  // fragments of 8 features, groups of kChunk of them
  int64_t source_blocks;
  SmallProduct<T, Passes> source, target;
};

// ---- dC

// G of patch q becomes dC, for the patch of C; beta of its rows is added to.
template <class T>
DEVICE void guide_gradient(
    const T (&C)[GradientTile::MT][GradientTile::NT][4], int q, const Quad<T>& scale, const Quad<T>& inverse_n,
    const Quad<T>& slope, T (&grad)[4][4], T (&beta)[4]) {
#pragma unroll
  for (int r = 0; r < 4; ++r) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const T value = patch(C, 0, q, r, c), square = value * value * scale.v[r], u = square * value;
      const T du = grad[r][c] * inverse_n.v[c] - u * slope.v[c];
      beta[r] += du * u;
      grad[r][c] = 3 * square * du;
    }
  }
}

// Guided only: what runs ahead of the products, and the summands of beta.
template <class T, class E>
struct MapGradientShared {
  PatchStages<E, GradientTile::NT / 2> grad;
  T beta[GradientTile::kWarpColumns][GradientTile::kRows];
};

// dC of a tile of 64 targets; `tile` counts from the piece's first.
template <bool Guided, class T, int Passes, class E>
DEVICE void make_tile(
    const MapGradientArguments<T, E>& x, const Packed<T, Passes>& source, const Packed<T, Passes>& target,
    const Place& place, int tile, T (&beta)[4]) {
  auto& shared = shared_memory<MapGradientShared<T, E>>();
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int row = GradientTile::row(warp), column = GradientTile::column(warp);
  const int b = x.piece.b + place.b, s_tile = x.piece.s_first + place.tile;
  const int s = s_tile * GradientTile::kRows + row + patch_row(lane);
  const auto target_of = [&](int tile_, int q) {
    return (x.piece.t_first * kTargetTiles + tile_) * GradientTile::kColumns + column + 16 * q + patch_column(lane);
  };
  if constexpr (Guided) {
    shared.grad.run_ahead(tile, place.first, place.last, [&](int next, auto& to) {
#pragma unroll
      for (int q = 0; q < GradientTile::NT / 2; ++q) {
        copy_patch(x.grad, b, s, target_of(next, q), to[q]);
      }
    });
  }
  T acc[GradientTile::MT][GradientTile::NT][4];
  if constexpr (Guided) {
    multiply_tile<GradientTile>(source, target, b, s_tile, x.piece.t_first * kTargetTiles + tile, acc);
  }
#pragma unroll
  for (int q = 0; q < GradientTile::NT / 2; ++q) {
    const int t = target_of(tile, q);
    T grad[4][4];
    if constexpr (!Guided) {
      load_patch(x.grad, b, s, t, grad);
    } else {
      read_patch(x.grad, shared.grad.wait_for(tile, place.first)[q], grad);
      const Quad<T> scale = four_of(x.inverse_b, int64_t{b} * x.padded_sources + s);
      const Quad<T> inverse_n = four_of(x.inverse_n, int64_t{b} * x.padded_targets + t);
      const Quad<T> slope = four_of(x.slope, int64_t{b} * x.padded_targets + t);
      guide_gradient(acc, q, scale, inverse_n, slope, grad, beta);
    }
    const int s_group = (made_again(place.tile) * GradientTile::kRows + row) / kGroup;
    const int t_group = (tile * GradientTile::kColumns + column) / kGroup + q;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      Quad<T>* to = x.dC + x.piece.region(place.b, s_group + i, t_group) + lane / 4 * 8 + lane % 4;
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        to[4 * j] = {{grad[2 * i][2 * j], grad[2 * i][2 * j + 1], grad[2 * i + 1][2 * j], grad[2 * i + 1][2 * j + 1]}};
      }
    }
  }
}

// A lane's summands of four rows, over lanes and the warps side by side, to the block's own place.
template <class T, class E>
DEVICE void store_beta(const MapGradientArguments<T, E>& x, const Place& place, T (&beta)[4]) {
  auto& shared = shared_memory<MapGradientShared<T, E>>();
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    beta[r] += shuffle_xor(beta[r], 1);
    beta[r] += shuffle_xor(beta[r], 2);
    if (lane % 4 == 0) {
      shared.beta[warp % GradientTile::kWarpColumns][GradientTile::row(warp) + patch_row(lane) + r] = beta[r];
    }
  }
  sync_block();
  if (threadIdx.x < GradientTile::kRows) {
    const int64_t line = int64_t{x.piece.b + place.b} * x.beta_runs + place.run;
    const int s = (x.piece.s_first + place.tile) * GradientTile::kRows + threadIdx.x;
    T& to = x.beta_parts[line * x.padded_sources + s];
    const T sum = shared.beta[0][threadIdx.x] + shared.beta[1][threadIdx.x];
    to = x.piece.t_first > 0 ? to + sum : sum;
  }
}

template <class T, int Passes, class E, bool Guided>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor<T>)
    map_gradient_kernel(MapGradientArguments<T, E> x, Packed<T, Passes> source, Packed<T, Passes> target) {
  const Place place = place_of(x.walk, blockIdx.x);
  T beta[4] = {};
  for (int tile = place.first; tile < place.last; ++tile) {
    make_tile<Guided>(x, source, target, place, tile, beta);
  }
  if constexpr (Guided) {
    store_beta(x, place, beta);
  }
}

// ---- the small products

// A quad of dC as the left operand, in parts: positions of this side are its rows.
template <bool Source, class T, int Passes>
DEVICE void split_quad(const Quad<T>& dC, T (&high)[4], T (&low)[4]) {
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const T value = dC.v[Source ? (e & 1) << 1 | e >> 1 : e];
    if constexpr (Passes == 3) {
      const Parts<T> parts = split(value);
      high[e] = parts.high;
      low[e] = parts.low;
    } else if constexpr (std::is_same_v<T, float>) {
      high[e] = nearest_tf32(value);
    } else {
      high[e] = value;
    }
  }
}

// acc += dC z for 16 positions of the other side.
template <bool Source, class T, int Passes>
DEVICE void multiply_group(
    const FeatureGradientsArguments<T, Passes>& x, const SmallProduct<T, Passes>& side, int b, int own_group,
    int group, int feature, T (&acc)[kPositionFragments][kFeatureFragments][4]) {
  constexpr int kNextStep = Packed<T, Passes>::kNextStep;
  const int lane = threadIdx.x % kWarp, g = lane / 4, t4 = lane % 4;
  T high[kPositionFragments][2][4], low[kPositionFragments][2][4];
#pragma unroll
  for (int i = 0; i < kPositionFragments; ++i) {
    const Quad<T>* dC =
        x.dC + (Source ? x.piece.region(b, own_group + i, group) : x.piece.region(b, group, own_group + i));
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int at = 4 * half + t4;
      split_quad<Source, T, Passes>(load_cached(dC + (Source ? g * 8 + at : at * 8 + g)), high[i][half], low[i][half]);
    }
  }
  const Quad<T>* from = side.z.at(x.piece.b + b, side.first_other * kGroups + group);
#pragma unroll
  for (int n = 0; n < kFeatureFragments; ++n) {
    if (feature + kFeatureWarps * n < x.features) {
      Fragment<T, Passes> z;
      z.load(from + (feature + kFeatureWarps * n) * kNextStep);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int i = 0; i < kPositionFragments; ++i) {
          multiply_parts(acc[i][n], high[i][half], low[i][half], z, half);
        }
      }
    }
  }
}

// Calls f(position, first of two features, values) for what a thread has; positions count from the tile's first.
template <bool Source, class T, class F>
DEVICE void for_feature_pairs(
    int feature, int features, const T (&acc)[kPositionFragments][kFeatureFragments][4], F&& f) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, t4 = lane % 4;
#pragma unroll
  for (int i = 0; i < kPositionFragments; ++i) {
    const int first = (warp % kPositionWarps * kPositionFragments + i) * kGroup;
#pragma unroll
    for (int n = 0; n < kFeatureFragments; ++n) {
      if (feature + kFeatureWarps * n < features) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int position = Source ? row_at(first + g + 8 * h) : column_at(first + 2 * g + h);
          const int k = (feature + kFeatureWarps * n) * kStep + 2 * t4;
          f(position, k, Pair<T>{{acc[i][n][2 * h], acc[i][n][2 * h + 1]}});
        }
      }
    }
  }
}

template <bool Source, class T, int Passes>
DEVICE void make_small_product(
    const FeatureGradientsArguments<T, Passes>& x, const SmallProduct<T, Passes>& side, int block) {
  const int warp = threadIdx.x / kWarp;
  const Place place = place_of(side.walk, block / x.chunks);
  const int feature = block % x.chunks * kChunk + warp / kPositionWarps;
  const int own_group = place.tile * kGroups + warp % kPositionWarps * kPositionFragments;
  T acc[kPositionFragments][kFeatureFragments][4] = {};
#pragma unroll 1
  for (int group = place.first * kGroups; group < place.last * kGroups; ++group) {
    multiply_group<Source>(x, side, place.b, own_group, group, feature, acc);
  }
  const bool whole = side.walk.runs == 1;
  const int64_t line = whole
      ? int64_t{x.piece.b + place.b} * side.padded + (side.first + place.tile) * kTile
      : ((int64_t{place.run} * side.walk.batch + place.b) * side.walk.tiles + place.tile) * kTile;
  T* const to = whole ? side.sums : side.parts;
  for_feature_pairs<Source>(feature, x.features, acc, [&](int position, int k, Pair<T> sum) {
    Pair<T>& at = reinterpret_cast<Pair<T>&>(to[(line + position) * x.features * kStep + k]);
    if (whole && side.add) {
      sum.v[0] += at.v[0];
      sum.v[1] += at.v[1];
    }
    at = sum;
  });
}

template <class T, int Passes>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor<T>)
    feature_gradients_kernel(FeatureGradientsArguments<T, Passes> x) {
  if (blockIdx.x < x.source_blocks) {
    make_small_product<true>(x, x.source, blockIdx.x);
  } else {
    make_small_product<false>(x, x.target, static_cast<int>(blockIdx.x - x.source_blocks));
  }
}

// A thread per quad of features of a position of the piece.
template <class T>
struct AddPartsArguments {
  Walk walk;
  int b, first, padded, quads;
  const T* parts;
  T* sums;
  bool add;
};

template <class T>
__global__ void __launch_bounds__(kThreads) add_parts_kernel(AddPartsArguments<T> x) {
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x, lines = int64_t{x.walk.tiles} * kTile;
  const int64_t count = x.walk.batch * lines * x.quads;
  if (index >= count) {
    return;
  }
  const int64_t quad = index % x.quads, line = index / x.quads % lines, b = x.b + index / x.quads / lines;
  Quad<T>& to = reinterpret_cast<Quad<T>*>(x.sums)[(b * x.padded + x.first * kTile + line) * x.quads + quad];
  Quad<T> sum = x.add ? to : Quad<T>{};
  for (int run = 0; run < x.walk.runs; ++run) {
    const Quad<T> part = four_of(x.parts, (run * count + index) * 4);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      sum.v[e] += part.v[e];
    }
  }
  to = sum;
}

}  // namespace pose_kernels
