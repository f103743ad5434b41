// Loops of guided_correlation for one instruction set; the mathematics is at the top of guided_correlation.cpp.
//
// Sources are walked in panels of kRows, targets in panels of kCols: one register tile of the product. `packed`
// features are [panel][m][width of the panel], padded with zeros, in the compute type.

constexpr int kRows = SIMD_BYTES == 64 ? 12 : 6;
constexpr int kVecs = 2;
constexpr int kStep = 12;  // rows are padded to a multiple of every tile height used below
constexpr int kChunk = 48;  // rows whose dC stays in the first-level cache in backward

template <class T>
constexpr int kCols = kVecs * simd<T>::width;

SIMD_INLINE int64_t round_up(int64_t n, int64_t step) {
  return (n + step - 1) / step * step;
}

// [m][n] -> [n / width][m][width]
template <class In>
static void pack_panels(const In* x, int64_t m, int64_t n, int width, compute_t<In>* packed) {
  for (int64_t first = 0; first < n; first += width) {
    const int64_t valid = std::min<int64_t>(width, n - first);
    for (int64_t k = 0; k < m; ++k) {
      const In* row = x + k * n + first;
      for (int64_t i = 0; i < width; ++i) {
        *packed++ = i < valid ? static_cast<compute_t<In>>(row[i]) : 0;
      }
    }
  }
}

// [m][n] -> [padded n][stride >= m], zeros elsewhere
template <class In>
static void pack_rows(const In* x, int64_t m, int64_t n, int64_t padded, int64_t stride, compute_t<In>* packed) {
  std::fill(packed, packed + padded * stride, compute_t<In>(0));
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t k = 0; k < m; ++k) {
      packed[i * stride + k] = static_cast<compute_t<In>>(x[k * n + i]);
    }
  }
}

template <class T>
SIMD_INLINE void zero_tile(vec<T> (&acc)[kRows][kVecs]) {
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kVecs; ++j) {
      acc[i][j] = vec<T>{};
    }
  }
}

template <class T>
SIMD_INLINE void correlation_tile(int64_t m, const T* a, const T* b, vec<T> (&acc)[kRows][kVecs]) {
  zero_tile<T>(acc);
  multiply_tile<T, kRows, kVecs>(m, a, 1, kRows, b, kCols<T>, acc);
}

// Maxima over all targets and where they are first, for the source panels [first, last). A NaN is the largest value.
template <class T>
static void row_maxima(
    const T* source, const T* target, int64_t m, int64_t S, int64_t n_targets, int64_t first, int64_t last, T eps,
    T* row_max, int64_t* row_argmax) {
  constexpr int W = simd<T>::width;
  constexpr int kGroup = 8;  // source panels per pass over the targets: those are read from the second-level cache
  vec<T> best[kGroup][kRows][kVecs];
  ints<T> where[kGroup][kRows][kVecs];
  const int64_t panels = round_up(n_targets, kCols<T>) / kCols<T>;
  for (int64_t p0 = first; p0 < last; p0 += kGroup) {
    const int group = static_cast<int>(std::min<int64_t>(kGroup, last - p0));
    for (int g = 0; g < group; ++g) {
      for (int i = 0; i < kRows; ++i) {
        for (int j = 0; j < kVecs; ++j) {
          best[g][i][j] = splat<T>(-std::numeric_limits<T>::infinity());
          where[g][i][j] = ints<T>{};
        }
      }
    }
    for (int64_t q = 0; q < panels; ++q) {
      const int64_t valid = n_targets - q * kCols<T>;
      const ints<T> here = ints<T>{} + static_cast<typename simd<T>::lane>(q);
      for (int g = 0; g < group; ++g) {
        vec<T> c[kRows][kVecs];
        correlation_tile<T>(m, source + (p0 + g) * kRows * m, target + q * kCols<T> * m, c);
        if (valid < kCols<T>) {  // padding must not win
          for (int j = 0; j < kVecs; ++j) {
            const ints<T> lanes = lane_numbers<T>() + static_cast<typename simd<T>::lane>(j * W);
            for (int i = 0; i < kRows; ++i) {
              c[i][j] = lanes < static_cast<typename simd<T>::lane>(valid)
                  ? c[i][j]
                  : splat<T>(-std::numeric_limits<T>::infinity());
            }
          }
        }
#pragma GCC unroll 16
        for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
          for (int j = 0; j < kVecs; ++j) {
            const ints<T> better = (c[i][j] > best[g][i][j]) | (c[i][j] != c[i][j]);
            best[g][i][j] = better ? c[i][j] : best[g][i][j];
            where[g][i][j] = better ? here : where[g][i][j];
          }
        }
      }
    }
    for (int g = 0; g < group; ++g) {
      for (int i = 0; i < kRows; ++i) {
        const int64_t s = (p0 + g) * kRows + i;
        if (s >= S) {
          break;
        }
        T top = -std::numeric_limits<T>::infinity();
        int64_t at = 0;
        for (int lane = 0; lane < kCols<T>; ++lane) {
          const T value = best[g][i][lane / W][lane % W];
          const int64_t t = where[g][i][lane / W][lane % W] * static_cast<int64_t>(kCols<T>) + lane;
          if (value > top || (value != value && top == top) || (value == top && t < at)) {
            top = value;
            at = t;
          }
        }
        row_max[s] = top < eps ? eps : top;
        row_argmax[s] = at;
      }
    }
  }
}

