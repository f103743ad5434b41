// Products of two feature maps in register tiles, for one instruction set.
//
// Sources are walked in panels of kRows, targets in panels of kCols: one register tile of the product. `packed`
// features are [panel][m][width of the panel], padded with zeros, in the compute type.

constexpr int kRows = SIMD_BYTES == 64 ? 12 : 6;
constexpr int kVecs = 2;
constexpr int kStep = 12;  // rows are padded to a multiple of every tile height used below

template <class T>
constexpr int kCols = kVecs * simd<T>::width;

// Vectors in the widest block of targets.
constexpr int kMaxVecs = 8;

SIMD_INLINE int64_t round_up(int64_t n, int64_t step) {
  return (n + step - 1) / step * step;
}

// Target panels per block: a block of all sources stays near 1 MiB, and there are enough blocks for the threads.
template <class T>
static int64_t panels_per_block(int64_t rows) {
  constexpr int64_t kBytes = 1 << 20;
  const int64_t fitting = kBytes / (rows * kCols<T> * static_cast<int64_t>(sizeof(T)));
  return std::clamp<int64_t>(fitting, 1, kMaxVecs / kVecs);
}

// Columns [first, first + count) of x [m][stride] -> panels [padded / width][m][width], zeros beyond them.
template <class In>
static void pack_panels(
    const In* x, int64_t m, int64_t stride, int64_t first, int64_t count, int64_t padded, int width,
    compute_t<In>* packed) {
  torch::stable::parallel_for(0, padded / width, 16, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t at = panel * width, valid = std::clamp<int64_t>(count - at, 0, width);
      compute_t<In>* to = packed + at * m;
      for (int64_t k = 0; k < m; ++k) {
        const In* row = x + k * stride + first + at;
        for (int64_t i = 0; i < width; ++i) {
          *to++ = i < valid ? static_cast<compute_t<In>>(row[i]) : 0;
        }
      }
    }
  });
}

// The same columns -> rows [padded][row], row >= m, zeros elsewhere.
template <class In>
static void pack_rows(
    const In* x, int64_t m, int64_t stride, int64_t first, int64_t count, int64_t padded, int64_t row,
    compute_t<In>* packed) {
  torch::stable::parallel_for(0, padded, 256, [&](int64_t begin, int64_t end) {
    std::fill(packed + begin * row, packed + end * row, compute_t<In>(0));
    for (int64_t i = begin; i < std::min(end, count); ++i) {
      for (int64_t k = 0; k < m; ++k) {
        packed[i * row + k] = static_cast<compute_t<In>>(x[k * stride + first + i]);
      }
    }
  });
}

template <class In>
static void pack_all_rows(
    const Features<In>& z, int64_t rows, int64_t columns, int64_t source_stride, int64_t target_stride,
    compute_t<In>* source, compute_t<In>* target) {
  for (int64_t b = 0; b < z.batch; ++b) {
    pack_rows(
        z.source + b * z.m * z.sources, z.m, z.sources, 0, z.sources, rows, source_stride,
        source + b * rows * source_stride);
    pack_rows(
        z.target + b * z.m * z.targets, z.m, z.targets, z.begin, z.count, columns, target_stride,
        target + b * columns * target_stride);
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

// A register tile as rows of kCols.
template <class T>
SIMD_INLINE void store_tile(const vec<T> (&c)[kRows][kVecs], T* to) {
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kVecs; ++j) {
      store(to + i * kCols<T> + j * simd<T>::width, c[i][j]);
    }
  }
}

template <class T>
SIMD_INLINE void correlation_tile(int64_t m, const T* a, const T* b, vec<T> (&acc)[kRows][kVecs]) {
  zero_tile<T>(acc);
  multiply_tile<T, kRows, kVecs>(m, a, 1, kRows, b, kCols<T>, acc);
}

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

constexpr int kChunk = 48;  // rows whose dC stays in the first-level cache in backward

// The source gradient sums over all blocks of targets: a fixed number of partial sums, each over a fixed run of blocks,
// added in order, gives the same bits for any number of threads.
// They shall not be large beside the maps that this spares: `values` are those of one sum.
SIMD_INLINE int64_t source_slots(int64_t batch, int64_t blocks, int64_t values) {
  constexpr int64_t kValues = 6 << 20;
  const int64_t most = std::clamp<int64_t>(kValues / values, 1, 16);
  return std::clamp<int64_t>((32 + batch - 1) / batch, 1, std::min(blocks, most));
}

// source_grad [B, m, S] += sum over slots of parts [B][slots][rows][stride], in their order
template <class T>
static void add_source_parts(
    int64_t batch, int64_t slots, int64_t m, int64_t S, int64_t rows, int64_t stride, const T* parts, T* source_grad) {
  constexpr int64_t kGroup = 64;  // sources per task
  const int64_t groups = round_up(S, kGroup) / kGroup;
  torch::stable::parallel_for(0, batch * groups, 1, [&](int64_t begin, int64_t end) {
    Scratch<T> sums(kGroup * stride);
    for (int64_t n = begin; n < end; ++n) {
      const int64_t b = n / groups, s0 = n % groups * kGroup, count = std::min(kGroup, S - s0);
      std::fill(sums.data(), sums.data() + count * stride, T(0));
      for (int64_t slot = 0; slot < slots; ++slot) {
        const T* part = parts + ((b * slots + slot) * rows + s0) * stride;
        for (int64_t i = 0; i < count * stride; ++i) {
          sums.data()[i] += part[i];
        }
      }
      for (int64_t k = 0; k < m; ++k) {
        for (int64_t i = 0; i < count; ++i) {
          source_grad[(b * m + k) * S + s0 + i] += sums.data()[i * stride + k];
        }
      }
    }
  });
}
