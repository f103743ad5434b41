// Products with a map that is made in tiles of shared memory and never stored: out(r, f) = sum_c X(r, c) W(c, f).
//
// A block owns 64 positions of one side, the rows, and walks over the other side, the columns, some 256 at a time. It
// makes their X once, for all features f: C by the product of product.cuh, in the backward g by another one, and what
// the equations make of them. Then X is multiplied with W, 128 features at a time, and the product is added to the
// block's own part in scratch, which only the same thread reads again: no atomics, and the work is linear in the number
// of features. Sources or targets may be the rows, as C is the product of either with the other.
//
// X is unnormalised (u, u^2): TF32 has the range of float32, so that no scale is needed, and its 10 bits of mantissa are
// what 16-bit features can use. For float32 X is cut into high and low parts as it is read. Then every 16 columns are
// summed from zero, low products first, and added in float32: long sums stay out of the tensor cores.
#pragma once

#include <cstring>

#include "cuda/product.cuh"

namespace pose_kernels {

using SweepTile = TileShape<2, 2, 4>;  // of X: 64 x 128

// Of the product with W: a warp has 32 rows and every fourth fragment of 8 features.
constexpr int kRowFragments = 2, kFeatureColumns = SweepTile::kWarpColumns;

template <class T>
constexpr int kTilesAtOnce = sizeof(T) == 4 ? 2 : 1;  // side by side in shared memory

template <class T>
constexpr int kSweepColumns = kTilesAtOnce<T> * SweepTile::kColumns;

template <class T>
struct SweepShared {
  static constexpr int kPitch = kSweepColumns<T> + 8;  // no bank conflicts along rows, 8 bytes a lane

  T X[SweepTile::kRows][kPitch];  // as the fragments number rows and columns
  T sums[SweepTile::kWarpColumns][SweepTile::kRows];  // these and the block's place are here, for registers are short
  Place place;

  DEVICE Pair<T>& pair(int row, int column) {
    return reinterpret_cast<Pair<T>&>(X[row][column]);
  }
};

// Packed features, the same for all samples where `common`.
template <class T, int Passes>
struct Operand {
  Packed<T, Passes> packed;
  bool common;

  DEVICE const Quad<T>* at(int b, int group) const {
    return packed.at(common ? 0 : b, group);
  }
};

template <class T, int Passes>
struct Sweep {
  Walk walk;  // tiles of 64 rows; others are kSweepColumns columns
  int column_tiles;  // of 128
  Operand<T, Passes> rows, columns;  // the features that C is made of
  Operand<T, kComputed<Passes>> weights;  // W, packed as kFromColumns
  int features;  // fragments of 8 features of W, 0: no product is wanted
  T* parts;  // [B, runs, 64 tiles, 8 features]
  T* sums;  // [B, runs, padded rows]: of a number per element of X; null: not wanted

  // Tiles of columns of a turn of a block.
  DEVICE int tiles_at(int turn) const {
    return min(kTilesAtOnce<T>, column_tiles - turn * kTilesAtOnce<T>);
  }
  DEVICE int64_t padded_rows() const {
    return round_up(int64_t{walk.tiles} * SweepTile::kRows, kTile);
  }
  DEVICE int64_t padded_columns() const {
    return int64_t{column_tiles} * kTile;
  }
};

// What X is made of besides C. Arrays are [B, padded positions], 0 in the padding.
template <class T>
struct ReadoutScales {
  int power;
  const T* inverse_b;
  const T* weight;  // of the targets: 1 / n^power; unused forward, which divides at the end
};

template <class T, int Passes>
struct GradientTerms {
  int power;
  const T* inverse_b;
  const T* weight;
  const T* slope;  // of the targets: D / n^2, 0 where n is at its floor
  Operand<T, Passes> rows, columns;  // v and G, the features that g is made of
};

// ---- X, a tile of 64 x 128

// This warp's part of the tile (row_tile, column_tile) of a product.
template <class T, int Passes>
DEVICE void multiply_operands(
    const Operand<T, Passes>& rows, const Operand<T, Passes>& columns, int b, int row_tile, int column_tile,
    T (&acc)[SweepTile::MT][SweepTile::NT][4]) {
  const int warp = threadIdx.x / kWarp;
  const int row = SweepTile::row(warp) / kGroup, column = SweepTile::column(warp) / kGroup;
  multiply<T, Passes, SweepTile::MT, SweepTile::NT>(
      rows.at(b, row_tile * (SweepTile::kRows / kGroup) + row), columns.at(b, column_tile * kGroups + column),
      rows.packed.steps, acc);
}

// Where this thread's patches of a tile lie in arrays of positions.
struct PatchPlace {
  int64_t row, column;  // of patch 0; patch q lies 16 q columns further

