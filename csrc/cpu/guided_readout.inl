// Loops of guided_readout for one instruction set; the mathematics is at the top of guided_readout.cpp.
#include "cpu/matrix.inl"
#include "cpu/product.inl"
#include "cpu/soft_mutual.inl"
#include "cpu/row_max.inl"

// Columns [s0, s0 + count) of v [n][S] as rows [round_up(n, kRows)][count], zeros where there are none.
template <class T>
static void copy_columns(const T* v, int64_t n, int64_t S, int64_t s0, int64_t count, T* to) {
  const int64_t valid = std::clamp<int64_t>(S - s0, 0, count);
  for (int64_t r = 0; r < round_up(n, kRows); ++r, to += count) {
    const int64_t here = r < n ? valid : 0;
    std::copy(v + r * S + s0, v + r * S + s0 + here, to);
    std::fill(to + here, to + count, T(0));
  }
}

// ---- forward: a block of targets walks the sources in chunks

constexpr int kChunkSources = 96;  // a multiple of every kRows

// Of a worker, for blocks of `width` targets.
template <class T>
struct ReadoutScratch {
  T* powers;  // [kChunkSources][width]
  T* values;  // [outputs][kChunkSources]
  T* sums;  // [outputs][width]
};

// u^p of a chunk, `panels` of sources by those of the block, and the squares of u summed over it.
template <bool kSquared, class T>
static void chunk_powers(
    const Products<T>& z, const T* inverse_b, int64_t p0, int64_t count, int64_t q0, int64_t panels, T* powers,
    vec<T>* total) {
  constexpr int W = simd<T>::width;
  const int64_t width = panels * kCols<T>;
  for (int64_t q = 0; q < panels; ++q) {
    vec<T> squares[kVecs] = {};
    for (int64_t p = 0; p < count; ++p) {
      vec<T> c[kRows][kVecs];
      z.tile(p0 + p, q0 + q, c);
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
        const T scale = inverse_b[(p0 + p) * kRows + i];
#pragma GCC unroll 4
        for (int j = 0; j < kVecs; ++j) {
          const vec<T> u = c[i][j] * c[i][j] * (c[i][j] * scale);
          squares[j] += u * u;
          store(powers + (p * kRows + i) * width + q * kCols<T> + j * W, kSquared ? u * u : u);
        }
      }
    }
    for (int j = 0; j < kVecs; ++j) {
      total[q * kVecs + j] += squares[j];
    }
  }
}

// sums [rows][width] += values [rows][kChunkSources] times powers [count][width]
template <class T>
static void add_values(
    int64_t rows, int64_t count, int64_t width, const T* values, const T* powers, T* sums) {
  constexpr int W = simd<T>::width;
  for (int64_t r = 0; r < rows; r += kRows) {
    for (int64_t t = 0; t < width; t += kCols<T>) {
      vec<T> acc[kRows][kVecs];
      zero_tile<T>(acc);  // a sum of its own for each chunk: float32 keeps its accuracy over thousands of sources
      multiply_tile<T, kRows, kVecs>(count, values + r * kChunkSources, kChunkSources, 1, powers + t, width, acc);
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
        for (int j = 0; j < kVecs; ++j) {
          T* at = sums + (r + i) * width + t + j * W;
          store(at, load(at) + acc[i][j]);
        }
      }
    }
  }
}

