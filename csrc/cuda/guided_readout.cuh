// guided_readout on CUDA: what is read out of the guided map, which is never made. The mathematics is at the top of
// pose_kernels/guided_readout.py; what is computed where:
//
//   row_maxima       b_s and t*(s), as in guided_correlation (guided_correlation.cuh)
//   readout          rows are targets: a_n = sum_s v_n u^p and sum_s u^2; backward, rows are sources: dv_n
//   finish_readout   partial sums added in order, scaled, in the order of the result
//   target_terms     D_t and what else du has of the targets
//   readout_gradient dC in tiles and its product with features: rows are sources (dz_s and beta), then targets (dz_t)
//   finish_beta, finish_grads   partial sums added in order, and the gradient through b_s (feature_gradients.cuh)
//
// Tiles and products are in readout_tiles.cuh. No floating-point atomics, no scratch that grows as S T: partial sums
// are at most 512 blocks of 64 rows more than one float32 copy of what they become. What each should take is in
// docs/kernels.md.
#pragma once

#include "cuda/guided_correlation.cuh"
#include "cuda/readout_tiles.cuh"

namespace pose_kernels {

// Features, and the values [n, S] or, `own`, [B, n, S].
template <class In>
struct Readout {
  Features<In> z;
  const In* values;
  int64_t outputs;
  bool own;
  int power;
};

template <class In>
struct ReadoutGrads {
  In* source;  // [B, m, S], null: not wanted, as the others
  In* target;  // [B, m, T]
  In* values;  // as the values are
};

template <class T>
struct FinishReadoutArguments {
  int64_t batch, parts, outputs, positions;
  const T* partial;  // [B, parts, padded positions of 64, padded outputs of 8]
  const T* inverse_n;  // [B, padded positions], null: nothing to divide by
  int power;
};

template <class T, class E>
struct TargetTermsArguments {
  int64_t batch, outputs, targets;
  T eps;
  int power;
  const E* grad;  // [B, n, T]
  const E* result;  // [B, n, T]
  const T* norm;  // [B, T]
  T* weight;  // [B, padded targets], 0 in the padding
  T* slope;  // the same; null: not wanted
};

constexpr int kTermTargets = kWarp;  // of a block of target_terms: a lane each, warps share the outputs

template <class T>
struct TargetTermsShared {
  T sums[kWarps][kTermTargets];
};

// ---- kernels

// A block makes 32 positions by 64 outputs: a warp reads a position at a time with outputs across its lanes and writes
// an output at a time with positions across them.
template <class T, class E>
__global__ void __launch_bounds__(kThreads) finish_readout_kernel(FinishReadoutArguments<T> x, E* out) {
  FinishGradsShared<T>& shared = shared_memory<FinishGradsShared<T>>();
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t chunks = ceil_div(x.outputs, kFinishFeatures), groups = ceil_div(x.positions, kFinishPositions);
  const int64_t n0 = blockIdx.x % chunks * kFinishFeatures, p0 = blockIdx.x / chunks % groups * kFinishPositions;
  const int64_t b = blockIdx.x / chunks / groups;
  const int64_t rows = round_up(x.positions, SweepTile::kRows), line = round_up(x.outputs, kStep);
  for (int i = warp; i < kFinishPositions && p0 + i < x.positions; i += kWarps) {
    const int64_t p = p0 + i;
    T sum[2] = {};
    for (int64_t part = 0; part < x.parts; ++part) {
      const T* from = x.partial + ((b * x.parts + part) * rows + p) * line;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int64_t n = n0 + lane + kWarp * h;
        if (n < x.outputs) {
          sum[h] += from[n];
        }
      }
    }
    const T inverse_n = x.inverse_n == nullptr ? 1 : x.inverse_n[b * round_up(x.positions, kTile) + p];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const T once = sum[h] * inverse_n;
      shared.value[lane + kWarp * h][i] = x.power == 1 ? once : once * inverse_n;
    }
  }
  sync_block();
  for (int i = warp; i < kFinishFeatures && n0 + i < x.outputs; i += kWarps) {
    if (p0 + lane < x.positions) {
      out[(b * x.outputs + n0 + i) * x.positions + p0 + lane] = static_cast<E>(shared.value[i][lane]);
    }
  }
}