// One block of `panels` target panels from t0: product, u = C^3 / b, column norms, and the result written once.
template <class In, class T = compute_t<In>>
static void column_block(
    const T* source, const T* target, int64_t m, int64_t S, int64_t n_targets, int64_t t0, int64_t panels, T eps,
    const T* inverse_b, T* block, In* result, T* norm) {
  constexpr int W = simd<T>::width;
  constexpr int kFlush = 16;  // sums of squares in two levels: float32 keeps its accuracy over thousands of rows
  const int64_t width = panels * kCols<T>;
  vec<T> total[kMaxVecs], partial[kMaxVecs];
  const int64_t vecs = width / W;
  std::fill(total, total + vecs, vec<T>{});
  std::fill(partial, partial + vecs, vec<T>{});
  const int64_t source_panels = round_up(S, kRows) / kRows;
  for (int64_t p = 0; p < source_panels; ++p) {
    for (int64_t q = 0; q < panels; ++q) {
      vec<T> c[kRows][kVecs];
      correlation_tile<T>(m, source + p * kRows * m, target + (t0 + q * kCols<T>) * m, c);
      vec<T> squares[kVecs] = {};
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
        const T scale = inverse_b[p * kRows + i];
#pragma GCC unroll 4
        for (int j = 0; j < kVecs; ++j) {
          const vec<T> u = c[i][j] * c[i][j] * (c[i][j] * scale);
          store(block + (p * kRows + i) * width + q * kCols<T> + j * W, u);
          squares[j] += u * u;
        }
      }
      for (int j = 0; j < kVecs; ++j) {
        partial[q * kVecs + j] += squares[j];
      }
    }
    if (p % kFlush == kFlush - 1 || p == source_panels - 1) {
      for (int64_t v = 0; v < vecs; ++v) {
        total[v] += partial[v];
        partial[v] = vec<T>{};
      }
    }
  }
  const int64_t valid = std::min(width, n_targets - t0);
  vec<T> inverse_n[kMaxVecs] = {};
  for (int64_t t = 0; t < valid; ++t) {
    const T n = std::sqrt(total[t / W][t % W]);
    norm[t0 + t] = n < eps ? eps : n;
    inverse_n[t / W][t % W] = 1 / norm[t0 + t];
  }
  In* out = result + t0;
  const bool aligned = reinterpret_cast<uintptr_t>(out) % SIMD_BYTES == 0 && n_targets * sizeof(In) % SIMD_BYTES == 0;
  const int64_t whole = valid / W;
  for (int64_t s = 0; s < S; ++s, out += n_targets, block += width) {
    if (aligned) {
      for (int64_t v = 0; v < whole; ++v) {
        store_streaming(out + v * W, load(block + v * W) * inverse_n[v]);
      }
    } else {
      for (int64_t v = 0; v < whole; ++v) {
        store_as(out + v * W, load(block + v * W) * inverse_n[v]);
      }
    }
    if (whole * W < valid) {
      store_part(out + whole * W, load(block + whole * W) * inverse_n[whole], valid - whole * W);
    }
  }
}

