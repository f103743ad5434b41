// From the gradient G of a map to those of the features it was made of. Guided, dC goes through Eqs. 9 and 2 first; the
// mathematics is at the top of csrc/cpu/guided_correlation.cpp.
//
//   backward       tiles of 128 x 64: dC through shared memory into both small products (gradient_tiles.cuh)
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

template <class T, class Z>
struct FinishGradsArguments {
  int64_t batch, m, positions, padded, parts;
  int features;
  const T* partial;  // [B, parts, padded, 8 features], null: none
  // The other side's part in the gradient through b_s: beta_s z_t(t*(s)) for a source, for a target the sum of
  // beta_s z_s over its sources.
  const T* beta;  // [B, S], null: none
  const Z* others;  // [B, m, others_count]
  int64_t others_count;
  Z* out;  // [B, m, out_stride], positions from `begin` on
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
template <class T, class Z>
DEVICE void add_other(const FinishGradsArguments<T, Z>& x, int64_t b, int64_t k0, T factor, int64_t at, T (&sum)[2]) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int64_t k = k0 + lane + kWarp * h;
    if (k < x.m) {
      sum[h] += factor * static_cast<T>(x.others[(b * x.m + k) * x.others_count + at]);
    }
  }
}

// The gradient through b_s = C(s, t*(s)) of one position, for all of a warp. None where b_s is at its floor.
template <bool Source, class T, class Z>
DEVICE void add_beta_terms(
    const FinishGradsArguments<T, Z>& x, const Statistics<T>& statistics, int64_t b, int64_t p, int64_t k0,
    T (&sum)[2]) {
  const int lane = threadIdx.x % kWarp;
  if constexpr (Source) {
    const int64_t at = b * x.positions + p;
    if (statistics.row_max[at] != statistics.eps) {
      add_other(x, b, k0, x.beta[at], statistics.row_argmax[at], sum);
    }
  } else {
    for (int64_t s0 = 0; s0 < x.others_count; s0 += kWarp) {
      const int64_t s = s0 + lane, at = b * x.others_count + s;
      const bool mine =
          s < x.others_count && statistics.row_argmax[at] == p && statistics.row_max[at] != statistics.eps;
      for (uint32_t found = ballot(mine); found != 0; found &= found - 1) {
        const int64_t source = s0 + lowest_bit(found);
        add_other(x, b, k0, x.beta[b * x.others_count + source], source, sum);
      }
    }
  }
}

// A block makes 32 positions by 64 features, a warp one position at a time with features across its lanes; then it
// writes them with positions across lanes.
template <class T, class Z, bool Source>
__global__ void __launch_bounds__(kThreads)
    finish_grads_kernel(FinishGradsArguments<T, Z> x, Statistics<T> statistics) {
  FinishGradsShared<T>& shared = shared_memory<FinishGradsShared<T>>();
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t chunks = ceil_div(x.m, kFinishFeatures), groups = ceil_div(x.positions, kFinishPositions);
  const int64_t k0 = blockIdx.x % chunks * kFinishFeatures, p0 = blockIdx.x / chunks % groups * kFinishPositions;
  const int64_t b = blockIdx.x / chunks / groups;
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
      add_beta_terms<Source>(x, statistics, b, p, k0, sum);
    }
    shared.value[lane][i] = sum[0];
    shared.value[lane + kWarp][i] = sum[1];
  }
  sync_block();
  for (int i = warp; i < kFinishFeatures; i += kWarps) {
    const int64_t k = k0 + i, p = p0 + lane;
    if (k < x.m && p < x.positions) {
      Z& to = x.out[(b * x.m + k) * x.out_stride + x.begin + p];
      const T value = shared.value[i][lane];
      to = static_cast<Z>(x.add ? static_cast<T>(to) + value : value);
    }
  }
}

// ---- calls

// Where the gradients go. `add`: to what is there (source and beta; a band's columns are written).
template <class In, class T = compute_t<In>>
struct FeatureGrads {
  In* source;  // [B, m, S], null: not wanted
  In* target;  // [B, m, T], null: not wanted
  T* beta;  // [B, S]; null without statistics
  bool add, through_row_max;
};

