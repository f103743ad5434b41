// The backward of guided_readout: vectors run over sources, so that sums over targets are rows of the results. Part of
// guided_readout.inl.

constexpr int kBlockTargets = 96;  // a multiple of every kRows
constexpr int kBlockSources = 64;  // a multiple of every kCols
constexpr int kMostRows = 16;  // that `fill` writes, of which kRows count

// Everything that one sample's backward reads and writes.
template <class In, class T = compute_t<In>>
struct ReadoutSample {
  int64_t m, sources, targets;
  const In* source;  // [m][S]
  const In* target;  // [m][T]
  const T* inverse_b;
  const T* norm;
  PerPower<ReadoutValues<T>> v;
  PerPower<const T*> grad;  // [n][T]
  PerPower<const T*> result;
  T* source_grad;
  T* target_grad;
  PerPower<T*> values_grad;
  T* beta;
};

// sum_n G_n out_n of target t.
template <class In, class T = compute_t<In>>
static T gradient_dot(const ReadoutSample<In>& x, int power, int64_t t) {
  T dot = 0;
  for (int64_t r = 0; r < x.v[power].outputs; ++r) {
    dot += x.grad[power][r * x.targets + t] * x.result[power][r * x.targets + t];
  }
  return dot;
}

// du = g_1 / n + u (2 g_2 / n^2 - of_u), for the values of u and those of its square.
template <class T>
struct ReadoutFactors {
  T inverse[kBlockTargets], square[kBlockTargets], of_u[kBlockTargets];

  template <class In>
  ReadoutFactors(const ReadoutSample<In>& x, T eps, int64_t t0) {
    const int64_t valid = std::min<int64_t>(kBlockTargets, x.targets - t0);
    for (int64_t t = 0; t < kBlockTargets; ++t) {
      const T norm = t < valid ? x.norm[t0 + t] : 0;
      inverse[t] = t < valid ? 1 / norm : 0;
      square[t] = inverse[t] * inverse[t];
      of_u[t] = 0;
      if (t < valid && norm != eps) {  // none at its floor
        of_u[t] = (gradient_dot(x, 0, t0 + t) + 2 * gradient_dot(x, 1, t0 + t)) * square[t];
      }
    }
  }
};

// A register tile, of which `rows` and the columns below `valid` are there, added to rows of out [.][S].
template <class T>
SIMD_INLINE void add_to_rows(const vec<T> (&c)[kRows][kVecs], int64_t rows, int64_t valid, T* out, int64_t S) {
  constexpr int W = simd<T>::width;
  for (int i = 0; i < std::min<int64_t>(kRows, rows); ++i) {
    for (int j = 0; j < kVecs; ++j) {
      T* at = out + i * S + j * W;
      const int64_t left = valid - j * W;
      if (left >= W) {
        store(at, load(at) + c[i][j]);
      } else if (left > 0) {
        store_part(at, load_part(at, left) + c[i][j], left);
      }
    }
  }
}

// rows [0, n) of out [.][S], at most `valid` columns, += a [.][kBlockTargets] times b [kBlockTargets][kBlockSources]
template <class T>
static void add_product_to_rows(int64_t n, const T* a, const T* b, int64_t valid, T* out, int64_t S) {
  for (int64_t r = 0; r < n; r += kRows) {
    for (int64_t s = 0; s < valid; s += kCols<T>) {
      vec<T> acc[kRows][kVecs];
      zero_tile<T>(acc);
      multiply_tile<T, kRows, kVecs>(kBlockTargets, a + r * kBlockTargets, kBlockTargets, 1, b + s, kBlockSources, acc);
      add_to_rows<T>(acc, n - r, valid - s, out + r * S + s, S);
    }
  }
}

// Two rows to their place (t, s) in a matrix [kBlockTargets][kBlockSources].
template <class T>
SIMD_INLINE void store_two(const vec<T> (&rows)[2][kVecs], int64_t t, int64_t s, T* to) {
  for (int i = 0; i < 2; ++i) {
    for (int j = 0; j < kVecs; ++j) {
      store(to + (t + i) * kBlockSources + s + j * simd<T>::width, rows[i][j]);
    }
  }
}

// The two sides of a block: `fill` gives a register tile of theirs, targets by sources, as rows of kCols; `put` takes
// two rows.

