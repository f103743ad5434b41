// Products of guided_correlation_conv2d for one instruction set; the mathematics is at the top of winograd.cpp.
#include "cpu/product.inl"

// Rows of a panel of U.
SIMD_INLINE int64_t winograd_panel() {
  return kRows;
}

// What is summed at a time: panels of that depth are read from the nearer caches.
template <class T>
constexpr int64_t kDepth = 2048 / sizeof(T);

constexpr int kTaskRows = 48;  // sources of a task where those are the rows of the product

// Block k of the depth K, of nearly equal ones, is [at(k), at(k + 1)).
struct Blocks {
  int64_t K, count;

  int64_t at(int64_t k) const {
    return K * k / count;
  }
};

template <class T>
static Blocks depth_blocks(int64_t K) {
  return {K, std::max<int64_t>(1, round_up(K, kDepth<T>) / kDepth<T>)};
}

// out [kRows][stride] = or += rows of a times a panel of b
template <class T>
SIMD_INLINE void multiply_panel(
    int64_t K, const T* a, int64_t a_row, int64_t a_step, const T* b, bool add, T* out, int64_t stride) {
  constexpr int W = simd<T>::width;
  for (int i = 0; i < kRows; ++i) {
    __builtin_prefetch(out + i * stride, 1);
  }
  vec<T> acc[kRows][kVecs];
  zero_tile<T>(acc);
  multiply_tile<T, kRows, kVecs>(K, a, a_row, a_step, b, kCols<T>, acc);
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kVecs; ++j) {
      T* at = out + i * stride + j * W;
      store(at, add ? load(at) + acc[i][j] : acc[i][j]);
    }
  }
}

// V_c at the columns [first, last) of a source, from its even and odd maps with `row` columns to a row.
template <class T>
static void transform_map(
    int c, const T* __restrict__ even, const T* __restrict__ odd, int64_t row, int64_t first, int64_t last,
    T* __restrict__ out) {
  out -= first;
  if (c == 1) {
    for (int64_t q = first; q < last; ++q) {
      out[q] = even[q] + odd[q];
    }
  } else if (c == 2) {
    for (int64_t q = first; q < last; ++q) {
      out[q] = odd[q] - even[q];
    }
  } else {
    for (int64_t q = first; q < last;) {
      const int64_t begin = q / row * row, end = std::min(begin + row, last);
      if (c == 0) {
        if (q == begin) {
          out[q] = -odd[q];
          ++q;
        }
        for (; q < end; ++q) {
          out[q] = odd[q - 1] - odd[q];
        }
      } else {
        for (; q < std::min(begin + row - 1, end); ++q) {
          out[q] = even[q] - even[q + 1];
        }
        if (q < end) {
          out[q] = even[q];
          ++q;
        }
      }
    }
  }
}

// The adjoint, of all four at once.
template <class T>
static void transform_map_gradient(
    const T* __restrict__ dV, int64_t component, int64_t row, int64_t columns, T* __restrict__ even,
    T* __restrict__ odd) {
  for (int64_t begin = 0; begin < columns; begin += row) {
    const T* dV_0 = dV + begin;
    const T* dV_1 = dV_0 + component;
    const T* dV_2 = dV_1 + component;
    const T* dV_3 = dV_2 + component;
    T* dE = even + begin;
    T* dO = odd + begin;
    dE[0] = dV_1[0] - dV_2[0] + dV_3[0];
    for (int64_t x = 1; x < row; ++x) {
      dE[x] = dV_1[x] - dV_2[x] + (dV_3[x] - dV_3[x - 1]);
    }
    for (int64_t x = 0; x < row - 1; ++x) {
      dO[x] = dV_1[x] + dV_2[x] + (dV_0[x + 1] - dV_0[x]);
    }
    dO[row - 1] = dV_1[row - 1] + dV_2[row - 1] - dV_0[row - 1];
  }
}

// G_c of output and tap r for a band.
template <class T>
static void transform_output_gradient(int c, const OutputBand<const T>& dY, int64_t r, T* __restrict__ out) {
  for (int64_t y = 0; y < dY.rows; ++y, out += dY.row) {
    const T* __restrict__ from = dY.at(r, y);
    for (int64_t x = 0; x < dY.row; ++x) {
      const T even = from[2 * x], odd = from[2 * x + 1];
      out[x] = c == 0 ? even : c == 1 ? even + odd : c == 2 ? even - odd : -odd;
    }
  }
}

// `columns` values, zeros beyond them, to row k of panels [.][depth][kCols].
template <class T>
static void store_in_panels(T* line, int64_t columns, int64_t depth, int64_t k, T* panels) {
  constexpr int W = simd<T>::width;
  const int64_t padded = round_up(columns, kCols<T>);
  std::fill(line + columns, line + padded, T(0));
  for (int64_t q = 0; q < padded; q += kCols<T>) {
    for (int j = 0; j < kVecs; ++j) {
      store(panels + q * depth + k * kCols<T> + j * W, load(line + q + j * W));
    }
  }
}