// What finish_grads adds up for the sources, or for the targets that take part; the parts are for the caller.
template <bool Source, class In, class T = compute_t<In>>
FinishGradsArguments<T, In> plan_finish(const Features<In>& z, const T* beta, In* out, bool add) {
  FinishGradsArguments<T, In> x{};
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

template <bool Source, class T, class Z>
void finish_grads(const FinishGradsArguments<T, Z>& x, const Statistics<T>& statistics, Stream stream) {
  const int64_t blocks = x.batch * ceil_div(x.positions, kFinishPositions) * ceil_div(x.m, kFinishFeatures);
  launch(finish_grads_kernel<T, Z, Source>, blocks, kThreads, sizeof(FinishGradsShared<T>), stream, x, statistics);
}

template <class T, class E>
BackwardArguments<T, E> plan_backward(int64_t batch, int64_t m, int64_t sources, int64_t targets) {
  // Areas of 512 x 1024: few partial sums; smaller ones where that makes too few blocks for a GPU.
  BackwardArguments<T, E> x{};
  x.batch = static_cast<int>(batch);
  x.padded_sources = static_cast<int>(round_up(sources, kTile));
  x.padded_targets = static_cast<int>(round_up(targets, kTile));
  x.source_tiles = x.padded_sources / GradientTile::kRows;
  x.target_tiles = static_cast<int>(ceil_div(targets, GradientTile::kColumns));
  x.features = static_cast<int>(ceil_div(m, kStep));
  x.chunks = static_cast<int>(ceil_div(x.features, GradientShape<T>::kChunk));
  x.source_runs = (x.source_tiles + 3) / 4;
  x.target_runs = (x.target_tiles + 15) / 16;
  while (batch * x.source_runs * x.target_runs * x.chunks < enough(256)) {
    if (x.source_runs < x.source_tiles) {
      x.source_runs = std::min(2 * x.source_runs, x.source_tiles);
    } else if (x.target_runs < x.target_tiles) {
      x.target_runs = std::min(2 * x.target_runs, x.target_tiles);
    } else {
      break;
    }
  }
  return x;
}

template <bool Guided, class T, class In, int Passes>
GradientOperands<T, Passes> pack_operands(
    const Features<In>& z, const FeatureGrads<In>& out, const Context& context) {
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

// Everything behind the backward kernel: sums of its parts.
template <bool Guided, class In, class E, class T = compute_t<In>>
void finish_backward(
    const BackwardArguments<T, E>& x, const Features<In>& z, const Statistics<T>& statistics,
    const FeatureGrads<In>& out, Stream stream) {
  if (Guided) {
    const FinishBetaArguments<T> sums{
        z.batch, z.sources, x.target_runs, x.beta_parts, statistics.row_max, out.beta, out.add};
    launch(finish_beta_kernel<T>, blocks_for(z.batch * z.sources), kThreads, 0, stream, sums);
  }
  const T* beta = out.through_row_max ? out.beta : nullptr;
  const auto with_parts = [&](auto sums, const T* partial, int padded, int parts) {
    sums.partial = partial;
    sums.padded = padded;
    sums.parts = parts;
    sums.features = x.features;
    return sums;
  };
  if (out.source != nullptr) {
    const auto sums = plan_finish<true>(z, beta, out.source, out.add);
    finish_grads<true>(with_parts(sums, x.source_parts, x.padded_sources, x.target_runs), statistics, stream);
  }
  if (out.target != nullptr) {
    const auto sums = plan_finish<false>(z, beta, out.target, false);
    finish_grads<false>(with_parts(sums, x.target_parts, x.padded_targets, x.source_runs), statistics, stream);
  }
}

// Guided: prepare(x, source, target) sets what dC needs of the columns.
template <bool Guided, class In, class E, class Prepare, class T = compute_t<In>>
void run_backward(
    const Features<In>& z, const Statistics<T>& statistics, bool tf32, const Map<const E>& grad,
    const FeatureGrads<In>& out, const Context& context, Prepare&& prepare) {
  with_passes<In>(tf32, [&](auto passes) {
    const auto operands = pack_operands<Guided, T, In, passes>(z, out, context);
    BackwardArguments<T, E> x = plan_backward<T, E>(z.batch, z.m, z.sources, z.count);
    x.grad = grad;
    prepare(x, operands.source, operands.target);
    if (Guided) {
      x.beta_parts = context.allocate_array<T>(z.batch * x.target_runs * x.padded_sources);
    }
    if (out.source != nullptr) {
      x.source_parts = context.allocate_array<T>(z.batch * x.target_runs * x.padded_sources * x.features * 8);
    }
    if (out.target != nullptr) {
      x.target_parts = context.allocate_array<T>(z.batch * x.source_runs * x.padded_targets * x.features * 8);
    }
    launch(
        backward_kernel<T, passes, E, Guided>, int64_t{x.batch} * x.source_runs * x.target_runs * x.chunks, kThreads,
        sizeof(BackwardShared<T>), context.stream, x, operands);
    finish_backward<Guided>(x, z, statistics, out, context.stream);
  });
}

}  // namespace pose_kernels