// The features' side of a block of targets: C, dC and what that is multiplied with. In the compute type.
template <class In, class Packing, class T = compute_t<In>>
class WideFeatures {
 public:
  // The packed features of all samples: panels of targets by panels of sources, and rows of sources.
  struct Packed {
    Packed(const Features<In>& z, int64_t columns, int64_t rows_)
        : products(z.batch, z.m, targets_of(z), columns, sources_of(z), rows_),
          rows(rows_),
          stride(round_up(z.m, simd<T>::width)),
          source_rows(z.batch * rows * stride) {
      for (int64_t b = 0; b < z.batch; ++b) {
        pack_rows(
            z.source + b * z.m * z.sources, z.m, z.sources, 0, z.sources, rows, stride,
            source_rows.data() + b * rows * stride);
      }
    }
    Packing products;
    int64_t rows, stride;
    Scratch<T> source_rows;
  };
  using Session = typename Packing::Tiles::Session;

  // Of a worker, in units of T.
  static int64_t size(const Packed& packed, int64_t m) {
    return kBlockTargets * (round_up(m, kRows) + kBlockSources + packed.stride);
  }
  WideFeatures(Packed& packed, int64_t b, const ReadoutSample<In>& x, int64_t t0, T* scratch)
      : tiles_(packed.products.at(b)),
        source_rows_(packed.source_rows.data() + b * packed.rows * packed.stride),
        stride_(packed.stride),
        target_(scratch),
        dc_(target_ + round_up(x.m, kRows) * kBlockTargets),
        target_grad_(dc_ + kBlockTargets * kBlockSources) {
    copy_columns(x.target, x.m, x.targets, t0, kBlockTargets, target_);
    std::fill(target_grad_, target_grad_ + kBlockTargets * stride_, T(0));
  }
  // Of all targets and sources.
  __attribute__((always_inline)) void fill(int64_t t, int64_t s, T* c) const {
    tiles_.write(t, s / kCols<T>, c);
  }
  __attribute__((always_inline)) void put(int64_t t, int64_t s, const vec<T> (&dc)[2][kVecs]) {
    store_two<T>(dc, t, s, dc_);
  }
  void add_target_grad(int64_t s0) {
    add_source_product<T>(kBlockTargets, kBlockSources, dc_, source_rows_ + s0 * stride_, stride_, target_grad_);
  }
  void add_source_grad(const ReadoutSample<In>& x, int64_t s0, int64_t count) const {
    add_product_to_rows<T>(x.m, target_, dc_, count, x.source_grad + s0, x.sources);
  }
  void write_target_grad(const ReadoutSample<In>& x, int64_t t0, int64_t valid) const {
    for (int64_t k = 0; k < x.m; ++k) {
      for (int64_t t = 0; t < valid; ++t) {
        x.target_grad[k * x.targets + t0 + t] = target_grad_[t * stride_ + k];
      }
    }
  }

 private:
  typename Packing::Tiles tiles_;
  const T* source_rows_;  // [.][stride]
  int64_t stride_;
  T* target_;  // [m][kBlockTargets]
  T* dc_;  // [kBlockTargets][kBlockSources]
  T* target_grad_;  // [kBlockTargets][stride]
};

// The values' side: g, and Qhat^p. Targets beyond the last have a gradient of zero.
template <class T>
class WideReadout {
 public:
  static int64_t size(int64_t outputs) {
    return round_up(outputs, kRows) * (kBlockTargets + kBlockSources) + kBlockTargets * kBlockSources;
  }
  template <class In>
  WideReadout(const ReadoutSample<In>& x, int power, int64_t t0, T* scratch)
      : outputs_(x.v[power].outputs),
        grad_(scratch),
        values_(grad_ + round_up(outputs_, kRows) * kBlockTargets),
        weights_(values_ + round_up(outputs_, kRows) * kBlockSources) {
    copy_columns(x.grad[power], outputs_, x.targets, t0, kBlockTargets, grad_);
  }
  void begin(const ReadoutValues<T>& v, int64_t S, int64_t s0) {
    copy_columns(v.values, outputs_, S, s0, kBlockSources, values_);
  }
  // Of the block and the chunk.
  __attribute__((always_inline)) void fill(int64_t t, int64_t s, T* g) const {
    vec<T> tile[kRows][kVecs];
    zero_tile<T>(tile);
    multiply_tile<T, kRows, kVecs>(outputs_, grad_ + t, 1, kBlockTargets, values_ + s, kBlockSources, tile);
    store_tile<T>(tile, g);
  }
  __attribute__((always_inline)) void put(int64_t t, int64_t s, const vec<T> (&weights)[2][kVecs]) {
    store_two<T>(weights, t, s, weights_);
  }
  void add_values_grad(int64_t count, T* out, int64_t S) const {
    add_product_to_rows<T>(outputs_, grad_, weights_, count, out, S);
  }

