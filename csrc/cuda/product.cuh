// C(s, t) = sum_k z_s(k, s) z_t(k, t) in tiles of matrix fragments, which every product operator is made of.
//
// Features are packed once per call into the order in which the fragments want them, so that a fragment is one
// 16-byte load per lane: neighbouring lanes, neighbouring addresses, no shared memory, no barrier. All of it stays in
// the L2 cache. Rows of a tile are sources, columns are targets.
//
// Precision: float16 and bfloat16 features are multiplied as they are, 16 features at a time, exactly. float32 in TF32,
// which keeps 10 bits of mantissa: one pass where that is asked for, else a high and a low part and three passes (high
// high + high low + low high), accurate to float32. float64 has fragments of its own.
//
// Which position a fragment's row or column stands for is free. Here a thread's four rows and four columns of two
// fragments are neighbours in memory (4 x 4 patches), whichever way the map lies: 16-byte loads and stores.
#pragma once

#include <utility>

#include "cuda/launch.cuh"

namespace pose_kernels {

constexpr int kGroup = 16;  // positions packed together: the rows of a fragment, the columns of two
constexpr int kGroups = kTile / kGroup;
constexpr int kStep = 8;  // features of a fragment of float32 or float64

// How a product is made, where kernels have a number of passes: one or three of TF32 (or of float64), or one of pairs of
// 16-bit numbers.
enum : int { kOnePass = 1, kThreePasses = 3, kHalfPairs = 16, kBFloat16Pairs = 17 };

template <int Passes>
constexpr bool kPairs = Passes >= kHalfPairs;

template <int Passes>
using pair_t = std::conditional_t<Passes == kHalfPairs, Half, BFloat16>;

// Features that a fragment of C multiplies at a time.
template <int Passes>
constexpr int kFeatures = kPairs<Passes> ? 2 * kStep : kStep;

// The passes of products with what was computed in float32: 16 bits would not do for that.
template <int Passes>
constexpr int kComputed = Passes == kThreePasses ? kThreePasses : kOnePass;

// Doubles take twice the registers.
template <class T>
constexpr int kBlocksPerMultiprocessor = sizeof(T) == 4 ? 2 : 1;

// The tile of C that a block makes: WarpRows x (8 / WarpRows) warps, each with MT x NT fragments of 16 x 8.
template <int WarpRows, int MT_, int NT_>
struct TileShape {
  static constexpr int MT = MT_, NT = NT_;
  static constexpr int kWarpRows = WarpRows, kWarpColumns = kWarps / WarpRows;
  static constexpr int kRows = WarpRows * MT * 16, kColumns = kWarpColumns * NT * 8;

