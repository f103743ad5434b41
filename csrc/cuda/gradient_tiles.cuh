// dC of a map in tiles, never stored, and out of each tile both small products, dz_s = dC z_t and dz_t = dC^T z_s.
#pragma once

#include "cuda/map.cuh"
#include "cuda/product.cuh"

namespace pose_kernels {

using GradientTile = TileShape<4, 2, 4>;  // of dC: 128 x 64

// Out of a tile of dC 4 x 2 warps make both small products: each for its quarter of the positions, every other
// fragment of features.
template <class T>
struct GradientShape {
  static constexpr int kChunk = sizeof(T) == 4 ? 6 : 4;  // fragments of features whose gradients one block sums
  static constexpr int kFeatureWarps = 2, kPositionWarps = kWarps / kFeatureWarps;
  static constexpr int kFeatures = kChunk / kFeatureWarps;  // fragments of a warp
  static constexpr int kSources = GradientTile::kRows / kPositionWarps / 16;  // fragments of a warp
  static constexpr int kTargets = GradientTile::kColumns / kPositionWarps;
};

template <class T>
struct BackwardShared {
  // No bank conflicts along rows (8-byte loads) nor columns.
  static constexpr int kPitch = GradientTile::kColumns + 8;

  T dC[GradientTile::kRows][kPitch];  // as the fragments number rows and columns
  T beta[GradientTile::kWarpColumns][GradientTile::kRows];
  int source_run, target_run, s_first;  // of the block: registers are short

  DEVICE Pair<T>& pair(int row, int column) {
    return reinterpret_cast<Pair<T>&>(dC[row][column]);
  }
};

template <class T, class E>
struct BackwardArguments {
  int batch;
  int source_tiles, source_runs, target_tiles, target_runs;  // of 128 sources, of 64 targets
  int padded_sources, padded_targets;
  int features;  // fragments of 8 features
  int chunks;  // of kChunk such fragments
  Map<const E> grad;
  const T* inverse_b;  // [B, padded sources]; guided only, as the next two
  const T* inverse_n;  // [B, padded targets]
  const T* slope;  // [B, padded targets]
  T* source_parts;  // [B, target runs, padded sources, 8 features], null: not wanted
  T* target_parts;  // [B, source runs, padded targets, 8 features], null: not wanted
  T* beta_parts;  // [B, target runs, padded sources]
};

template <class T, int Passes>
struct GradientOperands {
  Packed<T, Passes> source, target, from_source, from_target;
};

// The tiles of sources and of targets that a block owns, and its features.
struct Area {
  int b, source_run, target_run;
  int s_first, s_last, t_first, t_last;
  int first_feature, features;  // fragments
};

template <class T, class E>
DEVICE Area area_of(const BackwardArguments<T, E>& x, int block) {
  Area area;
  area.first_feature = block % x.chunks * GradientShape<T>::kChunk;
  area.features = min(GradientShape<T>::kChunk, x.features - area.first_feature);
  block /= x.chunks;
  area.target_run = block % x.target_runs;
  block /= x.target_runs;
  area.source_run = block % x.source_runs;
  area.b = block / x.source_runs;
  area.s_first = int64_t{x.source_tiles} * area.source_run / x.source_runs;
  area.s_last = int64_t{x.source_tiles} * (area.source_run + 1) / x.source_runs;
  area.t_first = int64_t{x.target_tiles} * area.target_run / x.target_runs;
  area.t_last = int64_t{x.target_tiles} * (area.target_run + 1) / x.target_runs;
  return area;
}

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

// dC of a tile into shared memory; beta is kept there too, for registers are all in use.
template <bool Guided, class T, int Passes, class E>
DEVICE void make_tile(
    const BackwardArguments<T, E>& x, const Packed<T, Passes>& source, const Packed<T, Passes>& target, int b,
    int s_tile, int t_tile, BackwardShared<T>& shared) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, t4 = lane % 4;
  const int row = GradientTile::row(warp), column = GradientTile::column(warp);
  const int s = s_tile * GradientTile::kRows + row + patch_row(lane);
  T beta[4] = {};
  T acc[GradientTile::MT][GradientTile::NT][4];
  if constexpr (Guided) {
    multiply_tile<GradientTile>(source, target, b, s_tile, t_tile, acc);
  }
#pragma unroll
  for (int q = 0; q < GradientTile::NT / 2; ++q) {
    const int t = t_tile * GradientTile::kColumns + column + 16 * q + patch_column(lane);
    T grad[4][4];
    load_patch(x.grad, b, s, t, grad);
    if constexpr (Guided) {
      const Quad<T> scale = four_of(x.inverse_b, int64_t{b} * x.padded_sources + s);
      const Quad<T> inverse_n = four_of(x.inverse_n, int64_t{b} * x.padded_targets + t);
      const Quad<T> slope = four_of(x.slope, int64_t{b} * x.padded_targets + t);
      guide_gradient(acc, q, scale, inverse_n, slope, grad, beta);
    }
#pragma unroll
    for (int r = 0; r < 4; ++r) {
#pragma unroll
      for (int c = 0; c < 4; c += 2) {
        Pair<T>& to = shared.pair(row + 16 * (r / 2) + 8 * (r % 2) + g, column + 16 * q + 8 * (c / 2) + 2 * t4);
        to.v[0] = grad[r][c];
        to.v[1] = grad[r][c + 1];
      }
    }
  }
  if constexpr (Guided) {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      beta[r] += shuffle_xor(beta[r], 1);
      beta[r] += shuffle_xor(beta[r], 2);
      if (t4 == 0) {
        shared.beta[warp % GradientTile::kWarpColumns][row + 4 * g + r] += beta[r];
      }
    }
  }
}

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
    T (&acc)[4], const T (&high)[4], const T (&low)[4], const Fragment<T, Passes>& b, int half) {
  matrix_multiply_add(acc, high, b.high.v[2 * half], b.high.v[2 * half + 1]);
  if constexpr (Passes == 3) {
    matrix_multiply_add(acc, high, b.low.v[2 * half], b.low.v[2 * half + 1]);
    matrix_multiply_add(acc, low, b.high.v[2 * half], b.high.v[2 * half + 1]);
  }
}