// Target panels [q0, q0 + panels) of T targets: their results [n][T] and norms.
template <bool kSquared, class T>
static void readout_block(
    const Products<T>& z, int64_t S, int64_t targets, int64_t q0, int64_t panels, const T* inverse_b, T eps,
    const ReadoutValues<T>& v, const ReadoutScratch<T>& to, T* result, T* norm) {
  constexpr int W = simd<T>::width;
  const int64_t width = panels * kCols<T>, t0 = q0 * kCols<T>, valid = std::min(width, targets - t0);
  const int64_t rows = round_up(v.outputs, kRows), padded = round_up(S, kRows);
  vec<T> total[kMaxVecs] = {}, scale[kMaxVecs] = {};
  std::fill(to.sums, to.sums + rows * width, T(0));
  for (int64_t s0 = 0; s0 < padded; s0 += kChunkSources) {
    const int64_t count = std::min<int64_t>(kChunkSources, padded - s0);
    copy_columns(v.values, v.outputs, S, s0, kChunkSources, to.values);
    chunk_powers<kSquared, T>(z, inverse_b, s0 / kRows, count / kRows, q0, panels, to.powers, total);
    add_values<T>(rows, count, width, to.values, to.powers, to.sums);
  }
  for (int64_t t = 0; t < valid; ++t) {
    const T root = std::sqrt(total[t / W][t % W]);
    norm[t0 + t] = root < eps ? eps : root;
    const T inverse = 1 / norm[t0 + t];
    scale[t / W][t % W] = kSquared ? inverse * inverse : inverse;
  }
  for (int64_t r = 0; r < v.outputs; ++r) {
    T* out = result + r * targets + t0;
    for (int64_t t = 0; t < valid; t += W) {
      const vec<T> x = load(to.sums + r * width + t) * scale[t / W];
      if (t + W <= valid) {
        store(out + t, x);
      } else {
        store_part(out + t, x, valid - t);
      }
    }
  }
}

// The widest block whose tasks are still enough for many threads.
template <class T>
static int64_t readout_panels(int64_t batch, int64_t panels) {
  return std::clamp<int64_t>(batch * panels / 32, 1, kMaxVecs / kVecs);
}

template <class In>
void guided_readout(const ReadoutArguments<In>& x) {
  using T = compute_t<In>;
  const Features<In>& z = x.z;
  const int64_t rows = round_up(z.sources, kRows), columns = round_up(z.targets, kCols<T>);
  const int64_t panels = columns / kCols<T>, per_block = readout_panels<T>(z.batch, panels);
  const int64_t blocks = round_up(panels, per_block) / per_block, width = per_block * kCols<T>;
  Scratch<T> source(z.batch * rows * z.m), target(z.batch * columns * z.m), inverse_b(z.batch * rows);
  pack_all_panels(z, rows, columns, source.data(), target.data());
  for (int64_t b = 0; b < z.batch; ++b) {
    invert(x.statistics.row_max + b * z.sources, z.sources, rows, inverse_b.data() + b * rows);
  }
  const int64_t outputs = round_up(x.v.outputs, kRows);
  const int64_t sizes[] = {kChunkSources * width, outputs * kChunkSources, outputs * width};
  const int64_t per_worker = sizes[0] + sizes[1] + sizes[2];
  Scratch<T> scratch(count_workers(z.batch * blocks) * per_worker);
  const auto block = x.v.squared ? readout_block<true, T> : readout_block<false, T>;
  for_each_task(z.batch * blocks, [&](int64_t worker, int64_t task) {
    const int64_t b = task / blocks, q0 = task % blocks * per_block;
    T* mine = scratch.data() + worker * per_worker;
    ReadoutValues<T> v = x.v;
    v.values += b * v.values_batch;
    block(
        {source.data() + b * rows * z.m, target.data() + b * columns * z.m, z.m}, z.sources, z.targets, q0,
        std::min(per_block, panels - q0), inverse_b.data() + b * rows, x.statistics.eps, v,
        {mine, mine + sizes[0], mine + sizes[0] + sizes[1]}, x.result + b * v.outputs * z.targets,
        x.statistics.norm + b * z.targets);
  });
}

// ---- backward: vectors run over sources, so that sums over targets are rows of the results

constexpr int kBlockTargets = 96;  // a multiple of every kRows
constexpr int kBlockSources = 64;  // a multiple of every kCols

