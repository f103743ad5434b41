// A map of all sources by all targets in memory, in either layout: reading and writing it in quads and 4 x 4 patches.
#pragma once

#include "cuda/launch.cuh"

namespace pose_kernels {

// A map [B, S, T] in memory, or [B, T, S] (channels-last). `whole`: rows are whole aligned quads.
template <class E>
struct Map {
  E* data;
  int outers, inners;  // lines per sample and their length
  bool channels_last, whole;
};

template <class E>
Map<E> make_map(E* data, int64_t sources, int64_t targets, bool channels_last) {
  const int64_t outers = channels_last ? targets : sources, inners = channels_last ? sources : targets;
  const bool whole = inners % 4 == 0 && reinterpret_cast<uintptr_t>(data) % alignof(Quad<std::remove_const_t<E>>) == 0;
  return {data, static_cast<int>(outers), static_cast<int>(inners), channels_last, whole};
}

// Offset of (b, outer, inner) in a map of outer x inner per sample.
HOST_DEVICE int64_t map_offset(int64_t b, int64_t outer, int64_t inner, int64_t outers, int64_t inners) {
  return (b * outers + outer) * inners + inner;
}

// The first `valid` of four neighbouring elements, zeros beyond them; all at once where rows are `whole` quads.
template <class E, class T>
DEVICE void load_four(const E* at, int valid, bool whole, T (&x)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    x[i] = 0;
  }
  if (whole) {
    if (valid > 0) {
      const Quad<E> quad = load_streaming(reinterpret_cast<const Quad<E>*>(at));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        x[i] = static_cast<T>(quad.v[i]);
      }
    }
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i < valid) {
        x[i] = static_cast<T>(at[i]);
      }
    }
  }
}

template <class E, class T>
DEVICE void store_four(E* at, int valid, bool whole, const T (&x)[4]) {
  Quad<E> quad;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    quad.v[i] = static_cast<E>(x[i]);
  }
  if (whole) {
    if (valid > 0) {
      store_streaming(reinterpret_cast<Quad<E>*>(at), quad);
    }
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i < valid) {
        at[i] = quad.v[i];
      }
    }
  }
}

// Calls f(o, address, valid elements) for the four lines of a patch.
template <class E, class F>
DEVICE void for_patch_lines(const Map<E>& map, int b, int row, int column, F&& f) {
  const int outer = map.channels_last ? column : row, inner = map.channels_last ? row : column;
  const int valid = min(map.inners - inner, 4);
  E* const first = map.data + map_offset(b, outer, inner, map.outers, map.inners);
#pragma unroll
  for (int o = 0; o < 4; ++o) {
    if (outer + o < map.outers) {
      f(o, first + int64_t{o} * map.inners, valid);
    }
  }
}

// Zeros outside the map. The layout is chosen per element: a branch around all of it costs registers.
template <class E, class T>
DEVICE void load_patch(const Map<const E>& map, int b, int row, int column, T (&value)[4][4]) {
#pragma unroll
  for (int r = 0; r < 4; ++r) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      value[r][c] = 0;
    }
  }
  for_patch_lines(map, b, row, column, [&](int o, const E* at, int valid) {
    T x[4];
    load_four(at, valid, map.whole, x);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (map.channels_last) {
        value[i][o] = x[i];
      } else {
        value[o][i] = x[i];
      }
    }
  });
}

template <class E, class T>
DEVICE void store_patch(const Map<E>& map, int b, int row, int column, const T (&value)[4][4]) {
  for_patch_lines(map, b, row, column, [&](int o, E* at, int valid) {
    T x[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      x[i] = map.channels_last ? value[i][o] : value[o][i];
    }
    store_four(at, valid, map.whole, x);
  });
}

}  // namespace pose_kernels