// dz_s += dC z_t of a tile: 32 sources a warp.
template <class T, int Passes>
DEVICE void add_source_product(
    const Packed<T, Passes>& from_target, const Area& area, int t_tile, BackwardShared<T>& shared,
    T (&dz_s)[GradientShape<T>::kSources][GradientShape<T>::kFeatures][4]) {
  using Shape = GradientShape<T>;
  constexpr int kNextStep = Packed<T, Passes>::kNextStep, kTileGroups = GradientTile::kColumns / kGroup;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, t4 = lane % 4;
#pragma unroll 1
  for (int step = 0; step < kTileGroups; ++step) {
    const Quad<T>* from = from_target.at(area.b, t_tile * kTileGroups + step) + area.first_feature * kNextStep;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      T high[Shape::kSources][4], low[Shape::kSources][4];
#pragma unroll
      for (int i = 0; i < Shape::kSources; ++i) {
        const int at = (warp % Shape::kPositionWarps * Shape::kSources + i) * 16 + g;
        const int c = kGroup * step + 8 * half + 2 * t4;
        const Pair<T> upper = shared.pair(at, c), lower = shared.pair(at + 8, c);
        const T a[4] = {upper.v[0], lower.v[0], upper.v[1], lower.v[1]};
        split_fragment<T, Passes>(a, high[i], low[i]);
      }
#pragma unroll
      for (int n = 0; n < Shape::kFeatures; ++n) {
        const int feature = Shape::kFeatureWarps * n + warp / Shape::kPositionWarps;
        if (feature < area.features) {
          Fragment<T, Passes> z;
          z.load(from + feature * kNextStep);
#pragma unroll
          for (int i = 0; i < Shape::kSources; ++i) {
            multiply_small(dz_s[i][n], high[i], low[i], z, half);
          }
        }
      }
    }
  }
}

// dz_t = dC^T z_s of a tile: 16 targets a warp.
template <class T, int Passes>
DEVICE void make_target_product(
    const Packed<T, Passes>& from_source, const Area& area, int s_tile, const BackwardShared<T>& shared,
    T (&dz_t)[GradientShape<T>::kFeatures][4]) {
  using Shape = GradientShape<T>;
  constexpr int kNextStep = Packed<T, Passes>::kNextStep;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, t4 = lane % 4;
#pragma unroll 1
  for (int step = 0; step < kGroups; ++step) {
    const Quad<T>* from = from_source.at(area.b, s_tile * kGroups + step) + area.first_feature * kNextStep;
    T high[2][4], low[2][4];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int at = kGroup * step + 8 * half + t4, c = warp % Shape::kPositionWarps * Shape::kTargets + g;
      const T a[4] = {shared.dC[at][c], shared.dC[at][c + 8], shared.dC[at + 4][c], shared.dC[at + 4][c + 8]};
      split_fragment<T, Passes>(a, high[half], low[half]);
    }
#pragma unroll
    for (int n = 0; n < Shape::kFeatures; ++n) {
      const int feature = Shape::kFeatureWarps * n + warp / Shape::kPositionWarps;
      if (feature < area.features) {
        Fragment<T, Passes> z;
        z.load(from + feature * kNextStep);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          multiply_small(dz_t[n], high[half], low[half], z, half);
        }
      }
    }
  }
}

// Calls f(n, h, feature) for the pairs of features of row g + 8 h that a thread has in fragment n of a small product.
template <class T, class F>
DEVICE void for_feature_pairs(const Area& area, F&& f) {
  using Shape = GradientShape<T>;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, t4 = lane % 4;
#pragma unroll
  for (int n = 0; n < Shape::kFeatures; ++n) {
    const int fragment = Shape::kFeatureWarps * n + warp / Shape::kPositionWarps;
    if (fragment < area.features) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        f(n, h, area.first_feature + fragment, 2 * t4);
      }
    }
  }
}

