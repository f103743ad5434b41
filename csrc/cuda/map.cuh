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

// Lines of a tile's patches on their way to the thread that wants them, through shared memory: two tiles at a time, the
// second one while the first is worked on. Each thread has places of its own, so that there is no barrier; neighbouring
// threads have neighbouring ones. Doubles, which take twice the room, are copied while their own tile is multiplied.
template <class E, int Patches>
struct PatchStages {
  static constexpr int kStages = sizeof(E) > 4 ? 1 : 2;

  Quad<E> lines[kStages][Patches][4][kThreads];

  // At the top of a loop from `first` to `last`: copy(tile, its patches) for what is not on its way yet.
  template <class Copy>
  DEVICE void run_ahead(int tile, int first, int last, Copy&& copy) {
    if (kStages == 1 || tile == first) {
      copy(tile, lines[(tile - first) % kStages]);
      commit_copies();
    }
    if (kStages == 2) {
      if (tile + 1 < last) {
        copy(tile + 1, lines[(tile - first + 1) % kStages]);
      }
      commit_copies();  // of nothing after the last one, so that groups can be counted
    }
  }
  // The patches of a tile, once they are there.
  DEVICE const Quad<E> (&wait_for(int tile, int first) const)[Patches][4][kThreads] {
    wait_for_copies<kStages - 1>();
    return lines[(tile - first) % kStages];
  }
};

// Zeros outside the map.
template <class E>
DEVICE void copy_patch(const Map<const E>& map, int b, int row, int column, Quad<E> (&to)[4][kThreads]) {
  row = made_again(row);
  column = made_again(column);
  const int outer = map.channels_last ? column : row, inner = map.channels_last ? row : column;
  const int valid = min(map.inners - inner, 4);
  const E* const first = map.data + map_offset(b, outer, inner, map.outers, map.inners);
  if (map.whole) {
#pragma unroll
    for (int o = 0; o < 4; ++o) {
      const bool inside = outer + o < map.outers && valid > 0;
      const E* at = inside ? first + int64_t{o} * map.inners : map.data;
      copy_ahead(&to[o][threadIdx.x], reinterpret_cast<const Quad<E>*>(at), inside);
    }
  } else {
#pragma unroll 1
    for (int i = 0; i < 16; ++i) {  // nothing of this form runs ahead: little code
      const bool inside = outer + i / 4 < map.outers && i % 4 < valid;
      to[i / 4][threadIdx.x].v[i % 4] = inside ? first[i / 4 * int64_t{map.inners} + i % 4] : static_cast<E>(0);
    }
  }
}

template <class E, class T>
DEVICE void read_patch(const Map<const E>& map, const Quad<E> (&from)[4][kThreads], T (&value)[4][4]) {
#pragma unroll
  for (int o = 0; o < 4; ++o) {
    const Quad<E> line = from[o][threadIdx.x];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (map.channels_last) {
        value[i][o] = static_cast<T>(line.v[i]);
      } else {
        value[o][i] = static_cast<T>(line.v[i]);
      }
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