template <class T, class E>
__global__ void __launch_bounds__(kThreads) target_terms_kernel(TargetTermsArguments<T, E> x) {
  TargetTermsShared<T>& shared = shared_memory<TargetTermsShared<T>>();
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t padded = round_up(x.targets, kTile), index = int64_t{blockIdx.x} * kTermTargets + lane;
  const int64_t b = index / padded, t = index % padded;
  T sum = 0;
  if (x.slope != nullptr && t < x.targets) {
    for (int64_t n = warp; n < x.outputs; n += kWarps) {
      const int64_t at = (b * x.outputs + n) * x.targets + t;
      sum += static_cast<T>(x.grad[at]) * static_cast<T>(x.result[at]);
    }
  }
  shared.sums[warp][lane] = sum;
  sync_block();
  if (warp != 0) {
    return;
  }
  T weight = 0, slope = 0;
  if (t < x.targets) {
    T D = 0;
#pragma unroll
    for (int i = 0; i < kWarps; ++i) {
      D += shared.sums[i][lane];
    }
    const T norm = x.norm[b * x.targets + t], inverse = 1 / norm;
    weight = x.power == 1 ? inverse : inverse * inverse;
    slope = norm == x.eps ? 0 : D * inverse * inverse;
  }
  x.weight[index] = weight;
  if (x.slope != nullptr) {
    x.slope[index] = slope;
  }
}

// ---- calls

// A matrix [batch, m, positions] to be packed; one for all samples where the batch is 1.
template <class In>
struct Matrix {
  const In* data;
  int64_t batch, m, positions;
};

template <class In>
struct ReadoutMatrices {
  Matrix<In> source, target, values, grad;

  explicit ReadoutMatrices(const Readout<In>& x, const In* grad_ = nullptr)
      : source{x.z.source, x.z.batch, x.z.m, x.z.sources},
        target{x.z.target, x.z.batch, x.z.m, x.z.targets},
        values{x.values, x.own ? x.z.batch : 1, x.outputs, x.z.sources},
        grad{grad_, x.z.batch, x.outputs, x.z.targets} {}
};

// Adds a job to the plan, whose batch and m are the matrix's.
template <class In, class T, int Passes>
void pack_operand(
    PackPlan& plan, Order order, const Matrix<In>& from, const Context& context, Operand<T, Passes>& operand) {
  T* to = context.allocate_array<T>(Packed<T, Passes>::elements(from.batch, from.m, from.positions));
  plan.add(PackJob{order, from.data, to, from.positions, 0, from.positions, kFeatures<Passes>});
  operand.packed = {
      reinterpret_cast<const Quad<T>*>(to), static_cast<int>(ceil_div(from.positions, kTile)),
      static_cast<int>(ceil_div(from.m, kFeatures<Passes>))};
  operand.common = from.batch == 1;
}

// Rows and columns of C, and of g, and what X is multiplied with, for either side as the rows.
template <class T, int Passes>
struct ReadoutOperands {
  Operand<T, Passes> source_rows, source_columns, target_rows, target_columns;
  Operand<T, Passes> values_rows, values_columns, grad_rows, grad_columns;
  Operand<T, kComputed<Passes>> source_weights, target_weights, values_weights, grad_weights;
};

template <class T, int Passes, class In>
ReadoutOperands<T, Passes> pack_forward(const ReadoutMatrices<In>& of, const Context& context) {
  ReadoutOperands<T, Passes> z{};
  PackPlan features(of.source.batch, of.source.m), values(of.values.batch, of.values.m);
  pack_operand(features, Order::kRows, of.source, context, z.source_rows);
  pack_operand(features, Order::kColumns, of.target, context, z.target_columns);
  pack_operand(features, Order::kRows, of.target, context, z.target_rows);
  pack_operand(features, Order::kColumns, of.source, context, z.source_columns);
  pack_operand(values, Order::kFromColumns, of.values, context, z.values_weights);
  features.run<In, T, Passes>(context.stream);
  values.run<In, T, Passes>(context.stream);
  return z;
}

