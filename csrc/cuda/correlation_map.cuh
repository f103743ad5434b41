// The map itself: tiles of C = <z_s, z_t>, scaled where they are guided, stored once.
#pragma once

#include "cuda/map.cuh"
#include "cuda/product.cuh"

namespace pose_kernels {

// 128 targets wide; three passes have sums of their own in registers, so half as many sources at a time.
template <int Passes>
using MapTile = TileShape<2, Passes == 3 ? 2 : 4, 4>;

template <class T, class E>
struct WriteMapArguments {
  Walk walk;
  const T* inverse_b;  // guided only, as inverse_n
  const T* inverse_n;
  Map<E> out;
};

// Guided: Qhat, otherwise C itself.
template <class T, int Passes, class E, bool Guided>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor<T>)
    write_map_kernel(WriteMapArguments<T, E> x, Packed<T, Passes> source, Packed<T, Passes> target) {
  using Tile = MapTile<Passes>;
  constexpr int kParts = kTile / Tile::kRows;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int row = Tile::row(warp) + patch_row(lane), column = Tile::column(warp) + patch_column(lane);
  const Place place = place_of(x.walk, blockIdx.x);
  for (int tile = place.first * kParts; tile < place.last * kParts; ++tile) {
    T acc[Tile::MT][Tile::NT][4];
    multiply_tile<Tile>(source, target, place.b, tile, place.tile, acc);
    const int s = tile * Tile::kRows + row, t = place.tile * kTile + column;
#pragma unroll
    for (int p = 0; p < Tile::MT / 2; ++p) {
#pragma unroll
      for (int q = 0; q < Tile::NT / 2; ++q) {
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

template <bool Guided, class T, int Passes, class E>
void write_map(
    const WriteMapArguments<T, E>& x, const Packed<T, Passes>& source, const Packed<T, Passes>& target,
    Stream stream) {
  launch(write_map_kernel<T, Passes, E, Guided>, x.walk.blocks(), kThreads, 0, stream, x, source, target);
}

}  // namespace pose_kernels