// Target panels per block: a block of all sources stays near 1 MiB, and there are enough blocks for the threads.
template <class T>
static int64_t panels_per_block(int64_t rows) {
  constexpr int64_t kBytes = 1 << 20;
  const int64_t fitting = kBytes / (rows * kCols<T> * static_cast<int64_t>(sizeof(T)));
  return std::clamp<int64_t>(fitting, 1, kMaxVecs / kVecs);
}

template <class In>
void forward(const ForwardArguments<In>& x) {
  using T = compute_t<In>;
  const int64_t rows = round_up(x.S, kRows), columns = round_up(x.n_targets, kCols<T>);
  Scratch<T> source(x.batch * rows * x.m), target(x.batch * columns * x.m), inverse_b(x.batch * rows);
  torch::stable::parallel_for(0, x.batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      pack_panels(x.source + b * x.m * x.S, x.m, x.S, kRows, source.data() + b * rows * x.m);
      pack_panels(x.target + b * x.m * x.n_targets, x.m, x.n_targets, kCols<T>, target.data() + b * columns * x.m);
    }
  });
  const int64_t source_panels = rows / kRows;
  torch::stable::parallel_for(0, x.batch * source_panels, 8, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t b = begin / source_panels, first = begin % source_panels;
      const int64_t last = std::min(source_panels, first + end - begin);
      row_maxima<T>(
          source.data() + b * rows * x.m, target.data() + b * columns * x.m, x.m, x.S, x.n_targets, first, last, x.eps,
          x.row_max + b * x.S, x.row_argmax + b * x.S);
      for (int64_t s = first * kRows; s < last * kRows; ++s) {
        inverse_b.data()[b * rows + s] = s < x.S ? 1 / x.row_max[b * x.S + s] : 0;
      }
      begin += last - first;
    }
  });
  const int64_t per_block = panels_per_block<T>(rows), width = per_block * kCols<T>;
  const int64_t blocks = round_up(columns, width) / width;
  torch::stable::parallel_for(0, x.batch * blocks, 1, [&](int64_t begin, int64_t end) {
    Scratch<T> block(rows * width);
    for (int64_t n = begin; n < end; ++n) {
      const int64_t b = n / blocks, t0 = n % blocks * width;
      column_block<In>(
          source.data() + b * rows * x.m, target.data() + b * columns * x.m, x.m, x.S, x.n_targets, t0,
          std::min(per_block, (columns - t0) / kCols<T>), x.eps, inverse_b.data() + b * rows, block.data(),
          x.result + b * x.S * x.n_targets, x.norm + b * x.n_targets);
    }
  });
}

// ---- backward

// rows [0, count) of `out` [.][stride] += dc [.][width] times features [width][stride], vectors of k in groups of N.
template <class T, int R, int N>
SIMD_INLINE void add_product_group(
    int64_t count, int64_t width, const T* dc, const T* features, int64_t stride, T* out) {
  constexpr int W = simd<T>::width;
  for (int64_t r = 0; r < count; r += R) {
    vec<T> acc[R][N];
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j) {
        acc[i][j] = load(out + (r + i) * stride + j * W);
      }
    }
    multiply_tile<T, R, N>(width, dc + r * width, width, 1, features, stride, acc);
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j) {
        store(out + (r + i) * stride + j * W, acc[i][j]);
      }
    }
  }
}

template <class T>
static void add_source_product(int64_t count, int64_t width, const T* dc, const T* features, int64_t stride, T* out) {
  constexpr int W = simd<T>::width;
  int64_t v = 0;
  const int64_t vecs = stride / W;
  while (v < vecs) {
    const int64_t left = vecs - v;
    if (left == 3 || left > 4) {
      add_product_group<T, SIMD_BYTES == 64 ? 6 : 4, 3>(count, width, dc, features + v * W, stride, out + v * W);
      v += 3;
    } else if (left == 1) {
      add_product_group<T, 6, 1>(count, width, dc, features + v * W, stride, out + v * W);
      v += 1;
    } else {
      add_product_group<T, kRows, 2>(count, width, dc, features + v * W, stride, out + v * W);
      v += 2;
    }
  }
}

