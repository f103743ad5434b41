// From the gradient G of a map to those of the features it was made of. Guided, dC goes through Eqs. 9 and 2 first; the
// mathematics is at the top of csrc/cpu/guided_correlation.cpp.
//
//   map_gradient, feature_gradients, add_parts   dC in pieces, and both small products (gradient_tiles.cuh)
//   finish_beta    beta_s = dL/db_s
//   finish_grads   partial sums added in order, and the beta terms
#pragma once

#include "cuda/gradient_tiles.cuh"

namespace pose_kernels {

constexpr int kFinishPositions = 32, kFinishFeatures = 64;

template <class T>
struct FinishGradsShared {
  T value[kFinishFeatures][kFinishPositions + 1];
};

template <class T>
struct FinishBetaArguments {
  int64_t batch, sources, parts;
  const T* partial;  // [B, parts, padded sources]
  const T* row_max;
  T* beta;  // [B, S]
  bool add;
};

// Sources in the order of their best targets, equal ones in their own: so a target finds those that it is the best of.
struct SourcesByTarget {
  int64_t round;  // samples sorted together
  int64_t sources, targets;
  const uint32_t* keys;  // [B, S], sorted: sample of the round * T + t*(s)
  const uint32_t* order;  // [B, S], s

  // Where those of a target, or of a later one, begin.
  DEVICE int64_t first_of(int64_t b, int64_t target) const {
    const int64_t key = b % round * targets + target;
    int64_t low = b * sources, high = low + sources;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (keys[middle] < key) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }
};

template <class T, class Z, class Out>
struct FinishGradsArguments {
  int64_t batch, m, positions, padded, parts;
  int features;
  const T* partial;  // [B, parts, padded, 8 features], null: none
  // The other side's part in the gradient through b_s: beta_s z_t(t*(s)) for a source, for a target the sum of
  // beta_s z_s over its sources.
  const T* beta;  // [B, S], null: none
  SourcesByTarget best_of;  // with beta, for targets
  const Z* others;  // [B, m, others_count]
  int64_t others_count;
  Out* out;  // [B, m, out_stride], positions from `begin` on
  int64_t out_stride, begin;
  bool add;
};

// ---- kernels

// beta_s = dL/db_s. The floor stops it later, where it is used: bands may still add to it.
template <class T>
__global__ void __launch_bounds__(kThreads) finish_beta_kernel(FinishBetaArguments<T> x) {
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= x.batch * x.sources) {
    return;
  }
  const int64_t b = index / x.sources, s = index % x.sources, padded = round_up(x.sources, kTile);
  T sum = 0;
  for (int64_t part = 0; part < x.parts; ++part) {
    sum += x.partial[(b * x.parts + part) * padded + s];
  }
  sum = -sum / x.row_max[index];
  x.beta[index] = x.add ? x.beta[index] + sum : sum;
}

// sum += factor times a position of the other side: features k, of a warp's k0 + lane and k0 + lane + 32.
template <class T, class Z, class Out>
DEVICE void add_other(
    const FinishGradsArguments<T, Z, Out>& x, int64_t b, int64_t k0, T factor, int64_t at, T (&sum)[2]) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int64_t k = k0 + lane + kWarp * h;
    if (k < x.m) {
      sum[h] += factor * static_cast<T>(x.others[(b * x.m + k) * x.others_count + at]);
    }
  }
}

// The gradient through b_s = C(s, t*(s)) of source p, for all of a warp. None where b_s is at its floor.
template <class T, class Z, class Out>
DEVICE void add_source_term(
    const FinishGradsArguments<T, Z, Out>& x, const Statistics<T>& statistics, int64_t b, int64_t p, int64_t k0,
    T (&sum)[2]) {
  const int64_t at = b * x.positions + p;
  if (statistics.row_max[at] != statistics.eps) {
    add_other(x, b, k0, x.beta[at], statistics.row_argmax[at], sum);
  }
}

// The same of the target whose sources are `first` to `last` in the order of their best targets.
template <class T, class Z, class Out>
DEVICE void add_target_terms(
    const FinishGradsArguments<T, Z, Out>& x, const Statistics<T>& statistics, int64_t b, int64_t first, int64_t last,
    int64_t k0, T (&sum)[2]) {
  for (int64_t n = first; n < last; ++n) {
    const int64_t s = x.best_of.order[n], at = b * x.others_count + s;
    if (statistics.row_max[at] != statistics.eps) {
      add_other(x, b, k0, x.beta[at], s, sum);
    }
  }
}