 private:
  int64_t outputs_;
  T* grad_;  // [outputs][kBlockTargets]
  T* values_;  // [outputs][kBlockSources]
  T* weights_;  // [kBlockTargets][kBlockSources]
};

// In the place of values that are not there.
struct NoReadout {
  static int64_t size(int64_t) {
    return 0;
  }
  template <class Sample, class T>
  NoReadout(const Sample&, int, int64_t, T*) {}
  template <class T>
  void begin(const ReadoutValues<T>&, int64_t, int64_t) {}
  template <class T>
  void fill(int64_t, int64_t, T*) const {}
  template <class V>
  __attribute__((always_inline)) void put(int64_t, int64_t, const V&) {}
  template <class T>
  void add_values_grad(int64_t, T*, int64_t) const {}
};
template <class Readout>
constexpr bool kReads = !std::is_same_v<Readout, NoReadout>;

// dC, Qhat and its square of the block by the chunk of sources at s0, and beta of the chunk.
template <class Side, class Linear, class Squares, class T>
static void readout_tiles(
    const T* inverse_b, const ReadoutFactors<T>& by, int64_t t0, int64_t s0, bool features, Side& z, Linear& linear,
    Squares& squared, vec<T>* beta) {
  constexpr int W = simd<T>::width;
  for (int64_t s = 0; s < kBlockSources; s += kCols<T>) {
    vec<T> scale[kVecs], sums[kVecs] = {};
    for (int j = 0; j < kVecs; ++j) {
      scale[j] = load(inverse_b + s0 + s + j * W);
    }
    for (int64_t t = 0; t < kBlockTargets; t += kRows) {
      alignas(64) T c[kMostRows][kCols<T>], g[2][kMostRows][kCols<T>];
      z.fill(t0 + t, s0 + s, c[0]);
      if (features) {
        linear.fill(t, s, g[0][0]);
        squared.fill(t, s, g[1][0]);
      }
      for (int i = 0; i < kRows; i += 2) {
        vec<T> weights[2][2][kVecs], dc[2][kVecs];
#pragma GCC unroll 4
        for (int n = 0; n < 2 * kVecs; ++n) {
          const int row = i + n / kVecs, j = n % kVecs;
          const vec<T> here = load(&c[row][j * W]), square = here * here * scale[j], u = square * here;
          weights[0][n / kVecs][j] = u * by.inverse[t + row];
          weights[1][n / kVecs][j] = u * u * by.square[t + row];
          if (features) {
            vec<T> of_u = vec<T>{} - by.of_u[t + row];
            if constexpr (kReads<Squares>) {
              of_u += load(&g[1][row][j * W]) * (2 * by.square[t + row]);
            }
            vec<T> du = u * of_u;
            if constexpr (kReads<Linear>) {
              du += load(&g[0][row][j * W]) * by.inverse[t + row];
            }
            dc[n / kVecs][j] = 3 * square * du;
            sums[j] += du * u;
          }
        }
        linear.put(t + i, s, weights[0]);
        squared.put(t + i, s, weights[1]);
        if (features) {
          z.put(t + i, s, dc);
        }
      }
    }
    for (int j = 0; j < kVecs; ++j) {
      beta[s / W + j] = sums[j];
    }
  }
}

