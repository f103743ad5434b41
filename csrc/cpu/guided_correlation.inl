// Loops of guided_correlation for one instruction set; the mathematics is at the top of guided_correlation.cpp.
#include "cpu/matrix.inl"
#include "cpu/product.inl"
#include "cpu/soft_mutual.inl"

constexpr int kSegment = 4;  // target panels whose maximum is kept, and looked through again for its place

template <class T>
SIMD_INLINE vec<T> larger(vec<T> a, vec<T> b) {
  return a > b ? a : b;
}

// The first target of a segment at which source s has its maximum there. Single rows of the product sum in the same
// order as tiles do.
template <class T>
static int64_t find_in_segment(
    const T* source_panel, int row, const T* target, int64_t m, int64_t n, int64_t segment) {
  constexpr int W = simd<T>::width;
  const int64_t first = segment * kSegment * kCols<T>, last = std::min<int64_t>(first + kSegment * kCols<T>, n);
  T top = 0;
  int64_t at = -1;
  for (int64_t t = first; t < last; t += kCols<T>) {
    vec<T> c[1][kVecs] = {};
    multiply_tile<T, 1, kVecs>(m, source_panel + row, 1, kRows, target + t * m, kCols<T>, c);
    for (int64_t i = 0; i < std::min<int64_t>(kCols<T>, last - t); ++i) {
      const T value = c[0][i / W][i % W];
      if (at < 0 || value > top || (value != value && top == top)) {
        top = value;
        at = t + i;
      }
    }
  }
  return at;
}

// Maxima over all targets and where they are first, for the source panels [first, last). A NaN is the largest value;
// features that cannot make one are spared the looking for it. Only the segment of a maximum is kept track of.
template <bool kMayBeNan, class T>
static void row_maxima(
    const T* source, const T* target, int64_t m, int64_t S, int64_t n, int64_t first, int64_t last, T eps, T* row_max,
    int64_t* row_argmax) {
  constexpr int W = simd<T>::width;
  constexpr int kGroup = 8;  // source panels per pass over the targets: those are read from the second-level cache
  constexpr T kLowest = -std::numeric_limits<T>::infinity();
  using lane = typename simd<T>::lane;
  vec<T> best[kGroup][kRows][kVecs], top[kGroup][kRows][kVecs];
  ints<T> where[kGroup][kRows][kVecs];
  const int64_t panels = round_up(n, kCols<T>) / kCols<T>;
  for (int64_t p0 = first; p0 < last; p0 += kGroup) {
    const int group = static_cast<int>(std::min<int64_t>(kGroup, last - p0));
    std::fill_n(&top[0][0][0], group * kRows * kVecs, splat<T>(kLowest));
    std::fill_n(&where[0][0][0], group * kRows * kVecs, ints<T>{});
    for (int64_t segment = 0; segment * kSegment < panels; ++segment) {
      const int64_t end = std::min<int64_t>(panels, (segment + 1) * kSegment);
      std::fill_n(&best[0][0][0], group * kRows * kVecs, splat<T>(kLowest));
      for (int64_t q = segment * kSegment; q < end; ++q) {
        const int64_t valid = n - q * kCols<T>;
        for (int g = 0; g < group; ++g) {
          vec<T> c[kRows][kVecs];
          correlation_tile<T>(m, source + (p0 + g) * kRows * m, target + q * kCols<T> * m, c);
          if (valid < kCols<T>) {  // padding must not win
            for (int j = 0; j < kVecs; ++j) {
              const ints<T> lanes = lane_numbers<T>() + static_cast<lane>(j * W);
              for (int i = 0; i < kRows; ++i) {
                c[i][j] = lanes < static_cast<lane>(valid) ? c[i][j] : splat<T>(kLowest);
              }
            }
          }
#pragma GCC unroll 16
          for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
            for (int j = 0; j < kVecs; ++j) {
              if constexpr (kMayBeNan) {
                const ints<T> better = (c[i][j] > best[g][i][j]) | (c[i][j] != c[i][j]);
                best[g][i][j] = better ? c[i][j] : best[g][i][j];
              } else {
                best[g][i][j] = larger<T>(best[g][i][j], c[i][j]);
              }
            }
          }
        }
      }
      const ints<T> here = ints<T>{} + static_cast<lane>(segment);
      for (int v = 0; v < group * kRows * kVecs; ++v) {
        const vec<T> new_top = (&best[0][0][0])[v], old_top = (&top[0][0][0])[v];
        const ints<T> better = (new_top > old_top) | ((new_top != new_top) & (old_top == old_top));
        (&top[0][0][0])[v] = better ? new_top : old_top;
        (&where[0][0][0])[v] = better ? here : (&where[0][0][0])[v];
      }
    }
    for (int g = 0; g < group; ++g) {
      for (int i = 0; i < kRows && (p0 + g) * kRows + i < S; ++i) {
        const int64_t s = (p0 + g) * kRows + i;
        T highest = kLowest;
        int64_t segment = 0;
        for (int column = 0; column < kCols<T>; ++column) {
          const T value = top[g][i][column / W][column % W];
          const int64_t in = where[g][i][column / W][column % W];
          const bool as_high = value == highest || (value != value && highest != highest);
          if (value > highest || (value != value && highest == highest) || (as_high && in < segment)) {
            highest = value;
            segment = in;
          }
        }
        row_max[s] = highest < eps ? eps : highest;
        row_argmax[s] = find_in_segment<T>(source + (p0 + g) * kRows * m, i, target, m, n, segment);
      }
    }
  }
}