// out [features][width] += source rows [count][stride] transposed times dc [count][width]
template <class T>
static void add_target_product(int64_t count, int64_t width, const T* dc, const T* source, int64_t stride, T* out) {
  constexpr int W = simd<T>::width;
  for (int64_t k = 0; k < stride; k += kRows) {
    for (int64_t t = 0; t < width; t += kCols<T>) {
      vec<T> acc[kRows][kVecs];
      T* at = out + k * width + t;
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
        for (int j = 0; j < kVecs; ++j) {
          acc[i][j] = load(at + i * width + j * W);
        }
      }
      multiply_tile<T, kRows, kVecs>(count, source + k, 1, stride, dc + t, width, acc);
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
        for (int j = 0; j < kVecs; ++j) {
          store(at + i * width + j * W, acc[i][j]);
        }
      }
    }
  }
}

// Everything the backward of one sample reads, in the layouts its products want.
template <class T>
struct Packed {
  const T* source;  // panels
  const T* target;  // panels
  const T* source_rows;  // [rows][source_stride]
  const T* target_rows;  // [columns][target_stride]
  const T* inverse_b;  // [rows], 0 in the padding
  const T* norm;  // [T]
  int64_t rows, source_stride, target_stride;
};

// First pass over a block: C and G side by side into `c` and `g`, and D~_t = sum_s G u into `dot`.
template <class In, class T = compute_t<In>>
static void gradient_dots(
    const Packed<T>& z, int64_t m, int64_t S, int64_t n_targets, int64_t t0, int64_t panels, const In* grad, T* c_block,
    T* g_block, vec<T>* dot) {
  constexpr int W = simd<T>::width;
  constexpr int kFlush = 16;
  const int64_t width = panels * kCols<T>, vecs = width / W, valid = std::min(width, n_targets - t0);
  vec<T> partial[kMaxVecs];
  std::fill(dot, dot + vecs, vec<T>{});
  std::fill(partial, partial + vecs, vec<T>{});
  for (int64_t p = 0; p < z.rows / kRows; ++p) {
    const int64_t s0 = p * kRows;
    for (int i = 0; i < kRows && s0 + kRows + i < S; ++i) {  // rows lie far apart: the hardware does not foresee them
      const char* next = reinterpret_cast<const char*>(grad + (s0 + kRows + i) * n_targets + t0);
      for (int64_t byte = 0; byte < valid * static_cast<int64_t>(sizeof(In)); byte += 64) {
        __builtin_prefetch(next + byte);
      }
    }
    for (int i = 0; i < kRows; ++i) {
      T* g = g_block + (s0 + i) * width;
      const In* row = grad + (s0 + i) * n_targets + t0;
      const int64_t count = s0 + i < S ? valid : 0;
      int64_t v = 0;
      for (; v < count / W; ++v) {
        store(g + v * W, load_as(row + v * W));
      }
      for (; v < vecs; ++v) {
        store(g + v * W, load_part(row + v * W, std::clamp<int64_t>(count - v * W, 0, W)));
      }
    }
    for (int64_t q = 0; q < panels; ++q) {
      vec<T> c[kRows][kVecs];
      correlation_tile<T>(m, z.source + s0 * m, z.target + (t0 + q * kCols<T>) * m, c);
      vec<T> sum[kVecs] = {};
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
        const T scale = z.inverse_b[s0 + i];
#pragma GCC unroll 4
        for (int j = 0; j < kVecs; ++j) {
          const int64_t at = (s0 + i) * width + q * kCols<T> + j * W;
          store(c_block + at, c[i][j]);
          sum[j] += c[i][j] * c[i][j] * (c[i][j] * scale) * load(g_block + at);
        }
      }
      for (int j = 0; j < kVecs; ++j) {
        partial[q * kVecs + j] += sum[j];
      }
    }
    if (p % kFlush == kFlush - 1 || p == z.rows / kRows - 1) {
      for (int64_t v = 0; v < vecs; ++v) {
        dot[v] += partial[v];
        partial[v] = vec<T>{};
      }
    }
  }
}

// dC for `count` rows of the block from s0, and their share of beta.
template <class T>
static void gradient_rows(
    int64_t count, int64_t width, const T* inverse_b, const T* c_block, const T* g_block, const vec<T>* inverse_n,
    const vec<T>* slope, T* dc, T* beta) {
  constexpr int W = simd<T>::width;
  for (int64_t r = 0; r < count; ++r) {
    const T scale = inverse_b[r];
    vec<T> sum{};
    for (int64_t v = 0; v < width / W; ++v) {
      const int64_t at = r * width + v * W;
      const vec<T> c = load(c_block + at);
      const vec<T> square = c * c * scale;
      const vec<T> u = square * c;
      const vec<T> du = load(g_block + at) * inverse_n[v] - u * slope[v];
      store(dc + at, 3 * square * du);
      sum += du * u;
    }
    beta[r] -= sum_lanes<T>(sum) * scale;
  }
}