template <class T, int Passes, class In>
ReadoutOperands<T, Passes> pack_backward(
    const ReadoutMatrices<In>& of, const ReadoutGrads<In>& out, const Context& context) {
  ReadoutOperands<T, Passes> z{};
  PackPlan sources(of.source.batch, of.source.m), targets(of.source.batch, of.source.m);  // as the rows
  PackPlan values(of.values.batch, of.values.m), grad(of.grad.batch, of.grad.m);
  pack_operand(sources, Order::kRows, of.source, context, z.source_rows);
  pack_operand(sources, Order::kColumns, of.target, context, z.target_columns);
  if (out.source != nullptr) {
    pack_operand(sources, Order::kFromColumns, of.target, context, z.target_weights);
  }
  if (out.source != nullptr || out.target != nullptr) {
    pack_operand(values, Order::kRows, of.values, context, z.values_rows);
    pack_operand(grad, Order::kColumns, of.grad, context, z.grad_columns);
  }
  if (out.target != nullptr) {
    pack_operand(targets, Order::kRows, of.target, context, z.target_rows);
    pack_operand(targets, Order::kColumns, of.source, context, z.source_columns);
    pack_operand(targets, Order::kFromColumns, of.source, context, z.source_weights);
    pack_operand(values, Order::kColumns, of.values, context, z.values_columns);
    pack_operand(grad, Order::kRows, of.grad, context, z.grad_rows);
  }
  if (out.values != nullptr) {
    pack_operand(grad, Order::kFromColumns, of.grad, context, z.grad_weights);
  }
  for (const PackPlan& plan : {sources, targets, values, grad}) {
    plan.run<In, T, Passes>(context.stream);
  }
  return z;
}

// A sweep with the parts of its product, where one is wanted.
template <class T, int Passes>
void set_product(Sweep<T, Passes>& x, const Operand<T, kComputed<Passes>>& weights, const Context& context) {
  x.weights = weights;
  x.features = weights.packed.steps;
  x.parts = context.allocate_array<T>(x.walk.blocks() * SweepTile::kRows * x.features * kStep);
}

// A number per row, sample and run.
template <class T, int Passes>
T* allocate_sums(const Sweep<T, Passes>& x, int64_t rows, const Context& context) {
  return context.allocate_array<T>(int64_t{x.walk.batch} * x.walk.runs * round_up(rows, kTile));
}

template <class T, class E>
void finish_readout(const FinishReadoutArguments<T>& x, E* out, Stream stream) {
  const int64_t blocks = x.batch * ceil_div(x.positions, kFinishPositions) * ceil_div(x.outputs, kFinishFeatures);
  launch(finish_readout_kernel<T, E>, blocks, kThreads, sizeof(FinishGradsShared<T>), stream, x, out);
}

template <class In, class T = compute_t<In>>
void run_guided_readout(
    const Readout<In>& r, const Statistics<T>& statistics, bool tf32, In* out, const Context& context) {
  const Features<In>& z = r.z;
  with_passes<In>(tf32, [&](auto passes) {
    const auto operands = pack_forward<T, passes>(ReadoutMatrices<In>(r), context);
    T* inverse_b = context.allocate_array<T>(z.batch * round_up(z.sources, kTile));
    find_row_maxima(z, operands.source_rows.packed, operands.target_columns.packed, statistics, inverse_b, context);
    auto x = plan_sweep<T, passes>(z.batch, z.targets, z.sources);
    x.rows = operands.target_rows;
    x.columns = operands.source_columns;
    x.sums = allocate_sums(x, z.targets, context);
    set_product(x, operands.values_weights, context);
    launch(
        readout_kernel<T, passes, true>, x.walk.blocks(), kThreads, sizeof(SweepShared<T>), context.stream, x,
        ReadoutScales<T>{r.power, inverse_b, nullptr});
    FinishColumnsArguments<T> norms{z.batch, z.targets, x.walk.runs, z.targets, 0, statistics.eps, x.sums};
    norms.norm = statistics.norm;
    norms.inverse_n = context.allocate_array<T>(z.batch * round_up(z.targets, kTile));
    finish_columns(norms, context.stream);
    finish_readout(
        FinishReadoutArguments<T>{z.batch, x.walk.runs, r.outputs, z.targets, x.parts, norms.inverse_n, r.power}, out,
        context.stream);
  });
}