// The largest magnitude, or NaN where a value is not finite. `count` is a multiple of the vector.
template <class T>
static T largest_magnitude(const T* x, int64_t count) {
  constexpr int W = simd<T>::width;
  vec<T> most{}, poison{};
  for (int64_t i = 0; i < count; i += W) {
    const vec<T> value = load(x + i);
    most = larger<T>(most, larger<T>(value, -value));
    poison += value * T(0);
  }
  T highest = 0;
  for (int i = 0; i < W; ++i) {
    highest = most[i] > highest ? most[i] : highest;
  }
  return highest + sum_lanes<T>(poison);
}

template <class In>
void guided_row_max(const RowMaxArguments<In>& x) {
  using T = compute_t<In>;
  const int64_t rows = round_up(x.S, kRows), columns = round_up(x.n_targets, kCols<T>);
  // Whole vectors, the last one padded with zeros.
  const int64_t source_size = round_up(x.batch * rows * x.m, simd<T>::width), target_size = x.batch * columns * x.m;
  Scratch<T> source(source_size), target(target_size);
  std::fill(source.data() + x.batch * rows * x.m, source.data() + source_size, T(0));
  for (int64_t b = 0; b < x.batch; ++b) {
    pack_panels(x.source + b * x.m * x.S, x.m, x.S, 0, x.S, rows, kRows, source.data() + b * rows * x.m);
    pack_panels(
        x.target + b * x.m * x.n_targets, x.m, x.n_targets, 0, x.n_targets, columns, kCols<T>,
        target.data() + b * columns * x.m);
  }
  // A sum of products is NaN only where a feature is not finite, or the sum overflows.
  const T bound = largest_magnitude<T>(source.data(), source_size) *
      largest_magnitude<T>(target.data(), target_size) * static_cast<T>(x.m);
  const bool careful = !(bound < std::numeric_limits<T>::max());
  const auto function = careful ? row_maxima<true, T> : row_maxima<false, T>;
  constexpr int64_t kPanels = 8;  // a task
  const int64_t source_panels = rows / kRows, per_sample = (source_panels + kPanels - 1) / kPanels;
  // Threads that bring in pages hinder each other: spread out, those tasks meet threads that compute.
  const int64_t pages = x.pages ? x.pages->count() : 0, tasks = x.batch * per_sample + pages;
  for_each_task(tasks, [&](int64_t, int64_t task) {
    const int64_t page = task * pages / tasks;
    if ((task + 1) * pages / tasks > page) {
      x.pages->bring(page);
      return;
    }
    const int64_t i = task - page, b = i / per_sample, first = i % per_sample * kPanels;
    function(
        source.data() + b * rows * x.m, target.data() + b * columns * x.m, x.m, x.S, x.n_targets, first,
        std::min(source_panels, first + kPanels), x.eps, x.row_max + b * x.S, x.row_argmax + b * x.S);
  });
}