  template <class T, int Passes>
  DEVICE PatchPlace(const Sweep<T, Passes>& x, const Place& place, int column_tile) {
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    row = place.b * x.padded_rows() + place.tile * SweepTile::kRows + SweepTile::row(warp) + patch_row(lane);
    column = place.b * x.padded_columns() + int64_t{column_tile} * kTile + SweepTile::column(warp) + patch_column(lane);
  }
};

// Calls f(r, c, pair) for the pairs of elements (r, c), (r, c + 1) of patch q of a tile whose columns begin at `first`
// in shared memory. They lie as the product with W wants them, and only one thread touches them before a barrier.
template <class T, class F>
DEVICE void for_pairs_of_patch(SweepShared<T>& shared, int first, int q, F&& f) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, t4 = lane % 4;
  const int row = SweepTile::row(warp) + g, column = first + SweepTile::column(warp) + 16 * q + 2 * t4;
#pragma unroll
  for (int r = 0; r < 4; ++r) {
#pragma unroll
    for (int c = 0; c < 4; c += 2) {
      f(r, c, shared.pair(row + 16 * (r / 2) + 8 * (r % 2), column + 8 * (c / 2)));
    }
  }
}

template <int Passes, class T>
DEVICE void store_patch_of_X(SweepShared<T>& shared, int first, int q, const T (&value)[4][4]) {
  for_pairs_of_patch(shared, first, q, [&](int r, int c, Pair<T>& to) {
    if constexpr (Passes == 1 && std::is_same_v<T, float>) {
      to = {{nearest_tf32(value[r][c]), nearest_tf32(value[r][c + 1])}};
    } else {
      to = {{value[r][c], value[r][c + 1]}};
    }
  });
}

// Calls f(r, sum) for the four rows of this thread's patches, whose sums one of four lanes keeps.
template <class T, class F>
DEVICE void for_row_sums(SweepShared<T>& shared, F&& f) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  if (lane % 4 == 0) {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      f(r, shared.sums[warp % SweepTile::kWarpColumns][SweepTile::row(warp) + patch_row(lane) + r]);
    }
  }
}

template <class T>
DEVICE void add_row_sums(SweepShared<T>& shared, T (&sums)[4]) {
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    sums[r] += shuffle_xor(sums[r], 1);
    sums[r] += shuffle_xor(sums[r], 2);
  }
  for_row_sums(shared, [&](int r, T& to) { to += sums[r]; });
}

// Rows are targets: X = u^power, and sums of u^2. Rows are sources: X = Qhat^power.
template <bool TargetRows, class T, int Passes>
DEVICE void make_readout_tile(
    const Sweep<T, Passes>& x, const ReadoutScales<T>& y, const Place& place, int column_tile, int first,
    SweepShared<T>& shared) {
  T sums[4] = {};
  T C[SweepTile::MT][SweepTile::NT][4];
  multiply_operands(x.rows, x.columns, place.b, place.tile, column_tile, C);
  const PatchPlace at(x, place, column_tile);
  Quad<T> row_scale;
  if constexpr (!TargetRows) {
    row_scale = four_of(y.inverse_b, at.row);
  }
#pragma unroll
  for (int q = 0; q < SweepTile::NT / 2; ++q) {
    const Quad<T> column_scale = four_of(TargetRows ? y.inverse_b : y.weight, at.column + 16 * q);
    T value[4][4];
#pragma unroll
    for (int r = 0; r < 4; ++r) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const T correlation = patch(C, 0, q, r, c);
        const T u = correlation * correlation * (correlation * (TargetRows ? column_scale.v[c] : row_scale.v[r]));
        const T power = y.power == 1 ? u : u * u;
        if constexpr (TargetRows) {
          sums[r] += u * u;
        }
        value[r][c] = TargetRows ? power : power * column_scale.v[c];
      }
    }
    store_patch_of_X<kComputed<Passes>>(shared, first, q, value);
  }
  if constexpr (TargetRows) {
    add_row_sums(shared, sums);
  }
}