// Block `task` of all, whose sides begin at target t0 of its sample.
template <class In, class Side, class Linear, class Squares, class T = compute_t<In>>
static void readout_backward_block(
    const ReadoutSample<In>& x, const ReadoutFactors<T>& by, int64_t t0, int64_t task, Turns& turns, Side& z,
    Linear& linear, Squares& squared) {
  constexpr int W = simd<T>::width;
  const bool features = x.beta != nullptr;
  for (int64_t s0 = 0; s0 < x.sources; s0 += kBlockSources) {
    const int64_t chunk = s0 / kBlockSources, count = std::min<int64_t>(kBlockSources, x.sources - s0);
    vec<T> beta[kBlockSources / W] = {};
    linear.begin(x.v[0], x.sources, s0);
    squared.begin(x.v[1], x.sources, s0);
    readout_tiles(x.inverse_b, by, t0, s0, features, z, linear, squared, beta);
    if (x.target_grad != nullptr) {
      z.add_target_grad(s0);
    }
    turns.wait(chunk, task);
    if (x.source_grad != nullptr) {
      z.add_source_grad(x, s0, count);
    }
    if (x.values_grad[0] != nullptr) {
      linear.add_values_grad(count, x.values_grad[0] + s0, x.sources);
    }
    if (x.values_grad[1] != nullptr) {
      squared.add_values_grad(count, x.values_grad[1] + s0, x.sources);
    }
    for (int64_t s = 0; features && s < count; ++s) {
      x.beta[s0 + s] -= beta[s / W][s % W] * x.inverse_b[s0 + s];
    }
    turns.pass(chunk, task);
  }
  if (x.target_grad != nullptr) {
    z.write_target_grad(x, t0, std::min<int64_t>(kBlockTargets, x.targets - t0));
  }
}

// Of sample b; inverse_b is padded to `rows`.
template <class In, class T = compute_t<In>>
static ReadoutSample<In> readout_sample(
    const ReadoutBackwardArguments<In>& x, const T* inverse_b, int64_t rows, int64_t b) {
  const Features<In>& z = x.z;
  const auto part = [b](T* all, int64_t size) { return all == nullptr ? nullptr : all + b * size; };
  return {
      z.m,
      z.sources,
      z.targets,
      z.source + b * z.m * z.sources,
      z.target + b * z.m * z.targets,
      inverse_b + b * rows,
      x.statistics.norm + b * z.targets,
      values_of_sample(x.v, b),
      results_of_sample(x.v, x.grad, z.targets, b),
      results_of_sample(x.v, x.result, z.targets, b),
      part(x.source_grad, z.m * z.sources),
      part(x.target_grad, z.m * z.targets),
      {part(x.values_grad[0], x.v[0].values_batch), part(x.values_grad[1], x.v[1].values_batch)},
      part(x.beta, z.sources)};
}

template <class In, class Side, class Linear, class Squares>
static void readout_backward_with(const ReadoutBackwardArguments<In>& x) {
  using T = compute_t<In>;
  const Features<In>& z = x.z;
  const int64_t rows = round_up(z.sources, kBlockSources), columns = round_up(z.targets, kBlockTargets);
  typename Side::Packed packed(z, columns, rows);
  Scratch<T> inverse_b(z.batch * rows);
  for (int64_t b = 0; b < z.batch; ++b) {
    invert(x.statistics.row_max + b * z.sources, z.sources, rows, inverse_b.data() + b * rows);
  }
  const int64_t blocks = columns / kBlockTargets, tasks = z.batch * blocks;
  // Whole cache lines.
  const int64_t of_features = round_up(Side::size(packed, z.m), 64);
  const int64_t of_linear = round_up(Linear::size(x.v[0].outputs), 64), of_squares = Squares::size(x.v[1].outputs);
  const int64_t per_worker = round_up(of_features + of_linear + of_squares, 64);
  Scratch<T> scratch(count_workers(tasks) * per_worker);
  Turns turns(rows / kBlockSources);
  for_each_task(tasks, [&](int64_t worker, int64_t task) {
    [[maybe_unused]] const typename Side::Session session;
    const int64_t b = task / blocks, t0 = task % blocks * kBlockTargets;
    T* mine = scratch.data() + worker * per_worker;
    const ReadoutSample<In> sample = readout_sample<In>(x, inverse_b.data(), rows, b);
    const ReadoutFactors<T> by(sample, x.statistics.eps, t0);
    Side side(packed, b, sample, t0, mine);
    Linear linear(sample, 0, t0, mine + of_features);
    Squares squared(sample, 1, t0, mine + of_features + of_linear);
    readout_backward_block(sample, by, t0, task, turns, side, linear, squared);
  });
}

// As readout_of.
template <class In, class Side, class Linear, class Wide>
static void readout_backward_of(const ReadoutBackwardArguments<In>& x) {
  if (x.v[1].outputs == 0) {
    readout_backward_with<In, Side, Linear, NoReadout>(x);
  } else if (x.v[0].outputs == 0) {
    readout_backward_with<In, Side, NoReadout, Linear>(x);
  } else {
    readout_backward_with<In, Side, Linear, Wide>(x);
  }
}