template <class In, class Out>
void guided_band(const BandArguments<In, Out>& x) {
  using T = compute_t<In>;
  const int64_t rows = round_up(x.S, kRows), columns = round_up(x.n, kCols<T>);
  Scratch<T> source(x.batch * rows * x.m), target(x.batch * columns * x.m);
  for (int64_t b = 0; b < x.batch; ++b) {
    pack_panels(x.source + b * x.m * x.S, x.m, x.S, 0, x.S, rows, kRows, source.data() + b * rows * x.m);
    pack_panels(
        x.target + b * x.m * x.n_targets, x.m, x.n_targets, x.begin, x.n, columns, kCols<T>,
        target.data() + b * columns * x.m);
  }
  normalize_columns<Out>(
      x.batch, x.S, x.n, x.eps, x.row_max,
      [&](int64_t b) { return Products<T>{source.data() + b * rows * x.m, target.data() + b * columns * x.m, x.m}; },
      [&](int64_t b) { return Matrix<Out>{x.out + b * x.out_strides.batch, x.out_strides.source, x.out_strides.target}; },
      x.norm + x.begin, x.n_targets);
}

// ---- backward

// Everything the backward of one sample reads, in the layouts its products want. Targets are those of the band.
template <class T>
struct Packed {
  Products<T> products;
  const T* source_rows;  // [rows][source_stride]
  const T* target_rows;  // [columns][target_stride]
  const T* inverse_b;  // [rows], 0 in the padding
  const T* norm;  // [n]
  int64_t rows, source_stride, target_stride;
};