// X = dC = 3 C^2 du / b. Rows are sources: sums of u du, which beta is made of.
template <bool SourceRows, class T, int Passes>
DEVICE void make_gradient_tile(
    const Sweep<T, Passes>& x, const GradientTerms<T, Passes>& y, const Place& place, int column_tile, int first,
    SweepShared<T>& shared) {
  T sums[4] = {};
  T acc[SweepTile::MT][SweepTile::NT][4];
  multiply_operands(x.rows, x.columns, place.b, place.tile, column_tile, acc);
#pragma unroll
  for (int q = 0; q < SweepTile::NT / 2; ++q) {  // C waits where X will be: registers are short
    for_pairs_of_patch(shared, first, q, [&](int r, int c, Pair<T>& to) {
      to = {{patch(acc, 0, q, r, c), patch(acc, 0, q, r, c + 1)}};
    });
  }
  multiply_operands(y.rows, y.columns, place.b, place.tile, column_tile, acc);  // g
  const PatchPlace at(x, place, column_tile);
#pragma unroll
  for (int q = 0; q < SweepTile::NT / 2; ++q) {
    const int64_t column = at.column + 16 * q;
    const Quad<T> inverse_b = four_of(y.inverse_b, SourceRows ? at.row : column);
    const Quad<T> weight = four_of(y.weight, SourceRows ? column : at.row);
    const Quad<T> slope = four_of(y.slope, SourceRows ? column : at.row);
    T value[4][4];
    for_pairs_of_patch(shared, first, q, [&](int r, int c, const Pair<T>& C) {
      value[r][c] = C.v[0];
      value[r][c + 1] = C.v[1];
    });
#pragma unroll
    for (int r = 0; r < 4; ++r) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const int s = SourceRows ? r : c, t = SourceRows ? c : r;
        const T C = value[r][c], square = C * C * inverse_b.v[s], u = square * C;
        const T direct = patch(acc, 0, q, r, c) * weight.v[t];
        const T du = y.power == 1 ? direct - u * slope.v[t] : 2 * u * (direct - slope.v[t]);
        if constexpr (SourceRows) {
          sums[r] += du * u;
        }
        value[r][c] = 3 * square * du;
      }
    }
    store_patch_of_X<kComputed<Passes>>(shared, first, q, value);
  }
  if constexpr (SourceRows) {
    add_row_sums(shared, sums);
  }
}

// ---- X W

// Rounded half up, three instructions; of the low part, 12 bits, the tensor cores read 11. Infinity becomes NaN, as it
// does in the equations: a column with an infinite u has an infinite norm.
DEVICE Parts<float> split_quickly(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof(bits));
  bits = (bits + 0x1000u) & ~0x1fffu;
  float high;
  memcpy(&high, &bits, sizeof(high));
  return {high, x - high};
}

// The left operand: 16 rows by 16 columns of X, in parts.
template <class T, int Passes>
struct LeftFragments {
  T high[2][4], low[2][4];

  DEVICE void load(SweepShared<T>& shared, int row, int column) {
    const int lane = threadIdx.x % kWarp, g = lane / 4, t4 = lane % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int at = row + g, c = column + 8 * half + 2 * t4;
      const Pair<T> upper = shared.pair(at, c), lower = shared.pair(at + 8, c);
      const T a[4] = {upper.v[0], lower.v[0], upper.v[1], lower.v[1]};
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if constexpr (Passes == 3) {
          const Parts<T> parts = split_quickly(a[e]);
          high[half][e] = parts.high;
          low[half][e] = parts.low;
        } else {
          high[half][e] = a[e];
        }
      }
    }
  }
};