// A block makes 32 positions by 64 features, a warp one position at a time with features across its lanes; then it
// writes them with positions across lanes.
template <class T, class Z, class Out, bool Source>
__global__ void __launch_bounds__(kThreads)
    finish_grads_kernel(FinishGradsArguments<T, Z, Out> x, Statistics<T> statistics) {
  FinishGradsShared<T>& shared = shared_memory<FinishGradsShared<T>>();
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t chunks = ceil_div(x.m, kFinishFeatures), groups = ceil_div(x.positions, kFinishPositions);
  const int64_t k0 = blockIdx.x % chunks * kFinishFeatures, p0 = blockIdx.x / chunks % groups * kFinishPositions;
  const int64_t b = blockIdx.x / chunks / groups;
  int64_t first = 0, last = 0;  // of the target at this lane
  if (!Source && x.beta != nullptr) {
    first = x.best_of.first_of(b, x.begin + p0 + lane);
    last = x.best_of.first_of(b, x.begin + p0 + lane + 1);
  }
  for (int i = warp; i < kFinishPositions; i += kWarps) {
    const int64_t p = p0 + i;
    if (p >= x.positions) {
      break;
    }
    T sum[2] = {};
    for (int64_t part = 0; part < x.parts; ++part) {
      const T* from = x.partial + ((b * x.parts + part) * x.padded + p) * x.features * 8;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int64_t k = k0 + lane + kWarp * h;
        if (k < x.m) {
          sum[h] += from[k];
        }
      }
    }
    if (x.beta != nullptr) {
      if constexpr (Source) {
        add_source_term(x, statistics, b, p, k0, sum);
      } else {
        add_target_terms(x, statistics, b, shuffle(first, i), shuffle(last, i), k0, sum);
      }
    }
    shared.value[lane][i] = sum[0];
    shared.value[lane + kWarp][i] = sum[1];
  }
  sync_block();
  for (int i = warp; i < kFinishFeatures; i += kWarps) {
    const int64_t k = k0 + i, p = p0 + lane;
    if (k < x.m && p < x.positions) {
      Out& to = x.out[(b * x.m + k) * x.out_stride + x.begin + p];
      const T value = shared.value[i][lane];
      to = static_cast<Out>(x.add ? static_cast<T>(to) + value : value);
    }
  }
}

// ---- calls

// Where the gradients go, in the features' type or a wider one. `add`: to what is there (source and beta; a band's
// columns are written).
template <class Out, class T = compute_t<Out>>
struct FeatureGrads {
  Out* source;  // [B, m, S], null: not wanted
  Out* target;  // [B, m, T], null: not wanted
  T* beta;  // [B, S]; null without statistics
  bool add, through_row_max;
  SourcesByTarget best_of;  // with through_row_max
};

// What finish_grads adds up for the sources, or for the targets that take part; the parts are for the caller. With beta
// targets need `best_of`.
template <bool Source, class In, class Out, class T = compute_t<In>>
FinishGradsArguments<T, In, Out> plan_finish(
    const Features<In>& z, const T* beta, const SourcesByTarget& best_of, Out* out, bool add) {
  FinishGradsArguments<T, In, Out> x{};
  x.best_of = best_of;
  x.batch = z.batch;
  x.m = z.m;
  x.positions = Source ? z.sources : z.count;
  x.beta = beta;
  x.others = Source ? z.target : z.source;
  x.others_count = Source ? z.targets : z.sources;
  x.out = out;
  x.out_stride = Source ? z.sources : z.targets;
  x.begin = Source ? 0 : z.begin;
  x.add = add;
  return x;
}

template <bool Source, class T, class Z, class Out>
void finish_grads(const FinishGradsArguments<T, Z, Out>& x, const Statistics<T>& statistics, Stream stream) {
  const int64_t blocks = x.batch * ceil_div(x.positions, kFinishPositions) * ceil_div(x.m, kFinishFeatures);
  launch(finish_grads_kernel<T, Z, Out, Source>, blocks, kThreads, sizeof(FinishGradsShared<T>), stream, x, statistics);
}

template <class T, int Passes>
struct GradientOperands {
  Packed<T, Passes> source, target;
  Packed<T, kComputed<Passes>> from_source, from_target;
};

// How a map is cut into pieces, and each of them into blocks. `tiles` are 128 x 128.
struct GradientPlan {
  int batch, s_tiles, t_tiles, features, chunks;
  Piece largest;
  int map_runs, source_runs, target_runs;  // in the largest piece

