// Eqs. 9 and 2 and their gradients over blocks of all sources by some targets, for one instruction set. Where C comes
// from is a type: `tile(p, q, c)` gives the register tile of source panel p and target panel q; a thread uses it within
// a `Session`. Needs product.inl and matrix.inl.

// C read from memory.
template <class In>
struct Stored {
  using T = compute_t<In>;
  Matrix<const In> map;
  int64_t S, n;

  struct Session {};

  __attribute__((always_inline)) void tile(int64_t p, int64_t q, vec<T> (&c)[kRows][kVecs]) const {
    for (int i = 0; i < kRows; ++i) {
      for (int j = 0; j < kVecs; ++j) {
        const int64_t s = p * kRows + i, t = q * kCols<T> + j * simd<T>::width;
        c[i][j] = s < S && t < n ? load_row(map, s, t, n) : vec<T>{};
      }
    }
  }
  void prefetch(int64_t p, int64_t t, int64_t width) const {
    map.prefetch_rows(p * kRows, std::clamp<int64_t>(S - p * kRows, 0, kRows), t, width);
  }
};

// 1 / b, padded with zeros
template <class T>
static void invert(const T* row_max, int64_t S, int64_t rows, T* inverse_b) {
  for (int64_t s = 0; s < rows; ++s) {
    inverse_b[s] = s < S ? 1 / row_max[s] : 0;
  }
}

// u divided by the norm of its column, from the block into rows of the result.
template <class Out, class T = compute_t<Out>>
static void write_rows(
    int64_t S, int64_t width, int64_t valid, const T* block, const vec<T>* inverse_n, Out* out, int64_t stride) {
  constexpr int W = simd<T>::width;
  const bool aligned = reinterpret_cast<uintptr_t>(out) % SIMD_BYTES == 0 && stride * sizeof(Out) % SIMD_BYTES == 0;
  const int64_t whole = valid / W;
  for (int64_t s = 0; s < S; ++s, out += stride, block += width) {
    int64_t v = 0;
    for (; aligned && v + kPerStore<Out> <= whole; v += kPerStore<Out>) {
      vec<T> scaled[kPerStore<Out>];
      for (int i = 0; i < kPerStore<Out>; ++i) {
        scaled[i] = load(block + (v + i) * W) * inverse_n[v + i];
      }
      store_streaming(out + v * W, scaled);
    }
    for (; v < whole; ++v) {
      store_as(out + v * W, load(block + v * W) * inverse_n[v]);
    }
    if (whole * W < valid) {
      store_part(out + whole * W, load(block + whole * W) * inverse_n[whole], valid - whole * W);
    }
  }
}

// The same where a column is contiguous (channels-last): a strip of sources at a time, so that it is read from the
// first-level cache.
template <class Out, class T = compute_t<Out>>
static void write_columns(
    int64_t S, int64_t width, int64_t valid, const T* block, const vec<T>* inverse_n, const Matrix<Out>& out) {
  constexpr int W = simd<T>::width;
  constexpr int64_t kStrip = 64;
  for (int64_t s0 = 0; s0 < S; s0 += kStrip) {
    const int64_t count = std::min(kStrip, S - s0);
    for (int64_t t = 0; t < valid; ++t) {
      const T scale = inverse_n[t / W][t % W];
      const T* from = block + s0 * width + t;
      Out* to = out.at(s0, t);
      for (int64_t i = 0; i < count; ++i) {
        to[i * out.source_stride] = static_cast<Out>(from[i * width] * scale);
      }
    }
  }
}