// ---- forward: P = U V, then Y += P

// P_c at the columns [first, last) of a band; V_c is made on the way, in panels.
template <class T>
static void output_columns(
    const WinogradOutput<T>& x, int c, int64_t first, int64_t last, T* line, T* panels, T* P, int64_t stride) {
  const int64_t R = round_up(x.Y.outputs * x.Y.kh, kRows), columns = x.Y.rows * x.Y.row;
  const T* U = x.U + c * x.U_component;
  const Blocks blocks = depth_blocks<T>(x.S);
  for (int64_t block = 0; block < blocks.count; ++block) {
    const int64_t s0 = blocks.at(block), depth = blocks.at(block + 1) - s0;
    for (int64_t k = 0; k < depth; ++k) {
      const T* even = x.maps + (s0 + k) * columns;
      transform_map<T>(c, even, even + x.S * columns, x.Y.row, first, last, line);
      store_in_panels<T>(line, last - first, depth, k, panels);
    }
    for (int64_t r = 0; r < R; r += kRows) {
      for (int64_t q = 0; q < last - first; q += kCols<T>) {
        multiply_panel<T>(
            depth, U + r * x.S + s0 * kRows, 1, kRows, panels + q * depth, block > 0, P + r * stride + first + q,
            stride);
      }
    }
  }
}

// Y of an output += P, each tap at its place
template <class T>
static void add_to_output(const OutputBand<T>& Y, int64_t output, const T* P, int64_t component, int64_t stride) {
  for (int64_t r = output * Y.kh; r < (output + 1) * Y.kh; ++r) {
    for (int64_t y = 0; y < Y.rows; ++y) {
      const T* __restrict__ P_0 = P + r * stride + y * Y.row;
      const T* __restrict__ P_1 = P_0 + component;
      const T* __restrict__ P_2 = P_1 + component;
      const T* __restrict__ P_3 = P_2 + component;
      T* __restrict__ to = Y.at(r, y);
      for (int64_t i = 0; i < Y.row; ++i) {
        to[2 * i] += P_0[i] + P_1[i] + P_2[i];
        to[2 * i + 1] += P_1[i] - P_2[i] - P_3[i];
      }
    }
  }
}

template <class T>
void winograd_add_output(const WinogradOutput<T>& x) {
  constexpr int64_t kMost = 160;  // columns of a task: a block of V_c in the second-level cache
  const int64_t panels = round_up(x.Y.rows * x.Y.row, kCols<T>) / kCols<T>, stride = panels * kCols<T>;
  const int64_t component = round_up(x.Y.outputs * x.Y.kh, kRows) * stride;
  // Two tasks per thread or more, no sum of which depends on where they are cut.
  const int64_t cuts = std::min<int64_t>(
      panels, std::max<int64_t>(round_up(stride, kMost) / kMost, (torch::stable::get_num_threads() + 1) / 2));
  const int64_t widest = round_up(panels, cuts) / cuts * kCols<T>, per_worker = widest * (1 + kDepth<T>);
  Scratch<T> P(4 * component), scratch(count_workers(4 * cuts) * per_worker);
  for_each_task(4 * cuts, [&](int64_t worker, int64_t task) {
    const int64_t c = task / cuts, cut = task % cuts;
    T* line = scratch.data() + worker * per_worker;
    output_columns<T>(
        x, static_cast<int>(c), panels * cut / cuts * kCols<T>,
        std::min(x.Y.rows * x.Y.row, panels * (cut + 1) / cuts * kCols<T>), line, line + widest,
        P.data() + c * component, stride);
  });
  torch::stable::parallel_for(0, x.Y.outputs, 1, [&](int64_t begin, int64_t end) {
    for (int64_t output = begin; output < end; ++output) {
      add_to_output<T>(x.Y, output, P.data(), component, stride);
    }
  });
}

// ---- gradient of the map: dV = U^T G

template <class T>
static void map_gradient_rows(
    const WinogradMapGradient<T>& x, int64_t s0, int64_t s1, const T* G, T* dV) {
  const int64_t R = x.dY.outputs * x.dY.kh, columns = x.dY.rows * x.dY.row, width = round_up(columns, kCols<T>);
  const int64_t component = kTaskRows * width;
  const Blocks blocks = depth_blocks<T>(R);
  for (int c = 0; c < 4; ++c) {
    const T* U = x.U + c * x.U_component;
    for (int64_t block = 0; block < blocks.count; ++block) {
      const int64_t r = blocks.at(block), depth = blocks.at(block + 1) - r;
      for (int64_t q = 0; q < width; q += kCols<T>) {
        const T* panel = G + (c * width + q) * R + r * kCols<T>;
        for (int64_t s = s0; s < s1; s += kRows) {
          multiply_panel<T>(
              depth, U + s * R + r * kRows, 1, kRows, panel, block > 0,
              dV + c * component + (s - s0) * width + q, width);
        }
      }
    }
  }
  for (int64_t s = s0; s < s1; ++s) {
    T* even = x.maps + s * columns;
    transform_map_gradient<T>(
        dV + (s - s0) * width, component, x.dY.row, columns, even, even + x.S * columns);
  }
}