// To the block's own part, which only the same thread ever reads again.
template <class T, class E>
DEVICE void add_to_target_parts(
    const BackwardArguments<T, E>& x, const Area& area, int s_tile, int t_tile, const BackwardShared<T>& shared,
    const T (&dz_t)[GradientShape<T>::kFeatures][4]) {
  using Shape = GradientShape<T>;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4;
  for_feature_pairs<T>(area, [&](int n, int h, int fragment, int k) {
    const int at = warp % Shape::kPositionWarps * Shape::kTargets + g + 8 * h;
    const int t = t_tile * GradientTile::kColumns + column_at(at);
    const int64_t line = (int64_t{area.b} * x.source_runs + shared.source_run) * x.padded_targets + t;
    Pair<T>& to = reinterpret_cast<Pair<T>&>(x.target_parts[(line * x.features + fragment) * 8 + k]);
    Pair<T> sum{{dz_t[n][2 * h], dz_t[n][2 * h + 1]}};
    if (s_tile != shared.s_first) {
      const Pair<T> before = to;
      sum.v[0] += before.v[0];
      sum.v[1] += before.v[1];
    }
    to = sum;
  });
}

template <class T, class E>
DEVICE void store_source_parts(
    const BackwardArguments<T, E>& x, const Area& area, int s_tile, const BackwardShared<T>& shared,
    const T (&dz_s)[GradientShape<T>::kSources][GradientShape<T>::kFeatures][4]) {
  using Shape = GradientShape<T>;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, t4 = lane % 4;
#pragma unroll
  for (int i = 0; i < Shape::kSources; ++i) {
#pragma unroll
    for (int n = 0; n < Shape::kFeatures; ++n) {
      const int feature = Shape::kFeatureWarps * n + warp / Shape::kPositionWarps;
      if (feature < area.features) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int at = (warp % Shape::kPositionWarps * Shape::kSources + i) * 16 + g + 8 * h;
          const int s = s_tile * GradientTile::kRows + row_at(at);
          const int64_t line = (int64_t{area.b} * x.target_runs + shared.target_run) * x.padded_sources + s;
          Pair<T>& to = reinterpret_cast<Pair<T>&>(
              x.source_parts[(line * x.features + area.first_feature + feature) * 8 + 2 * t4]);
          to = {{dz_s[i][n][2 * h], dz_s[i][n][2 * h + 1]}};
        }
      }
    }
  }
}

// A block owns some tiles of sources by some of targets. Per tile of sources it walks along the targets with the
// source gradient in registers; the target gradient of the whole area is summed in the block's part of target_parts.
template <class T, int Passes, class E, bool Guided>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor<T>)
    backward_kernel(BackwardArguments<T, E> x, GradientOperands<T, Passes> z) {
  using Shape = GradientShape<T>;
  BackwardShared<T>& shared = shared_memory<BackwardShared<T>>();
  const Area area = area_of(x, blockIdx.x);
  if (threadIdx.x == 0) {
    shared.source_run = area.source_run;
    shared.target_run = area.target_run;
    shared.s_first = area.s_first;
  }
  for (int s_tile = area.s_first; s_tile < area.s_last; ++s_tile) {
    if constexpr (Guided) {
      if (threadIdx.x < GradientTile::kRows) {  // who reads them at the end
        shared.beta[0][threadIdx.x] = shared.beta[1][threadIdx.x] = 0;
      }
    }
    sync_block();
    T dz_s[Shape::kSources][Shape::kFeatures][4] = {};
    for (int t_tile = area.t_first; t_tile < area.t_last; ++t_tile) {
      make_tile<Guided>(x, z.source, z.target, area.b, s_tile, t_tile, shared);
      sync_block();
      if (x.source_parts != nullptr) {
        add_source_product(z.from_target, area, t_tile, shared, dz_s);
      }
      if (x.target_parts != nullptr) {
        T dz_t[Shape::kFeatures][4] = {};
        make_target_product(z.from_source, area, s_tile, shared, dz_t);
        add_to_target_parts(x, area, s_tile, t_tile, shared, dz_t);
      }
      sync_block();
    }
    if (x.source_parts != nullptr) {
      store_source_parts(x, area, s_tile, shared, dz_s);
    }
    if constexpr (Guided) {
      if (area.first_feature == 0 && threadIdx.x < GradientTile::kRows) {
        const int64_t line = int64_t{area.b} * x.target_runs + shared.target_run;
        x.beta_parts[line * x.padded_sources + s_tile * GradientTile::kRows + threadIdx.x] =
            shared.beta[0][threadIdx.x] + shared.beta[1][threadIdx.x];
      }
    }
  }
}

}  // namespace pose_kernels