// Everything that one sample's backward reads and writes, in the layouts its products want.
template <class T>
struct ReadoutSample {
  int64_t m, sources, targets;
  const T* source_panels;  // [panel][m][kCols]
  const T* target_panels;  // [panel][m][kRows]
  const T* source_rows;  // [.][source_stride]
  const T* target;  // [m][T]
  const T* inverse_b;
  const T* norm;
  int64_t source_stride;
  const T* grad;  // [n][T]
  const T* result;
  T* source_grad;
  T* target_grad;
  T* values_grad;
  T* beta;
};

// Of a worker. Targets beyond the last are zero.
template <class T>
struct ReadoutBackwardScratch {
  T* grad;  // [outputs][kBlockTargets]
  T* target;  // [m][kBlockTargets]
  T* values;  // [outputs][kBlockSources]
  T* dc;  // [kBlockTargets][kBlockSources]
  T* weights;  // the same: Qhat^p
  T* target_grad;  // [kBlockTargets][source_stride]
  T of_g[kBlockTargets], of_u[kBlockTargets], of_weight[kBlockTargets];
};

// du = g of_g - u of_u (p = 1) or u (g of_g - of_u) (p = 2), Qhat^p = u^p of_weight
template <class T>
static void readout_factors(
    const ReadoutSample<T>& x, const ReadoutValues<T>& v, T eps, int64_t t0, int64_t valid,
    ReadoutBackwardScratch<T>& to) {
  for (int64_t t = 0; t < kBlockTargets; ++t) {
    T dot = 0;
    for (int64_t r = 0; t < valid && r < v.outputs; ++r) {
      dot += x.grad[r * x.targets + t0 + t] * x.result[r * x.targets + t0 + t];
    }
    const T norm = t < valid ? x.norm[t0 + t] : 0, inverse = t < valid ? 1 / norm : 0;
    const T square = inverse * inverse, of_norm = norm == eps ? 0 : dot * square;  // none at its floor
    to.of_g[t] = v.squared ? 2 * square : inverse;
    to.of_u[t] = v.squared ? 2 * of_norm : of_norm;
    to.of_weight[t] = v.squared ? square : inverse;
  }
}

// dC and Qhat^p of the block by the chunk of sources at s0, and beta of the chunk.
template <bool kSquared, class T>
static void readout_tiles(
    const ReadoutSample<T>& x, const ReadoutValues<T>& v, int64_t t0, int64_t s0, bool features,
    const ReadoutBackwardScratch<T>& to, vec<T>* beta) {
  constexpr int W = simd<T>::width;
  for (int64_t s = 0; s < kBlockSources; s += kCols<T>) {
    vec<T> scale[kVecs];
    for (int j = 0; j < kVecs; ++j) {
      scale[j] = load(x.inverse_b + s0 + s + j * W);
    }
    for (int64_t t = 0; t < kBlockTargets; t += kRows) {
      vec<T> c[kRows][kVecs], g[kRows][kVecs];
      correlation_tile<T>(x.m, x.target_panels + (t0 + t) * x.m, x.source_panels + (s0 + s) * x.m, c);
      T* dc = to.dc + t * kBlockSources + s;
      T* weights = to.weights + t * kBlockSources + s;
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
        for (int j = 0; j < kVecs; ++j) {
          const vec<T> u = c[i][j] * c[i][j] * (c[i][j] * scale[j]);
          store(dc + i * kBlockSources + j * W, c[i][j]);
          store(weights + i * kBlockSources + j * W, (kSquared ? u * u : u) * to.of_weight[t + i]);
        }
      }
      if (!features) {
        continue;
      }
      zero_tile<T>(g);
      multiply_tile<T, kRows, kVecs>(v.outputs, to.grad + t, 1, kBlockTargets, to.values + s, kBlockSources, g);
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
        for (int j = 0; j < kVecs; ++j) {
          const vec<T> here = load(dc + i * kBlockSources + j * W);
          const vec<T> square = here * here * scale[j], u = square * here;
          const vec<T> du = kSquared ? u * (g[i][j] * to.of_g[t + i] - to.of_u[t + i])
                                     : g[i][j] * to.of_g[t + i] - u * to.of_u[t + i];
          store(dc + i * kBlockSources + j * W, 3 * square * du);
          beta[s / W + j] += du * u;
        }
      }
    }
  }
}

