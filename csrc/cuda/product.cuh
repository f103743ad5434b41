// C(s, t) = sum_k z_s(k, s) z_t(k, t) in tiles of matrix fragments, which every product operator is made of.
//
// Features are packed once per call into the order in which the fragments want them, so that a fragment is one
// 16-byte load per lane: neighbouring lanes, neighbouring addresses, no shared memory, no barrier. All of it stays in
// the L2 cache. Rows of a tile are sources, columns are targets.
//
// Precision: TF32 keeps 10 bits of mantissa. float16 and bfloat16 features fit, so one pass is exact. float32 is cut
// into a high and a low part and three passes (high high + high low + low high) are accurate to float32. float64 has
// fragments of its own.
//
// Which position a fragment's row or column stands for is free. Here a thread's four rows and four columns of two
// fragments are neighbours in memory (4 x 4 patches), whichever way the map lies: 16-byte loads and stores.
#pragma once

#include <algorithm>
#include <functional>
#include <utility>

#include "cuda/device.cuh"

namespace pose_kernels {

// float16 and bfloat16 are storage formats: everything is computed in float32.
template <class In>
using Compute = std::conditional_t<std::is_same_v<In, double>, double, float>;

// Device memory for the rest of the call, freed in the stream's order.
using Allocate = std::function<void*(int64_t bytes)>;

template <class T>
T* allocate_array(const Allocate& allocate, int64_t n) {
  return static_cast<T*>(allocate(n * static_cast<int64_t>(sizeof(T))));
}

constexpr int kTile = 128;  // positions are padded to whole tiles
constexpr int kThreads = 256;
constexpr int kStep = 8;  // features a fragment multiplies at a time

HOST_DEVICE int64_t round_up(int64_t n, int64_t step) {
  return (n + step - 1) / step * step;
}

// Position within a tile that row or column `f` of its fragments stands for.
HOST_DEVICE int row_at(int f) {
  return (f & ~31) | (f & 7) << 2 | (f >> 3 & 3);
}
HOST_DEVICE int column_at(int f) {
  return (f & ~15) | (f & 6) << 1 | (f >> 2 & 2) | (f & 1);
}

// How features are packed: quads [B][padded positions / 128][step of 8 features][8 times 16 positions][part][lane],
// `part` high or low. So what one step of a product loads lies at constant distances.
enum class Order {
  kRows,  // left operand of C: 16 sources by 8 features
  kColumns,  // right operand of C: 8 features by 2 x 8 targets
  kFromRows,  // right operand of dz_t = dC^T z_s: 2 x 8 sources by 8 features
  kFromColumns,  // right operand of dz_s = dC z_t: 2 x 8 targets by 8 features
};

struct PackJob {
  Order order;
  const void* from;  // [B, m, stride], `count` positions from `begin` on are read
  void* to;
  int64_t stride, begin, count;
};

struct PackArguments {
  static constexpr int kJobs = 4;
  int64_t batch, m;
  int64_t first_block[kJobs + 1];
  PackJob jobs[kJobs];
};

template <class T>
struct Parts {
  T high, low;
};

DEVICE Parts<double> split(double x) {
  return {x, 0};
}

// No finite number becomes infinite.
DEVICE float nearest_tf32(float x) {
  const float rounded = round_to_tf32(x);
  constexpr float kLargest = 3.4011621342146535e38f;  // of TF32
  return rounded - rounded == 0 || !(x - x == 0) ? rounded : (x > 0 ? kLargest : -kLargest);
}

DEVICE Parts<float> split(float x) {
  if (x - x == 0) {
    const float high = nearest_tf32(x);
    return {high, round_to_tf32(x - high)};
  }
  // Infinity times the other number's low part, which may be 0 or of the other sign, would be NaN: here it is the low
  // part that is infinite, and it meets high parts only.
  return {x < 0 ? -1.0f : 1.0f, x};
}

// A thread per quad.
template <class In, class T, int Passes>
__global__ void __launch_bounds__(kThreads) pack_kernel(PackArguments x) {
  int job_number = 0;
  while (static_cast<int64_t>(blockIdx.x) >= x.first_block[job_number + 1]) {
    ++job_number;
  }
  const PackJob job = x.jobs[job_number];
  const int64_t index = (blockIdx.x - x.first_block[job_number]) * kThreads + threadIdx.x;
  const int64_t steps = round_up(x.m, kStep) / kStep, tiles = round_up(job.count, kTile) / kTile;
  const int lane = static_cast<int>(index % kWarp), g = lane / 4, t = lane % 4;
  const int within = static_cast<int>(index / kWarp % 8) * 16;
  const int64_t rest = index / kWarp / 8, step = rest % steps, tile = rest / steps % tiles, b = rest / steps / tiles;
  if (b >= x.batch) {
    return;
  }
  Quad<T> high, low;
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const int first = e & 1, second = e >> 1;
    int position, feature;
    switch (job.order) {
      case Order::kRows:
        position = row_at(within + g + 8 * first);
        feature = t + 4 * second;
        break;
      case Order::kColumns:
        position = column_at(within + g + 8 * second);
        feature = t + 4 * first;
        break;
      case Order::kFromRows:
        position = row_at(within + t + 4 * first + 8 * second);
        feature = g;
        break;
      default:
        position = column_at(within + 2 * t + first + 8 * second);
        feature = g;
    }
    const int64_t at = tile * kTile + position, k = step * kStep + feature;
    T value = 0;
    if (at < job.count && k < x.m) {
      value = static_cast<T>(static_cast<const In*>(job.from)[(b * x.m + k) * job.stride + job.begin + at]);
    }
    if constexpr (Passes == 3) {
      const Parts<T> parts = split(value);
      high.v[e] = parts.high;
      low.v[e] = parts.low;
    } else if constexpr (std::is_same_v<In, float>) {
      high.v[e] = nearest_tf32(value);
    } else {
      high.v[e] = value;
    }
  }
  constexpr int kParts = Passes == 3 ? 2 : 1;
  Quad<T>* to = static_cast<Quad<T>*>(job.to) + (index / kWarp * kParts) * kWarp + lane;
  to[0] = high;
  if constexpr (Passes == 3) {
    to[kWarp] = low;
  }
}