// One block of targets: its columns of the target gradient (complete but for beta), its share of the source gradient.
template <class In, class T = compute_t<In>>
static void backward_block(
    const Packed<T>& z, int64_t m, int64_t S, int64_t n_targets, int64_t t0, int64_t panels, T eps, const In* grad,
    T* c_block, T* g_block, T* dc, T* target_block, T* target_grad, T* source_part, T* beta_part) {
  constexpr int W = simd<T>::width;
  const int64_t width = panels * kCols<T>, valid = std::min(width, n_targets - t0);
  vec<T> dot[kMaxVecs], inverse_n[kMaxVecs] = {}, slope[kMaxVecs] = {};
  gradient_dots<In>(z, m, S, n_targets, t0, panels, grad, c_block, g_block, dot);
  for (int64_t t = 0; t < valid; ++t) {
    const T n = z.norm[t0 + t], inverse = 1 / n;
    inverse_n[t / W][t % W] = inverse;
    // du = G / n - u D~ / n^3; the second term is the derivative of n, which has none at its floor
    slope[t / W][t % W] = n == eps ? 0 : dot[t / W][t % W] * inverse * inverse * inverse;
  }
  std::fill(target_block, target_block + z.source_stride * width, T(0));
  for (int64_t s0 = 0; s0 < z.rows; s0 += kChunk) {
    const int64_t count = std::min<int64_t>(kChunk, z.rows - s0);
    gradient_rows<T>(
        count, width, z.inverse_b + s0, c_block + s0 * width, g_block + s0 * width, inverse_n, slope, dc,
        beta_part + s0);
    add_source_product<T>(
        count, width, dc, z.target_rows + t0 * z.target_stride, z.target_stride, source_part + s0 * z.target_stride);
    add_target_product<T>(
        count, width, dc, z.source_rows + s0 * z.source_stride, z.source_stride, target_block);
  }
  for (int64_t k = 0; k < m; ++k) {
    std::copy(target_block + k * width, target_block + k * width + valid, target_grad + k * n_targets + t0);
  }
}