template <class T>
void winograd_map_gradient(const WinogradMapGradient<T>& x) {
  const int64_t R = x.dY.outputs * x.dY.kh, columns = x.dY.rows * x.dY.row, width = round_up(columns, kCols<T>);
  const int64_t tasks = round_up(x.S, kTaskRows) / kTaskRows, per_worker = 4 * kTaskRows * width;
  Scratch<T> G(4 * R * width), lines(count_workers(R) * width), scratch(count_workers(tasks) * per_worker);
  for_each_task(R, [&](int64_t worker, int64_t r) {
    T* line = lines.data() + worker * width;
    for (int c = 0; c < 4; ++c) {
      transform_output_gradient<T>(c, x.dY, r, line);
      store_in_panels<T>(line, columns, R, r, G.data() + c * width * R);
    }
  });
  for_each_task(tasks, [&](int64_t worker, int64_t task) {
    map_gradient_rows<T>(
        x, task * kTaskRows, std::min(x.S, (task + 1) * kTaskRows), G.data(), scratch.data() + worker * per_worker);
  });
}

// ---- gradient of the weight: dU += V G^T

// G_c of the outputs and taps from r on: a panel [columns][kCols].
template <class T>
static void output_gradient_panel(
    int c, const OutputBand<const T>& dY, int64_t r, int64_t columns, T* line, T* panel) {
  for (int64_t i = 0; i < kCols<T>; ++i) {
    if (r + i < dY.outputs * dY.kh) {
      transform_output_gradient<T>(c, dY, r + i, line);
    } else {
      std::fill(line, line + columns, T(0));
    }
    for (int64_t q = 0; q < columns; ++q) {
      panel[q * kCols<T> + i] = line[q];
    }
  }
}

template <class T>
static void weight_gradient_rows(
    const WinogradWeightGradient<T>& x, int64_t s0, int64_t s1, const T* G, T* V, T* tile) {
  const int64_t R = x.dY.outputs * x.dY.kh, columns = x.dY.rows * x.dY.row, width = round_up(R, kCols<T>);
  const Blocks blocks = depth_blocks<T>(columns);
  for (int c = 0; c < 4; ++c) {
    for (int64_t block = 0; block < blocks.count; ++block) {
      const int64_t first = blocks.at(block), last = blocks.at(block + 1), depth = last - first;
      for (int64_t s = s0; s < round_up(s1, kRows); ++s) {
        T* row = V + (s - s0) * depth;
        if (s < s1) {
          const T* even = x.maps + s * columns;
          transform_map<T>(c, even, even + x.S * columns, x.dY.row, first, last, row);
        } else {
          std::fill(row, row + depth, T(0));
        }
      }
      for (int64_t r = 0; r < width; r += kCols<T>) {
        const T* panel = G + (c * width + r) * columns + first * kCols<T>;
        for (int64_t s = s0; s < s1; s += kRows) {
          const T* rows = V + (s - s0) * depth;
          T* to = x.dU + (c * x.S + s) * R + r;
          if (s + kRows <= s1 && r + kCols<T> <= R) {
            multiply_panel<T>(depth, rows, depth, 1, panel, true, to, R);
          } else {
            multiply_panel<T>(depth, rows, depth, 1, panel, false, tile, kCols<T>);
            for (int64_t i = 0; i < std::min<int64_t>(kRows, s1 - s); ++i) {
              for (int64_t j = 0; j < std::min<int64_t>(kCols<T>, R - r); ++j) {
                to[i * R + j] += tile[i * kCols<T> + j];
              }
            }
          }
        }
      }
    }
  }
}

template <class T>
void winograd_add_weight_gradient(const WinogradWeightGradient<T>& x) {
  const int64_t columns = x.dY.rows * x.dY.row, width = round_up(x.dY.outputs * x.dY.kh, kCols<T>);
  const int64_t panels = width / kCols<T>, tasks = round_up(x.S, kTaskRows) / kTaskRows;
  const int64_t V_size = kTaskRows * kDepth<T>, per_worker = V_size + kRows * kCols<T>;
  Scratch<T> G(4 * width * columns), lines(count_workers(4 * panels) * columns);
  Scratch<T> scratch(count_workers(tasks) * per_worker);
  for_each_task(4 * panels, [&](int64_t worker, int64_t task) {
    output_gradient_panel<T>(
        static_cast<int>(task / panels), x.dY, task % panels * kCols<T>, columns, lines.data() + worker * columns,
        G.data() + task * kCols<T> * columns);
  });
  for_each_task(tasks, [&](int64_t worker, int64_t task) {
    T* V = scratch.data() + worker * per_worker;
    weight_gradient_rows<T>(
        x, task * kTaskRows, std::min(x.S, (task + 1) * kTaskRows), G.data(), V, V + V_size);
  });
}