// Packed features of all samples.
template <class T, int Passes>
struct Packed {
  static constexpr int kParts = Passes == 3 ? 2 : 1;
  static constexpr int kNext = kParts * kWarp;  // quads from 16 positions to the next
  static constexpr int kNextStep = 8 * kNext;  // to the next 8 features of the same positions

  const Quad<T>* data;
  int tiles;  // of 128 positions, per sample
  int steps;

  static int64_t elements(int64_t batch, int64_t m, int64_t positions) {
    return batch * round_up(positions, kTile) * round_up(m, kStep) * kParts;
  }
  // This lane's quad of the first features of 16 positions.
  DEVICE const Quad<T>* at(int b, int sixteen) const {
    return data + (int64_t{b} * tiles + sixteen / 8) * steps * kNextStep + sixteen % 8 * kNext + threadIdx.x % kWarp;
  }
};

// A quad and, where there are three passes, the low part of it.
template <class T, int Passes>
struct Fragment {
  Quad<T> high, low;

  DEVICE void load(const Quad<T>* at) {
    high = load_cached(at);
    if constexpr (Passes == 3) {
      low = load_cached(at + kWarp);
    }
  }
};

// The two tiles of C side by side that 16 rows and 16 columns make.
template <class T, int Passes>
DEVICE void multiply_fragments(
    const Fragment<T, Passes>& a, const Fragment<T, Passes>& b, T (&left)[4], T (&right)[4]) {
  matrix_multiply_add(left, a.high.v, b.high.v[0], b.high.v[1]);
  matrix_multiply_add(right, a.high.v, b.high.v[2], b.high.v[3]);
  if constexpr (Passes == 3) {
    matrix_multiply_add(left, a.high.v, b.low.v[0], b.low.v[1]);
    matrix_multiply_add(right, a.high.v, b.low.v[2], b.low.v[3]);
    matrix_multiply_add(left, a.low.v, b.high.v[0], b.high.v[1]);
    matrix_multiply_add(right, a.low.v, b.high.v[2], b.high.v[3]);
  }
}

// acc = C for 16 MT rows and 8 NT columns, from the warp's first quads of each.
template <class T, int Passes, int MT, int NT>
DEVICE void multiply(const Quad<T>* rows, const Quad<T>* columns, int steps, T (&acc)[MT][NT][4]) {
  constexpr int kNext = Packed<T, Passes>::kNext, kNextStep = Packed<T, Passes>::kNextStep;
#pragma unroll
  for (int i = 0; i < MT; ++i) {
#pragma unroll
    for (int j = 0; j < NT; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        acc[i][j][e] = 0;
      }
    }
  }
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    // The smaller side stays in registers while the other one passes.
    if constexpr (MT > NT / 2) {
      Fragment<T, Passes> b[NT / 2];
#pragma unroll
      for (int j = 0; j < NT / 2; ++j) {
        b[j].load(columns + j * kNext);
      }
#pragma unroll
      for (int i = 0; i < MT; ++i) {
        Fragment<T, Passes> a;
        a.load(rows + i * kNext);
#pragma unroll
        for (int j = 0; j < NT / 2; ++j) {
          multiply_fragments(a, b[j], acc[i][2 * j], acc[i][2 * j + 1]);
        }
      }
    } else {
      Fragment<T, Passes> a[MT];
#pragma unroll
      for (int i = 0; i < MT; ++i) {
        a[i].load(rows + i * kNext);
      }
#pragma unroll
      for (int j = 0; j < NT / 2; ++j) {
        Fragment<T, Passes> b;
        b.load(columns + j * kNext);
#pragma unroll
        for (int i = 0; i < MT; ++i) {
          multiply_fragments(a[i], b, acc[i][2 * j], acc[i][2 * j + 1]);
        }
      }
    }
    rows += kNextStep;
    columns += kNextStep;
  }
}