// acc += 16 rows by 16 columns of X times 8 features of W.
template <class T, int Passes>
DEVICE void multiply_left(const LeftFragments<T, Passes>& left, const Fragment<T, Passes>& w, T (&acc)[4]) {
  if constexpr (Passes == 3) {
    T sum[4] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      matrix_multiply_add(sum, left.low[half], w.high.v[2 * half], w.high.v[2 * half + 1]);
      matrix_multiply_add(sum, left.high[half], w.low.v[2 * half], w.low.v[2 * half + 1]);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      matrix_multiply_add(sum, left.high[half], w.high.v[2 * half], w.high.v[2 * half + 1]);
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      acc[e] += sum[e];
    }
  } else {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      matrix_multiply_add(acc, left.high[half], w.high.v[2 * half], w.high.v[2 * half + 1]);
    }
  }
}

// acc += X W of 32 rows, 16 columns, and N fragments of features.
template <int Passes, int N, class T>
DEVICE void multiply_group(
    const Quad<T>* from, SweepShared<T>& shared, int row, int column, T (&acc)[kRowFragments][N][4]) {
  Fragment<T, Passes> w[N];
#pragma unroll
  for (int n = 0; n < N; ++n) {
    w[n].load(from + kFeatureColumns * n * Packed<T, Passes>::kNextStep);
  }
#pragma unroll
  for (int i = 0; i < kRowFragments; ++i) {
    LeftFragments<T, Passes> left;
    left.load(shared, row + 16 * i, column);
#pragma unroll
    for (int n = 0; n < N; ++n) {
      multiply_left(left, w[n], acc[i][n]);
    }
  }
}

// acc += X W of this warp's rows, all columns, and N of its fragments of features.
template <int N, class T, int Passes>
DEVICE void multiply_weights(
    const Sweep<T, Passes>& x, int b, int turn, int feature, SweepShared<T>& shared,
    T (&acc)[kRowFragments][N][4]) {
  using W = Packed<T, kComputed<Passes>>;
  const int row = SweepTile::row(threadIdx.x / kWarp);
#pragma unroll 1
  for (int i = 0; i < x.tiles_at(turn); ++i) {
    const Quad<T>* from =
        x.weights.at(b, (turn * kTilesAtOnce<T> + i) * kGroups) + int64_t{feature} * W::kNextStep;
#pragma unroll 1
    for (int column = i * kTile; column < (i + 1) * kTile; column += kGroup) {
      multiply_group<kComputed<Passes>>(from, shared, row, column, acc);
      from += W::kNext;
    }
  }
}

// To the block's own part; `begin`: nothing is there yet.
template <int N, class T, int Passes>
DEVICE void add_to_parts(
    const Sweep<T, Passes>& x, const Place& place, bool begin, int feature, const T (&acc)[kRowFragments][N][4]) {
  const int lane = threadIdx.x % kWarp, g = lane / 4, t4 = lane % 4;
  const int64_t block = (int64_t{place.b} * x.walk.runs + place.run) * x.walk.tiles + place.tile;
#pragma unroll
  for (int i = 0; i < kRowFragments; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = row_at(SweepTile::row(threadIdx.x / kWarp) + 16 * i + g + 8 * h);
      T* const line = x.parts + ((block * SweepTile::kRows + row) * x.features + feature) * kStep + 2 * t4;
#pragma unroll
      for (int n = 0; n < N; ++n) {
        Pair<T>& to = reinterpret_cast<Pair<T>&>(line[kFeatureColumns * n * kStep]);
        Pair<T> sum{{acc[i][n][2 * h], acc[i][n][2 * h + 1]}};
        if (!begin) {
          const Pair<T> before = to;
          sum.v[0] += before.v[0];
          sum.v[1] += before.v[1];
        }
        to = sum;
      }
    }
  }
}