// Target panels [q0, q0 + panels) of n targets: u = C^3 / b, the norms of its columns, and the result written once.
template <class Out, class Tiles, class T = compute_t<Out>>
static void column_block(
    const Tiles& tiles, int64_t S, int64_t n, int64_t q0, int64_t panels, T eps, const T* inverse_b, T* block,
    const Matrix<Out>& out, T* norm) {
  constexpr int W = simd<T>::width;
  constexpr int kFlush = 16;  // sums of squares in two levels: float32 keeps its accuracy over thousands of rows
  const int64_t width = panels * kCols<T>, t0 = q0 * kCols<T>, valid = std::min(width, n - t0);
  vec<T> total[kMaxVecs], partial[kMaxVecs];
  const int64_t vecs = width / W;
  std::fill(total, total + vecs, vec<T>{});
  std::fill(partial, partial + vecs, vec<T>{});
  const int64_t source_panels = round_up(S, kRows) / kRows;
  for (int64_t p = 0; p < source_panels; ++p) {
    tiles.prefetch(p + 1, t0, valid);
    for (int64_t q = 0; q < panels; ++q) {
      vec<T> c[kRows][kVecs];
      tiles.tile(p, q0 + q, c);
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
  vec<T> inverse_n[kMaxVecs] = {};
  for (int64_t t = 0; t < valid; ++t) {
    const T root = std::sqrt(total[t / W][t % W]);
    norm[t0 + t] = root < eps ? eps : root;
    inverse_n[t / W][t % W] = 1 / norm[t0 + t];
  }
  const Matrix<Out> here{out.at(0, t0), out.source_stride, out.target_stride};
  if (out.target_stride == 1) {
    write_rows<Out>(S, width, valid, block, inverse_n, here.data, out.source_stride);
  } else {
    write_columns<Out>(S, width, valid, block, inverse_n, here);
  }
}

// All columns of a batch; tiles_of(b) gives C, matrix_of(b) the result, for n targets. Norms lie norm_stride apart.
template <class Out, class TilesOf, class MatrixOf, class T = compute_t<Out>>
static void normalize_columns(
    int64_t batch, int64_t S, int64_t n, const Statistics<T>& x, const TilesOf& tiles_of, const MatrixOf& matrix_of,
    int64_t norm_stride) {
  const int64_t rows = round_up(S, kRows), panels = round_up(n, kCols<T>) / kCols<T>;
  const int64_t per_block = panels_per_block<T>(rows), blocks = round_up(panels, per_block) / per_block;
  Scratch<T> inverse_b(batch * rows);
  for (int64_t b = 0; b < batch; ++b) {
    invert(x.row_max + b * S, S, rows, inverse_b.data() + b * rows);
  }
  const int64_t block_size = rows * per_block * kCols<T>;
  Scratch<T> scratch(count_workers(batch * blocks) * block_size);
  for_each_task(batch * blocks, [&](int64_t worker, int64_t task) {
    [[maybe_unused]] const typename decltype(tiles_of(task))::Session session;
    const int64_t b = task / blocks, q0 = task % blocks * per_block;
    column_block<Out>(
        tiles_of(b), S, n, q0, std::min(per_block, panels - q0), x.eps, inverse_b.data() + b * rows,
        scratch.data() + worker * block_size, matrix_of(b), x.norm + b * norm_stride);
  });
}

// First pass over a block: C and G side by side into `c` and `g`, and D~_t = sum_s G u into `dot`.
template <class G, class Tiles, class T = compute_t<G>>
static void gradient_dots(
    const Tiles& tiles, const Matrix<const G>& grad, int64_t S, int64_t rows, int64_t n, int64_t q0, int64_t panels,
    const T* inverse_b, T* c_block, T* g_block, vec<T>* dot) {
  constexpr int W = simd<T>::width;
  constexpr int kFlush = 16;
  const int64_t t0 = q0 * kCols<T>, width = panels * kCols<T>, vecs = width / W, valid = std::min(width, n - t0);
  vec<T> partial[kMaxVecs];
  std::fill(dot, dot + vecs, vec<T>{});
  std::fill(partial, partial + vecs, vec<T>{});
  for (int64_t p = 0; p < rows / kRows; ++p) {
    const int64_t s0 = p * kRows;
    grad.prefetch_rows(s0 + kRows, std::clamp<int64_t>(S - s0 - kRows, 0, kRows), t0, valid);
    tiles.prefetch(p + 1, t0, valid);
    load_block(grad, s0, kRows, S, t0, width, n, g_block + s0 * width);
    for (int64_t q = 0; q < panels; ++q) {
      vec<T> c[kRows][kVecs];
      tiles.tile(p, q0 + q, c);
      vec<T> sum[kVecs] = {};
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
        const T scale = inverse_b[s0 + i];
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
    if (p % kFlush == kFlush - 1 || p == rows / kRows - 1) {
      for (int64_t v = 0; v < vecs; ++v) {
        dot[v] += partial[v];
        partial[v] = vec<T>{};
      }
    }
  }
}

// 1 / n, and D~ / n^3: du = G / n - u D~ / n^3. The second term is the derivative of n, which has none at its floor.
template <class T>
static void gradient_slopes(
    const T* norm, int64_t valid, T eps, const vec<T>* dot, vec<T>* inverse_n, vec<T>* slope) {
  constexpr int W = simd<T>::width;
  for (int64_t t = 0; t < valid; ++t) {
    const T inverse = 1 / norm[t];
    inverse_n[t / W][t % W] = inverse;
    slope[t / W][t % W] = norm[t] == eps ? 0 : dot[t / W][t % W] * inverse * inverse * inverse;
  }
}

// dC for `count` rows of the block, and their share of beta = dL/db.
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