  // The warp's first row and column.
  static DEVICE int row(int warp) {
    return warp / kWarpColumns * (MT * 16);
  }
  static DEVICE int column(int warp) {
    return warp % kWarpColumns * (NT * 8);
  }
};

// Position within a tile that row or column `f` of its fragments stands for.
HOST_DEVICE int row_at(int f) {
  return (f & ~31) | (f & 7) << 2 | (f >> 3 & 3);
}
HOST_DEVICE int column_at(int f) {
  return (f & ~15) | (f & 6) << 1 | (f >> 2 & 2) | (f & 1);
}

// How features are packed: quads [B][padded positions / 128][step of 8 features][8 groups of positions][part][lane],
// `part` high or low. So what one step of a product loads lies at constant distances. Operands of C that are pairs of
// 16-bit numbers have 16 features a step.
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
  int step;  // features
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

struct PackedPlace {
  int position, feature;
};

// What number e of a lane's quad stands for: a position of the tile, in the group that begins at `within`, and a feature
// of the step, the first one where a number is a pair of them.
DEVICE PackedPlace packed_place(Order order, bool pairs, int within, int lane, int e) {
  const int g = lane / 4, t = lane % 4, first = e & 1, second = e >> 1, features = pairs ? 2 : 1;
  switch (order) {
    case Order::kRows:
      return {row_at(within + g + 8 * first), features * (t + 4 * second)};
    case Order::kColumns:
      return {column_at(within + g + 8 * second), features * (t + 4 * first)};
    case Order::kFromRows:
      return {row_at(within + t + 8 * first + 4 * second), g};
    default:
      return {column_at(within + 2 * t + first + 8 * second), g};
  }
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
  const int64_t steps = ceil_div(x.m, job.step), tiles = ceil_div(job.count, kTile);
  const int lane = static_cast<int>(index % kWarp), within = static_cast<int>(index / kWarp % kGroups) * kGroup;
  const bool pairs = job.step > kStep;
  const int64_t rest = index / kWarp / kGroups, step = rest % steps, tile = rest / steps % tiles, b = rest / steps / tiles;
  if (b >= x.batch) {
    return;
  }
  const auto feature_of = [&](int64_t k, int64_t at) {
    const bool there = at < job.count && k < x.m;
    return there ? static_cast<const In*>(job.from)[(b * x.m + k) * job.stride + job.begin + at] : static_cast<In>(0);
  };
  Quad<T> high, low;
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const PackedPlace place = packed_place(job.order, pairs, within, lane, e);
    const int64_t at = tile * kTile + place.position, k = step * job.step + place.feature;
    const In value = feature_of(k, at);
    if constexpr (kPairs<Passes>) {
      if (pairs) {
        const Pair<In> pair{{value, feature_of(k + 1, at)}};
        memcpy(&high.v[e], &pair, sizeof(pair));
        continue;
      }
    }
    if constexpr (Passes == kThreePasses) {
      const Parts<T> parts = split(static_cast<T>(value));
      high.v[e] = parts.high;
      low.v[e] = parts.low;
    } else if constexpr (std::is_same_v<In, float>) {
      high.v[e] = nearest_tf32(value);
    } else {
      high.v[e] = static_cast<T>(value);
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
  static constexpr int kParts = Passes == kThreePasses ? 2 : 1;
  static constexpr int kNext = kParts * kWarp;  // quads from a group to the next
  static constexpr int kNextStep = kGroups * kNext;  // to the next 8 features of the same positions

  const Quad<T>* data;
  int tiles;  // of 128 positions, per sample
  int steps;

  static int64_t elements(int64_t batch, int64_t m, int64_t positions) {
    return batch * round_up(positions, kTile) * ceil_div(m, kFeatures<Passes>) * kStep * kParts;
  }
  // This lane's quad of the first features of a group of positions.
  DEVICE const Quad<T>* at(int b, int group) const {
    return data + (int64_t{b} * tiles + group / kGroups) * steps * kNextStep + group % kGroups * kNext +
        threadIdx.x % kWarp;
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

// acc += a b. Tensor cores are said to add towards zero, which in a long sum is an error that grows with its length:
// three passes sum each step from zero, low products first, and are added in float32, to nearest.
template <class T, int Passes>
DEVICE void multiply_parts(
    T (&acc)[4], const T (&high)[4], const T (&low)[4], const Fragment<T, Passes>& b, int half) {
  const T b0 = b.high.v[2 * half], b1 = b.high.v[2 * half + 1];
  if constexpr (Passes == 3) {
    T sum[4] = {};
    matrix_multiply_add(sum, low, b0, b1);
    matrix_multiply_add(sum, high, b.low.v[2 * half], b.low.v[2 * half + 1]);
    matrix_multiply_add(sum, high, b0, b1);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      acc[e] += sum[e];
    }
  } else if constexpr (kPairs<Passes>) {
    multiply_add_pairs<pair_t<Passes>>(acc, high, b0, b1);
  } else {
    matrix_multiply_add(acc, high, b0, b1);
  }
}

// The two tiles of C side by side that 16 rows and 16 columns make.
template <class T, int Passes>
DEVICE void multiply_fragments(
    const Fragment<T, Passes>& a, const Fragment<T, Passes>& b, T (&left)[4], T (&right)[4]) {
  multiply_parts(left, a.high.v, a.low.v, b, 0);
  multiply_parts(right, a.high.v, a.low.v, b, 1);
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

// acc = the warp's part of a tile of C.
template <class Tile, class T, int Passes>
DEVICE void multiply_tile(
    const Packed<T, Passes>& source, const Packed<T, Passes>& target, int b, int source_tile, int target_tile,
    T (&acc)[Tile::MT][Tile::NT][4]) {
  const int warp = threadIdx.x / kWarp;
  // In groups.
  const int row = warp / Tile::kWarpColumns * Tile::MT, column = warp % Tile::kWarpColumns * (Tile::NT / 2);
  multiply<T, Passes, Tile::MT, Tile::NT>(
      source.at(b, source_tile * (Tile::kRows / kGroup) + row),
      target.at(b, target_tile * (Tile::kColumns / kGroup) + column), source.steps, acc);
}

// Four values side by side of an array in scratch; `at` is a multiple of 4.
template <class T>
DEVICE Quad<T> four_of(const T* array, int64_t at) {
  return load_cached(reinterpret_cast<const Quad<T>*>(array + at));
}

// A thread's part of C is 4 x 4 patches, the first of them at this row and column from the warp's first.
DEVICE int patch_row(int lane) {
  return lane / 4 * 4;
}
DEVICE int patch_column(int lane) {
  return lane % 4 * 4;
}

// Element (r, c) of patch (p, q), which lies 32 p rows and 16 q columns further.
template <class T, int MT, int NT>
DEVICE T& patch(T (&acc)[MT][NT][4], int p, int q, int r, int c) {
  return acc[2 * p + r / 2][2 * q + c / 2][r % 2 * 2 + c % 2];
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
  const int64_t tiles = ceil_div(owned, kTile), others = ceil_div(walked, kTile);
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
        arguments.batch * ceil_div(job.count, kTile) * kGroups * ceil_div(arguments.m, job.step) * kWarp;
    arguments.jobs[jobs++] = job;
    const int64_t end = arguments.first_block[jobs - 1] + blocks_for(quads);
    for (int i = jobs; i <= PackArguments::kJobs; ++i) {
      arguments.first_block[i] = end;
    }
  }
  template <class In, class T, int Passes>
  void run(Stream stream) const {
    launch(pack_kernel<In, T, Passes>, arguments.first_block[PackArguments::kJobs], kThreads, 0, stream, arguments);
  }
};

// Adds a job to the plan and says where its result will be.
template <class In, class T, int Passes>
void pack(
    PackPlan& plan, Order order, const Features<In>& z, const Context& context, Packed<T, Passes>& packed) {
  const bool rows = order == Order::kRows || order == Order::kFromRows;
  PackJob job{};
  job.order = order;
  job.from = rows ? z.source : z.target;
  job.stride = rows ? z.sources : z.targets;
  job.begin = rows ? 0 : z.begin;
  job.count = rows ? z.sources : z.count;
  job.step = kFeatures<Passes>;
  T* to = context.allocate_array<T>(Packed<T, Passes>::elements(z.batch, z.m, job.count));
  job.to = to;
  plan.add(job);
  packed.data = reinterpret_cast<const Quad<T>*>(to);
  packed.tiles = static_cast<int>(ceil_div(job.count, kTile));
  packed.steps = static_cast<int>(ceil_div(z.m, job.step));
}

// Calls f with the passes of C that type and precision ask for, as a constant.
template <class In, class F>
void with_passes(bool tf32, F&& f) {
  if constexpr (std::is_same_v<In, float>) {
    if (!tf32) {
      return f(std::integral_constant<int, kThreePasses>{});
    }
  }
  constexpr int kOf16Bits = std::is_same_v<In, Half> ? kHalfPairs : kBFloat16Pairs;
  f(std::integral_constant<int, sizeof(In) == 2 ? kOf16Bits : kOnePass>{});
}

// Calls f with the operands of C, packed.
template <class In, class F>
void with_operands(const Features<In>& z, bool tf32, const Context& context, F&& f) {
  with_passes<In>(tf32, [&](auto passes) {
    PackPlan plan(z.batch, z.m);
    Packed<compute_t<In>, passes> source, target;
    pack(plan, Order::kRows, z, context, source);
    pack(plan, Order::kColumns, z, context, target);
    plan.run<In, compute_t<In>, passes>(context.stream);
    f(source, target);
  });
}

}  // namespace pose_kernels