  int64_t dC_quads() const {
    return int64_t{largest.batch} * largest.s_tiles * largest.t_tiles * kTile * kTile / 4;
  }
  // Partial sums of one side; none with one run.
  int64_t parts(int tiles, int runs) const {
    return runs == 1 ? 0 : int64_t{runs} * largest.batch * tiles * kTile * features * kStep;
  }
  // Calls f(piece) in order.
  template <class F>
  void for_pieces(F&& f) const {
    for (int b = 0; b < batch; b += largest.batch) {
      for (int s = 0; s < s_tiles; s += largest.s_tiles) {
        for (int t = 0; t < t_tiles; t += largest.t_tiles) {
          f(Piece{b, std::min(largest.batch, batch - b), s, std::min(largest.s_tiles, s_tiles - s), t,
                  std::min(largest.t_tiles, t_tiles - t)});
        }
      }
    }
  }
};

// At most 256 tiles at once, 16 MiB in float32: several samples, or about a square of one. Runs make enough blocks for
// a GPU where one side's positions and features do not.
inline GradientPlan plan_gradients(int64_t batch, int64_t m, int64_t sources, int64_t targets) {
  GradientPlan x{};
  x.batch = static_cast<int>(batch);
  x.s_tiles = static_cast<int>(ceil_div(sources, kTile));
  x.t_tiles = static_cast<int>(ceil_div(targets, kTile));
  x.features = static_cast<int>(ceil_div(m, kStep));
  x.chunks = static_cast<int>(ceil_div(x.features, kChunk));
  const int64_t most = enough(256), side = std::min<int64_t>(most, 16);
  const int64_t t_tiles = std::min<int64_t>(x.t_tiles, most / std::min<int64_t>(x.s_tiles, side));
  const int64_t s_tiles = std::min<int64_t>(x.s_tiles, most / t_tiles);
  const int64_t samples = std::clamp<int64_t>(most / (s_tiles * t_tiles), 1, batch);
  const bool whole = s_tiles == x.s_tiles && t_tiles == x.t_tiles;
  x.largest = {0, whole ? static_cast<int>(samples) : 1, 0, static_cast<int>(s_tiles), 0, static_cast<int>(t_tiles)};
  const auto runs = [&](int64_t wanted, int64_t blocks, int64_t most_runs) {
    return static_cast<int>(std::clamp<int64_t>(ceil_div(wanted, blocks * x.largest.batch), 1, most_runs));
  };
  x.map_runs = runs(enough(512), s_tiles, t_tiles * kTargetTiles);
  x.source_runs = runs(enough(128), s_tiles * x.chunks, t_tiles);
  x.target_runs = runs(enough(128), t_tiles * x.chunks, s_tiles);
  return x;
}

template <bool Guided, class T, class In, int Passes, class Out>
GradientOperands<T, Passes> pack_operands(
    const Features<In>& z, const FeatureGrads<Out>& out, const Context& context) {
  GradientOperands<T, Passes> operands{};
  PackPlan plan(z.batch, z.m);
  if (Guided) {
    pack(plan, Order::kRows, z, context, operands.source);
    pack(plan, Order::kColumns, z, context, operands.target);
  }
  if (out.target != nullptr) {
    pack(plan, Order::kFromRows, z, context, operands.from_source);
  }
  if (out.source != nullptr) {
    pack(plan, Order::kFromColumns, z, context, operands.from_target);
  }
  plan.run<In, T, Passes>(context.stream);
  return operands;
}

// dC of a piece, then what it adds to the sums of either side.
template <bool Guided, class T, int Passes, class E>
void run_piece(
    const GradientPlan& plan, const Piece& piece, MapGradientArguments<T, E> map,
    FeatureGradientsArguments<T, kComputed<Passes>> x, const GradientOperands<T, Passes>& operands, Stream stream) {
  map.piece = x.piece = piece;
  const int others = piece.t_tiles * kTargetTiles;
  map.walk = {piece.batch, piece.s_tiles, others, std::min(plan.map_runs, others)};
  launch(
      map_gradient_kernel<T, Passes, E, Guided>, map.walk.blocks(), kThreads,
      Guided ? static_cast<int>(sizeof(MapGradientShared<T, E>)) : 0, stream, map,
      operands.source, operands.target);
  x.source.walk = {piece.batch, piece.s_tiles, piece.t_tiles, std::min(plan.source_runs, piece.t_tiles)};
  x.source.first = x.target.first_other = piece.s_first;
  x.source.add = piece.t_first > 0;
  x.target.walk = {piece.batch, piece.t_tiles, piece.s_tiles, std::min(plan.target_runs, piece.s_tiles)};
  x.target.first = x.source.first_other = piece.t_first;
  x.target.add = piece.s_first > 0;
  const auto blocks = [&](const auto& side) { return side.sums != nullptr ? side.walk.blocks() * x.chunks : 0; };
  x.source_blocks = blocks(x.source);
  launch(
      feature_gradients_kernel<T, kComputed<Passes>>, x.source_blocks + blocks(x.target), kThreads, 0, stream, x);
  for (const auto* side : {&x.source, &x.target}) {
    if (side->sums != nullptr && side->walk.runs > 1) {
      const int quads = x.features * kStep / 4;
      launch(
          add_parts_kernel<T>, blocks_for(int64_t{piece.batch} * side->walk.tiles * kTile * quads), kThreads, 0, stream,
          AddPartsArguments<T>{
              side->walk, piece.b, side->first, side->padded, quads, side->parts, side->sums, side->add});
    }
  }
}