template <class In>
void backward(const BackwardArguments<In>& x) {
  using T = compute_t<In>;
  constexpr int W = simd<T>::width;
  const int64_t m = x.m, S = x.S, n_targets = x.n_targets;
  const int64_t rows = round_up(S, kStep);
  const int64_t per_block = panels_per_block<T>(rows), width = per_block * kCols<T>;
  const int64_t columns = round_up(n_targets, width), blocks = columns / width;
  const int64_t source_stride = round_up(m, kRows), target_stride = round_up(m, W);
  // The source gradient sums over all blocks: a fixed number of partial sums, each over a fixed run of blocks, added in
  // order, gives the same bits for any number of threads.
  const int64_t slots = std::clamp<int64_t>((32 + x.batch - 1) / x.batch, 1, std::min<int64_t>(blocks, 16));

  Scratch<T> source(x.batch * rows * m), target(x.batch * columns * m), inverse_b(x.batch * rows);
  Scratch<T> source_rows(x.batch * rows * source_stride), target_rows(x.batch * columns * target_stride);
  Scratch<T> source_parts(x.batch * slots * rows * target_stride), beta_parts(x.batch * slots * rows);
  Scratch<T> target_grad(x.batch * m * n_targets), beta(x.batch * rows);

  torch::stable::parallel_for(0, 4 * x.batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const int64_t b = n / 4;
      const In* z_s = x.source + b * m * S;
      const In* z_t = x.target + b * m * n_targets;
      switch (n % 4) {
        case 0:
          pack_panels(z_s, m, S, kRows, source.data() + b * rows * m);
          std::fill(
              source.data() + b * rows * m + round_up(S, kRows) * m, source.data() + (b + 1) * rows * m, T(0));
          break;
        case 1:
          pack_panels(z_t, m, n_targets, kCols<T>, target.data() + b * columns * m);
          std::fill(
              target.data() + b * columns * m + round_up(n_targets, kCols<T>) * m,
              target.data() + (b + 1) * columns * m, T(0));
          break;
        case 2:
          pack_rows(z_s, m, S, rows, source_stride, source_rows.data() + b * rows * source_stride);
          break;
        default:
          pack_rows(z_t, m, n_targets, columns, target_stride, target_rows.data() + b * columns * target_stride);
      }
    }
  });
  for (int64_t b = 0; b < x.batch; ++b) {
    for (int64_t s = 0; s < rows; ++s) {
      inverse_b.data()[b * rows + s] = s < S ? 1 / x.row_max[b * S + s] : 0;
    }
  }

  torch::stable::parallel_for(0, x.batch * slots, 1, [&](int64_t begin, int64_t end) {
    Scratch<T> c_block(rows * width), g_block(rows * width), dc(kChunk * width), target_block(source_stride * width);
    for (int64_t n = begin; n < end; ++n) {
      const int64_t b = n / slots, slot = n % slots;
      T* source_part = source_parts.data() + n * rows * target_stride;
      T* beta_part = beta_parts.data() + n * rows;
      std::fill(source_part, source_part + rows * target_stride, T(0));
      std::fill(beta_part, beta_part + rows, T(0));
      const Packed<T> z{
          source.data() + b * rows * m,
          target.data() + b * columns * m,
          source_rows.data() + b * rows * source_stride,
          target_rows.data() + b * columns * target_stride,
          inverse_b.data() + b * rows,
          x.norm + b * n_targets,
          rows,
          source_stride,
          target_stride};
      for (int64_t block = blocks * slot / slots; block < blocks * (slot + 1) / slots; ++block) {
        const int64_t t0 = block * width;
        const int64_t panels = std::min(per_block, round_up(n_targets - t0, kCols<T>) / kCols<T>);
        backward_block<In>(
            z, m, S, n_targets, t0, panels, x.eps, x.grad + b * S * n_targets, c_block.data(), g_block.data(),
            dc.data(), target_block.data(), target_grad.data() + b * m * n_targets, source_part, beta_part);
      }
    }
  });

  // beta: the gradient through b_s = C(s, t*(s)), a rank-one term per source. None where b_s is at its floor.
  for (int64_t b = 0; b < x.batch; ++b) {
    for (int64_t s = 0; s < S; ++s) {
      T sum = 0;
      for (int64_t slot = 0; slot < slots; ++slot) {
        sum += beta_parts.data()[(b * slots + slot) * rows + s];
      }
      beta.data()[b * rows + s] = x.row_max[b * S + s] == x.eps ? 0 : sum;
    }
  }
  constexpr int64_t kGroup = 64;  // sources per task
  const int64_t groups = round_up(S, kGroup) / kGroup;
  torch::stable::parallel_for(0, x.batch * groups, 1, [&](int64_t begin, int64_t end) {
    Scratch<T> sums(kGroup * target_stride);
    for (int64_t n = begin; n < end; ++n) {
      const int64_t b = n / groups, s0 = n % groups * kGroup, count = std::min(kGroup, S - s0);
      for (int64_t i = 0; i < count; ++i) {
        const T* z_t = target_rows.data() + (b * columns + x.row_argmax[b * S + s0 + i]) * target_stride;
        const T weight = beta.data()[b * rows + s0 + i];
        for (int64_t k = 0; k < target_stride; ++k) {
          sums.data()[i * target_stride + k] = weight * z_t[k];
        }
      }
      for (int64_t slot = 0; slot < slots; ++slot) {
        const T* part = source_parts.data() + ((b * slots + slot) * rows + s0) * target_stride;
        for (int64_t i = 0; i < count * target_stride; ++i) {
          sums.data()[i] += part[i];
        }
      }
      for (int64_t k = 0; k < m; ++k) {
        for (int64_t i = 0; i < count; ++i) {
          x.source_grad[(b * m + k) * S + s0 + i] = static_cast<In>(sums.data()[i * target_stride + k]);
        }
      }
    }
  });
  torch::stable::parallel_for(0, x.batch * m, 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const int64_t b = n / m;
      const In* z_s = x.source + n * S;
      T* from = target_grad.data() + n * n_targets;
      for (int64_t s = 0; s < S; ++s) {
        from[x.row_argmax[b * S + s]] += beta.data()[b * rows + s] * static_cast<T>(z_s[s]);
      }
      for (int64_t t = 0; t < n_targets; ++t) {
        x.target_grad[n * n_targets + t] = static_cast<In>(from[t]);
      }
    }
  });
}