// From this warp's fragment `feature` on, as long as N of them are left.
template <int N, class T, int Passes>
DEVICE void add_products(
    const Sweep<T, Passes>& x, const Place& place, int turn, int& feature, SweepShared<T>& shared) {
#pragma unroll 1
  for (; feature + kFeatureColumns * (N - 1) < x.features; feature += kFeatureColumns * N) {
    T acc[kRowFragments][N][4] = {};
    multiply_weights<N>(x, place.b, turn, feature, shared, acc);
    add_to_parts<N>(x, place, turn == place.first, feature, acc);
  }
}

// ---- kernels

template <class T, int Passes>
DEVICE const Place& begin_sweep(const Sweep<T, Passes>& x, SweepShared<T>& shared) {
  if (threadIdx.x == 0) {
    shared.place = place_of(x.walk, blockIdx.x);
  }
  for_row_sums(shared, [](int, T& sum) { sum = 0; });
  sync_block();
  return shared.place;
}

// make(tile of columns, where in shared memory) for all columns of a block's run, and products with W of what it made.
template <class T, int Passes, class Make>
DEVICE void walk_columns(const Sweep<T, Passes>& x, const Place& place, SweepShared<T>& shared, Make&& make) {
#pragma unroll 1
  for (int turn = place.first; turn < place.last; ++turn) {
#pragma unroll 1
    for (int i = 0; i < x.tiles_at(turn); ++i) {
      make(turn * kTilesAtOnce<T> + i, i * kTile);
    }
    sync_block();
    int feature = threadIdx.x / kWarp % kFeatureColumns;
    add_products<4>(x, place, turn, feature, shared);
    add_products<2>(x, place, turn, feature, shared);
    add_products<1>(x, place, turn, feature, shared);
    sync_block();
  }
}

template <class T, int Passes>
DEVICE void store_row_sums(const Sweep<T, Passes>& x, const Place& place, const SweepShared<T>& shared) {
  const int row = threadIdx.x;
  if (row < SweepTile::kRows) {
    const int64_t line = int64_t{place.b} * x.walk.runs + place.run;
    x.sums[line * x.padded_rows() + place.tile * SweepTile::kRows + row] =
        shared.sums[0][row] + shared.sums[1][row] + (shared.sums[2][row] + shared.sums[3][row]);
  }
}

template <class T, int Passes, bool TargetRows>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor<T>)
    readout_kernel(Sweep<T, Passes> x, ReadoutScales<T> y) {
  SweepShared<T>& shared = shared_memory<SweepShared<T>>();
  const Place& place = begin_sweep(x, shared);
  walk_columns(x, place, shared, [&](int column_tile, int first) {
    make_readout_tile<TargetRows>(x, y, place, column_tile, first, shared);
  });
  if constexpr (TargetRows) {
    store_row_sums(x, place, shared);
  }
}

template <class T, int Passes, bool SourceRows>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor<T>)
    readout_gradient_kernel(Sweep<T, Passes> x, GradientTerms<T, Passes> y) {
  SweepShared<T>& shared = shared_memory<SweepShared<T>>();
  const Place& place = begin_sweep(x, shared);
  walk_columns(x, place, shared, [&](int column_tile, int first) {
    make_gradient_tile<SourceRows>(x, y, place, column_tile, first, shared);
  });
  if constexpr (SourceRows) {
    store_row_sums(x, place, shared);
  }
}

// ---- calls

// Blocks that fill a GPU, and no more parts than that takes. What a sweep computes with is for the caller.
template <class T, int Passes>
Sweep<T, Passes> plan_sweep(int64_t batch, int64_t rows, int64_t columns) {
  const int64_t tiles = ceil_div(rows, SweepTile::kRows), others = ceil_div(columns, kSweepColumns<T>);
  const int64_t runs = std::clamp<int64_t>(ceil_div(enough(512), std::max<int64_t>(1, batch * tiles)), 1, others);
  Sweep<T, Passes> x{};
  x.walk = {static_cast<int>(batch), static_cast<int>(tiles), static_cast<int>(others), static_cast<int>(runs)};
  x.column_tiles = static_cast<int>(ceil_div(columns, kTile));
  return x;
}

}  // namespace pose_kernels