// Everything behind the pieces.
template <bool Guided, class In, class Out, class T = compute_t<In>>
void finish_backward(
    const GradientPlan& plan, const T* beta_parts, const T* source_sums, const T* target_sums, const Features<In>& z,
    const Statistics<T>& statistics, const FeatureGrads<Out>& out, Stream stream) {
  if (Guided) {
    const FinishBetaArguments<T> sums{
        z.batch, z.sources, plan.map_runs, beta_parts, statistics.row_max, out.beta, out.add};
    launch(finish_beta_kernel<T>, blocks_for(z.batch * z.sources), kThreads, 0, stream, sums);
  }
  const T* beta = out.through_row_max ? out.beta : nullptr;
  const auto with_sums = [&](auto x, const T* partial) {
    x.partial = partial;
    x.padded = round_up(x.positions, kTile);
    x.parts = 1;
    x.features = plan.features;
    return x;
  };
  if (out.source != nullptr) {
    const auto x = plan_finish<true>(z, beta, out.best_of, out.source, out.add);
    finish_grads<true>(with_sums(x, source_sums), statistics, stream);
  }
  if (out.target != nullptr) {
    const auto x = plan_finish<false>(z, beta, out.best_of, out.target, false);
    finish_grads<false>(with_sums(x, target_sums), statistics, stream);
  }
}

// Guided: prepare(map, source, target) sets what dC needs of the columns.
template <bool Guided, class In, class E, class Out, class Prepare, class T = compute_t<In>>
void run_backward(
    const Features<In>& z, const Statistics<T>& statistics, bool tf32, const Map<const E>& grad,
    const FeatureGrads<Out>& out, const Context& context, Prepare&& prepare) {
  with_passes<In>(tf32, [&](auto passes) {
    const auto operands = pack_operands<Guided, T, In, passes>(z, out, context);
    const GradientPlan plan = plan_gradients(z.batch, z.m, z.sources, z.count);
    MapGradientArguments<T, E> map{};
    map.grad = grad;
    map.padded_sources = plan.s_tiles * kTile;
    map.padded_targets = plan.t_tiles * kTile;
    map.beta_runs = plan.map_runs;
    prepare(map, operands.source, operands.target);
    if (Guided) {
      map.beta_parts = context.allocate_array<T>(z.batch * plan.map_runs * map.padded_sources);
    }
    map.dC = context.allocate_array<Quad<T>>(plan.dC_quads());
    FeatureGradientsArguments<T, kComputed<passes>> x{};
    x.dC = map.dC;
    x.features = plan.features;
    x.chunks = plan.chunks;
    const auto add_side = [&](auto& side, const auto& others, int padded, int tiles, int runs) {
      side.z = others;
      side.padded = padded;
      side.sums = context.allocate_array<T>(z.batch * padded * plan.features * kStep);
      side.parts = context.allocate_array<T>(plan.parts(tiles, runs));
    };
    if (out.source != nullptr) {
      add_side(x.source, operands.from_target, map.padded_sources, plan.largest.s_tiles, plan.source_runs);
    }
    if (out.target != nullptr) {
      add_side(x.target, operands.from_source, map.padded_targets, plan.largest.t_tiles, plan.target_runs);
    }
    plan.for_pieces(
        [&](const Piece& piece) { run_piece<Guided>(plan, piece, map, x, operands, context.stream); });
    finish_backward<Guided>(plan, map.beta_parts, x.source.sums, x.target.sums, z, statistics, out, context.stream);
  });
}

}  // namespace pose_kernels