// Four values side by side of an array in scratch; `at` is a multiple of 4.
template <class T>
DEVICE Quad<T> four_of(const T* array, int64_t at) {
  return load_cached(reinterpret_cast<const Quad<T>*>(array + at));
}

// Element (r, c) of a thread's 4 x 4 patch (p, q): rows 32 p + 4 (lane / 4) + r and columns 16 q + 4 (lane % 4) + c
// from the warp's first.
template <class T, int MT, int NT>
DEVICE T& patch(T (&acc)[MT][NT][4], int p, int q, int r, int c) {
  return acc[2 * p + r / 2][2 * q + c / 2][r % 2 * 2 + c % 2];
}

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

// Blocks are numbered [B][tiles][runs]: each owns a tile of one side and walks over a run of tiles of the other. The
// number of runs depends on shapes alone, so that sums have the same order on every GPU.
struct Walk {
  int batch, tiles, others, runs;

  int64_t blocks() const {
    return int64_t{batch} * tiles * runs;
  }
};

struct Place {
  int b, tile, run, first, last;
};

DEVICE Place place_of(const Walk& walk, int block) {
  Place place;
  place.run = block % walk.runs;
  place.tile = block / walk.runs % walk.tiles;
  place.b = block / walk.runs / walk.tiles;
  place.first = walk.others * place.run / walk.runs;
  place.last = walk.others * (place.run + 1) / walk.runs;
  return place;
}

// Enough blocks for some waves of the largest GPU, and not more runs than partial results are worth.
inline Walk make_walk(int64_t batch, int64_t owned, int64_t walked) {
  constexpr int64_t kMostRuns = 32;
  const int64_t tiles = round_up(owned, kTile) / kTile, others = round_up(walked, kTile) / kTile;
  const int64_t wanted = (enough(1024) + batch * tiles - 1) / std::max<int64_t>(1, batch * tiles);
  return {static_cast<int>(batch), static_cast<int>(tiles), static_cast<int>(others),
          static_cast<int>(std::clamp<int64_t>(wanted, 1, std::min(others, kMostRuns)))};
}

struct PackPlan {
  PackArguments arguments{};
  int jobs = 0;

  PackPlan(int64_t batch, int64_t m) {
    arguments.batch = batch;
    arguments.m = m;
  }
  void add(const PackJob& job) {
    const int64_t quads =
        arguments.batch * round_up(job.count, kTile) / 16 * (round_up(arguments.m, kStep) / kStep) * kWarp;
    arguments.jobs[jobs++] = job;
    const int64_t end = arguments.first_block[jobs - 1] + round_up(quads, kThreads) / kThreads;
    for (int i = jobs; i <= PackArguments::kJobs; ++i) {
      arguments.first_block[i] = end;
    }
  }
  template <class In, class T, int Passes>
  void run(Stream stream) const {
    launch(pack_kernel<In, T, Passes>, arguments.first_block[PackArguments::kJobs], kThreads, 0, stream, arguments);
  }
};

// A pair of feature maps [B, m, S], [B, m, T]; of the targets only `count` from `begin` on take part.
template <class In>
struct Features {
  int64_t batch, m, sources, targets;
  const In* source;
  const In* target;
  int64_t begin, count;
};

// Adds a job to the plan and says where its result will be.
template <class In, class T, int Passes>
Packed<T, Passes> pack(
    PackPlan& plan, Order order, const Features<In>& z, const Allocate& allocate) {
  const bool rows = order == Order::kRows || order == Order::kFromRows;
  const int64_t count = rows ? z.sources : z.count;
  T* to = allocate_array<T>(allocate, Packed<T, Passes>::elements(z.batch, z.m, count));
  plan.add({order, rows ? z.source : z.target, to, rows ? z.sources : z.targets, rows ? 0 : z.begin, count});
  return {reinterpret_cast<const Quad<T>*>(to), static_cast<int>(round_up(count, kTile) / kTile),
          static_cast<int>(round_up(z.m, kStep) / kStep)};
}

// Calls f with the number of passes that the precision asks for, as a constant.
template <class In, class F>
void with_passes(bool tf32, F&& f) {
  if constexpr (std::is_same_v<In, float>) {
    if (!tf32) {
      return f(std::integral_constant<int, 3>{});
    }
  }
  f(std::integral_constant<int, 1>{});
}

}  // namespace pose_kernels