// One block of targets: its columns of the target gradient (complete but for beta), its share of the source gradient.
template <class G, class T = compute_t<G>>
static void backward_block(
    const Packed<T>& z, const Matrix<const G>& grad, int64_t m, int64_t S, int64_t n, int64_t q0, int64_t panels,
    T eps, T* c_block, T* g_block, T* dc, T* target_block, T* target_grad, int64_t n_targets, T* source_part,
    T* beta_part) {
  const int64_t width = panels * kCols<T>, t0 = q0 * kCols<T>, valid = std::min(width, n - t0);
  vec<T> dot[kMaxVecs], inverse_n[kMaxVecs] = {}, slope[kMaxVecs] = {};
  gradient_dots<G>(z.products, grad, S, z.rows, n, q0, panels, z.inverse_b, c_block, g_block, dot);
  gradient_slopes<T>(z.norm + t0, valid, eps, dot, inverse_n, slope);
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

template <class In, class G>
void guided_band_backward(const BandBackwardArguments<In, G>& x) {
  using T = compute_t<In>;
  constexpr int W = simd<T>::width;
  const int64_t m = x.m, S = x.S, n = x.n, rows = round_up(S, kStep);
  const int64_t per_block = panels_per_block<T>(rows), width = per_block * kCols<T>;
  const int64_t columns = round_up(n, width), blocks = columns / width;
  const int64_t source_stride = round_up(m, kRows), target_stride = round_up(m, W);
  const int64_t slots = source_slots(x.batch, blocks, rows * target_stride);

  Scratch<T> source(x.batch * rows * m), target(x.batch * columns * m), inverse_b(x.batch * rows);
  Scratch<T> source_rows(x.batch * rows * source_stride), target_rows(x.batch * columns * target_stride);
  Scratch<T> source_parts(x.batch * slots * rows * target_stride), beta_parts(x.batch * slots * rows);
  for (int64_t b = 0; b < x.batch; ++b) {
    const In* z_s = x.source + b * m * S;
    const In* z_t = x.target + b * m * x.n_targets;
    pack_panels(z_s, m, S, 0, S, rows, kRows, source.data() + b * rows * m);
    pack_panels(z_t, m, x.n_targets, x.begin, n, columns, kCols<T>, target.data() + b * columns * m);
    pack_rows(z_s, m, S, 0, S, rows, source_stride, source_rows.data() + b * rows * source_stride);
    pack_rows(z_t, m, x.n_targets, x.begin, n, columns, target_stride, target_rows.data() + b * columns * target_stride);
    invert(x.row_max + b * S, S, rows, inverse_b.data() + b * rows);
  }

  const int64_t dc_size = kChunk * width, target_size = source_stride * width;
  const int64_t per_worker = 2 * rows * width + dc_size + target_size;
  Scratch<T> scratch(count_workers(x.batch * slots) * per_worker);
  for_each_task(x.batch * slots, [&](int64_t worker, int64_t task) {
    const int64_t b = task / slots, slot = task % slots;
    T* const c_block = scratch.data() + worker * per_worker;
    T* const g_block = c_block + rows * width;
    T* const dc = g_block + rows * width;
    T* const source_part = source_parts.data() + task * rows * target_stride;
    T* const beta_part = beta_parts.data() + task * rows;
    std::fill(source_part, source_part + rows * target_stride, T(0));
    std::fill(beta_part, beta_part + rows, T(0));
    const Packed<T> z{
        {source.data() + b * rows * m, target.data() + b * columns * m, m},
        source_rows.data() + b * rows * source_stride,
        target_rows.data() + b * columns * target_stride,
        inverse_b.data() + b * rows,
        x.norm + b * x.n_targets + x.begin,
        rows,
        source_stride,
        target_stride};
    const Matrix<const G> grad{x.grad + b * x.grad_strides.batch, x.grad_strides.source, x.grad_strides.target};
    for (int64_t block = blocks * slot / slots; block < blocks * (slot + 1) / slots; ++block) {
      const int64_t q0 = block * per_block;
      const int64_t panels = std::min(per_block, round_up(n, kCols<T>) / kCols<T> - q0);
      backward_block<G>(
          z, grad, m, S, n, q0, panels, x.eps, c_block, g_block, dc, dc + dc_size,
          x.target_grad + b * m * x.n_targets + x.begin, x.n_targets, source_part, beta_part);
    }
  });
  add_source_parts<T>(x.batch, slots, m, S, rows, target_stride, source_parts.data(), x.source_grad);
  for (int64_t b = 0; b < x.batch; ++b) {
    for (int64_t slot = 0; slot < slots; ++slot) {
      const T* part = beta_parts.data() + (b * slots + slot) * rows;
      for (int64_t s = 0; s < S; ++s) {
        x.beta[b * S + s] += part[s];
      }
    }
  }
}

// The gradient through b_s = C(s, t*(s)), a rank-one term per source. None where b_s is at its floor.
template <class In>
void guided_row_max_backward(const RowMaxBackwardArguments<In>& x) {
  using T = compute_t<In>;
  torch::stable::parallel_for(0, x.batch * x.m, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / x.m;
      const In* z_s = x.source + i * x.S;
      const In* z_t = x.target + i * x.n_targets;
      T* source_grad = x.source_grad + i * x.S;
      T* target_grad = x.target_grad + i * x.n_targets;
      for (int64_t s = 0; s < x.S; ++s) {
        const int64_t at = x.row_argmax[b * x.S + s];
        const T beta = x.row_max[b * x.S + s] == x.eps ? 0 : x.beta[b * x.S + s];
        source_grad[s] += beta * static_cast<T>(z_t[at]);
        target_grad[at] += beta * static_cast<T>(z_s[s]);
      }
    }
  });
}