// rows [0, n) of out [.][S], at most `valid` columns, += a [.][kBlockTargets] times b [kBlockTargets][kBlockSources]
template <class T>
static void add_to_rows(int64_t n, const T* a, const T* b, int64_t valid, T* out, int64_t S) {
  constexpr int W = simd<T>::width;
  for (int64_t r = 0; r < n; r += kRows) {
    for (int64_t s = 0; s < valid; s += kCols<T>) {
      vec<T> acc[kRows][kVecs];
      zero_tile<T>(acc);
      multiply_tile<T, kRows, kVecs>(kBlockTargets, a + r * kBlockTargets, kBlockTargets, 1, b + s, kBlockSources, acc);
      for (int i = 0; i < std::min<int64_t>(kRows, n - r); ++i) {
        for (int j = 0; j < kVecs; ++j) {
          T* at = out + (r + i) * S + s + j * W;
          const int64_t left = valid - s - j * W;
          if (left >= W) {
            store(at, load(at) + acc[i][j]);
          } else if (left > 0) {
            store_part(at, load_part(at, left) + acc[i][j], left);
          }
        }
      }
    }
  }
}

// Block `task` of all, which begins at target t0 of its sample.
template <bool kSquared, class T>
static void readout_backward_block(
    const ReadoutSample<T>& x, const ReadoutValues<T>& v, T eps, int64_t t0, int64_t task, Turns& turns,
    ReadoutBackwardScratch<T>& to) {
  constexpr int W = simd<T>::width;
  const int64_t valid = std::min<int64_t>(kBlockTargets, x.targets - t0);
  const bool features = x.beta != nullptr;
  copy_columns(x.grad, v.outputs, x.targets, t0, kBlockTargets, to.grad);
  copy_columns(x.target, x.m, x.targets, t0, kBlockTargets, to.target);
  readout_factors(x, v, eps, t0, valid, to);
  std::fill(to.target_grad, to.target_grad + kBlockTargets * x.source_stride, T(0));
  for (int64_t s0 = 0; s0 < x.sources; s0 += kBlockSources) {
    const int64_t chunk = s0 / kBlockSources, count = std::min<int64_t>(kBlockSources, x.sources - s0);
    vec<T> beta[kBlockSources / W] = {};
    copy_columns(v.values, v.outputs, x.sources, s0, kBlockSources, to.values);
    readout_tiles<kSquared, T>(x, v, t0, s0, features, to, beta);
    if (x.target_grad != nullptr) {
      add_source_product<T>(
          kBlockTargets, kBlockSources, to.dc, x.source_rows + s0 * x.source_stride, x.source_stride, to.target_grad);
    }
    turns.wait(chunk, task);
    if (x.source_grad != nullptr) {
      add_to_rows<T>(x.m, to.target, to.dc, count, x.source_grad + s0, x.sources);
    }
    if (x.values_grad != nullptr) {
      add_to_rows<T>(v.outputs, to.grad, to.weights, count, x.values_grad + s0, x.sources);
    }
    for (int64_t s = 0; features && s < count; ++s) {
      x.beta[s0 + s] -= beta[s / W][s % W] * x.inverse_b[s0 + s];
    }
    turns.pass(chunk, task);
  }
  for (int64_t k = 0; x.target_grad != nullptr && k < x.m; ++k) {
    for (int64_t t = 0; t < valid; ++t) {
      x.target_grad[k * x.targets + t0 + t] = to.target_grad[t * x.source_stride + k];
    }
  }
}