// dv_n: sources are the rows. Values of all samples get the sum over them, as more parts.
template <class In, class T, int Passes>
void run_values_gradient(
    const Readout<In>& r, const ReadoutOperands<T, Passes>& operands, const ReadoutScales<T>& scales, In* out,
    const Context& context) {
  const Features<In>& z = r.z;
  auto x = plan_sweep<T, Passes>(z.batch, z.sources, z.targets);
  x.rows = operands.source_rows;
  x.columns = operands.target_columns;
  set_product(x, operands.grad_weights, context);
  launch(
      readout_kernel<T, Passes, false>, x.walk.blocks(), kThreads, sizeof(SweepShared<T>), context.stream, x, scales);
  FinishReadoutArguments<T> sums{z.batch, x.walk.runs, r.outputs, z.sources, x.parts, nullptr, r.power};
  if (!r.own) {
    sums.parts *= sums.batch;
    sums.batch = 1;
  }
  finish_readout(sums, out, context.stream);
}

// dz of the side that is the rows; of the sources beta first, which both sides need.
template <bool SourceRows, class In, class T, int Passes>
void run_feature_gradient(
    const Readout<In>& r, const ReadoutOperands<T, Passes>& operands, GradientTerms<T, Passes> terms,
    const Statistics<T>& statistics, T* beta, In* out, const Context& context) {
  const Features<In>& z = r.z;
  const int64_t rows = SourceRows ? z.sources : z.targets, columns = SourceRows ? z.targets : z.sources;
  auto x = plan_sweep<T, Passes>(z.batch, rows, columns);
  x.rows = SourceRows ? operands.source_rows : operands.target_rows;
  x.columns = SourceRows ? operands.target_columns : operands.source_columns;
  terms.rows = SourceRows ? operands.values_rows : operands.grad_rows;
  terms.columns = SourceRows ? operands.grad_columns : operands.values_columns;
  if (SourceRows) {
    x.sums = allocate_sums(x, rows, context);
  }
  if (out != nullptr) {
    set_product(x, SourceRows ? operands.target_weights : operands.source_weights, context);
  }
  launch(
      readout_gradient_kernel<T, Passes, SourceRows>, x.walk.blocks(), kThreads, sizeof(SweepShared<T>),
      context.stream, x, terms);
  if (SourceRows) {
    const FinishBetaArguments<T> sums{z.batch, z.sources, x.walk.runs, x.sums, statistics.row_max, beta, false};
    launch(finish_beta_kernel<T>, blocks_for(z.batch * z.sources), kThreads, 0, context.stream, sums);
  }
  if (out != nullptr) {
    const SourcesByTarget best_of =
        SourceRows ? SourcesByTarget{} : sort_by_target(z, statistics.row_argmax, context);
    auto sums = plan_finish<SourceRows>(z, static_cast<const T*>(beta), best_of, out, false);
    sums.partial = x.parts;
    sums.padded = round_up(rows, SweepTile::kRows);
    sums.parts = x.walk.runs;
    sums.features = x.features;
    finish_grads<SourceRows>(sums, statistics, context.stream);
  }
}

// `grad` and `result` [B, n, T].
template <class In, class T = compute_t<In>>
void run_guided_readout_backward(
    const Readout<In>& r, const Statistics<T>& statistics, bool tf32, const In* grad, const In* result,
    const ReadoutGrads<In>& out, const Context& context) {
  const Features<In>& z = r.z;
  const bool features = out.source != nullptr || out.target != nullptr;
  with_passes<In>(tf32, [&](auto passes) {
    const auto operands = pack_backward<T, passes>(ReadoutMatrices<In>(r, grad), out, context);
    const T* inverse_b = inverse_row_maxima(z, statistics, context);
    const int64_t columns = z.batch * round_up(z.targets, kTile);
    T* weight = context.allocate_array<T>(columns);
    T* slope = features ? context.allocate_array<T>(columns) : nullptr;
    launch(
        target_terms_kernel<T, In>, columns / kTermTargets, kThreads, sizeof(TargetTermsShared<T>), context.stream,
        TargetTermsArguments<T, In>{
            z.batch, r.outputs, z.targets, statistics.eps, r.power, grad, result, statistics.norm, weight, slope});
    if (out.values != nullptr) {
      run_values_gradient(r, operands, ReadoutScales<T>{r.power, inverse_b, weight}, out.values, context);
    }
    if (features) {
      const GradientTerms<T, passes> terms{r.power, inverse_b, weight, slope, {}, {}};
      T* beta = context.allocate_array<T>(z.batch * z.sources);
      run_feature_gradient<true>(r, operands, terms, statistics, beta, out.source, context);
      if (out.target != nullptr) {
        run_feature_gradient<false>(r, operands, terms, statistics, beta, out.target, context);
      }
    }
  });
}

}  // namespace pose_kernels