// The features of all samples, packed.
template <class In, class T = compute_t<In>>
struct ReadoutPacked {
  ReadoutPacked(const Features<In>& z, const Statistics<T>& statistics)
      : rows(round_up(z.sources, kBlockSources)),
        columns(round_up(z.targets, kBlockTargets)),
        stride(round_up(z.m, simd<T>::width)),
        source_panels(z.batch * rows * z.m),
        target_panels(z.batch * columns * z.m),
        source_rows(z.batch * rows * stride),
        target(z.batch * z.m * z.targets),
        inverse_b(z.batch * rows) {
    for (int64_t b = 0; b < z.batch; ++b) {
      const In* source = z.source + b * z.m * z.sources;
      const In* of_target = z.target + b * z.m * z.targets;
      pack_panels(source, z.m, z.sources, 0, z.sources, rows, kCols<T>, source_panels.data() + b * rows * z.m);
      pack_panels(of_target, z.m, z.targets, 0, z.targets, columns, kRows, target_panels.data() + b * columns * z.m);
      pack_rows(source, z.m, z.sources, 0, z.sources, rows, stride, source_rows.data() + b * rows * stride);
      std::copy(of_target, of_target + z.m * z.targets, target.data() + b * z.m * z.targets);
      invert(statistics.row_max + b * z.sources, z.sources, rows, inverse_b.data() + b * rows);
    }
  }

  int64_t rows, columns, stride;
  Scratch<T> source_panels, target_panels, source_rows, target, inverse_b;
};

template <class In>
static ReadoutSample<compute_t<In>> readout_sample(
    const ReadoutBackwardArguments<In>& x, ReadoutPacked<In>& packed, int64_t b) {
  using T = compute_t<In>;
  const Features<In>& z = x.z;
  const auto part = [b](T* all, int64_t size) { return all == nullptr ? nullptr : all + b * size; };
  const int64_t of_result = x.v.outputs * z.targets;
  return {
      z.m,
      z.sources,
      z.targets,
      packed.source_panels.data() + b * packed.rows * z.m,
      packed.target_panels.data() + b * packed.columns * z.m,
      packed.source_rows.data() + b * packed.rows * packed.stride,
      packed.target.data() + b * z.m * z.targets,
      packed.inverse_b.data() + b * packed.rows,
      x.statistics.norm + b * z.targets,
      packed.stride,
      x.grad + b * of_result,
      x.result + b * of_result,
      part(x.source_grad, z.m * z.sources),
      part(x.target_grad, z.m * z.targets),
      part(x.values_grad, x.v.values_batch),
      part(x.beta, z.sources)};
}

template <class In>
void guided_readout_backward(const ReadoutBackwardArguments<In>& x) {
  using T = compute_t<In>;
  const Features<In>& z = x.z;
  ReadoutPacked<In> packed(z, x.statistics);
  const int64_t blocks = packed.columns / kBlockTargets, tasks = z.batch * blocks;
  const int64_t outputs = round_up(x.v.outputs, kRows), m = round_up(z.m, kRows);
  const int64_t sizes[] = {
      outputs * kBlockTargets,       m * kBlockTargets,
      outputs * kBlockSources,       kBlockTargets * kBlockSources,
      kBlockTargets * kBlockSources, kBlockTargets * packed.stride};
  const int64_t per_worker = std::accumulate(sizes, sizes + 6, int64_t(0));
  Scratch<T> scratch(count_workers(tasks) * per_worker);
  Turns turns(packed.rows / kBlockSources);
  const auto block = x.v.squared ? readout_backward_block<true, T> : readout_backward_block<false, T>;
  for_each_task(tasks, [&](int64_t worker, int64_t task) {
    const int64_t b = task / blocks;
    T* at[6] = {scratch.data() + worker * per_worker};
    for (int i = 1; i < 6; ++i) {
      at[i] = at[i - 1] + sizes[i - 1];
    }
    ReadoutBackwardScratch<T> to{at[0], at[1], at[2], at[3], at[4], at[5], {}, {}, {}};
    ReadoutValues<T> v = x.v;
    v.values += b * v.values_batch;
    block(readout_sample(x, packed, b), v, x.statistics.eps, task % blocks * kBlockTargets, task, turns, to);
  });
}
