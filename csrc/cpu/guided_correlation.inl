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

// A register tile of C, whose columns from `valid` on are padding and must not win, into the best so far.
template <bool kMayBeNan, class T>
SIMD_INLINE void keep_larger(vec<T> (&c)[kRows][kVecs], int64_t valid, vec<T> (&best)[kRows][kVecs]) {
  constexpr T kLowest = -std::numeric_limits<T>::infinity();
  using lane = typename simd<T>::lane;
  if (valid < kCols<T>) {
    for (int j = 0; j < kVecs; ++j) {
      const ints<T> lanes = lane_numbers<T>() + static_cast<lane>(j * simd<T>::width);
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
        const ints<T> better = (c[i][j] > best[i][j]) | (c[i][j] != c[i][j]);
        best[i][j] = better ? c[i][j] : best[i][j];
      } else {
        best[i][j] = larger<T>(best[i][j], c[i][j]);
      }
    }
  }
}

// The segment of a row's maximum, the first where there are several, from the maxima of its columns.
template <class T>
static int64_t best_segment(const vec<T> (&top)[kVecs], const ints<T> (&where)[kVecs], T& highest) {
  constexpr int W = simd<T>::width;
  highest = -std::numeric_limits<T>::infinity();
  int64_t segment = 0;
  for (int column = 0; column < kCols<T>; ++column) {
    const T value = top[column / W][column % W];
    const int64_t in = where[column / W][column % W];
    const bool as_high = value == highest || (value != value && highest != highest);
    if (value > highest || (value != value && highest == highest) || (as_high && in < segment)) {
      highest = value;
      segment = in;
    }
  }
  return segment;
}

// Maxima over all targets and where they are first, for the source panels [first, last). A NaN is the largest value;
// features that cannot make one are spared the looking for it. Only the segment of a maximum is kept track of.
template <bool kMayBeNan, class T>
static void row_maxima(
    const Products<T>& z, int64_t S, int64_t n, int64_t first, int64_t last, const Statistics<T>& found) {
  constexpr int kGroup = 8;  // source panels per pass over the targets: those are read from the second-level cache
  constexpr T kLowest = -std::numeric_limits<T>::infinity();
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
        for (int g = 0; g < group; ++g) {
          vec<T> c[kRows][kVecs];
          z.tile(p0 + g, q, c);
          keep_larger<kMayBeNan, T>(c, n - q * kCols<T>, best[g]);
        }
      }
      const ints<T> here = ints<T>{} + static_cast<typename simd<T>::lane>(segment);
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
        T highest;
        const int64_t segment = best_segment<T>(top[g][i], where[g][i], highest);
        found.row_max[s] = highest < found.eps ? found.eps : highest;
        found.row_argmax[s] = find_in_segment<T>(z.source + (p0 + g) * kRows * z.m, i, z.target, z.m, n, segment);
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
  const Features<In>& z = x.z;
  const int64_t rows = round_up(z.sources, kRows), columns = round_up(z.targets, kCols<T>);
  // Whole vectors, the last one padded with zeros.
  const int64_t used = z.batch * rows * z.m, source_size = round_up(used, simd<T>::width);
  const int64_t target_size = z.batch * columns * z.m;
  Scratch<T> source(source_size), target(target_size);
  std::fill(source.data() + used, source.data() + source_size, T(0));
  pack_all_panels(z, rows, columns, source.data(), target.data());
  // A sum of products is NaN only where a feature is not finite, or the sum overflows.
  const T bound = largest_magnitude<T>(source.data(), source_size) *
      largest_magnitude<T>(target.data(), target_size) * static_cast<T>(z.m);
  const bool careful = !(bound < std::numeric_limits<T>::max());
  const auto function = careful ? row_maxima<true, T> : row_maxima<false, T>;
  constexpr int64_t kPanels = 8;  // a task
  const int64_t source_panels = rows / kRows, per_sample = (source_panels + kPanels - 1) / kPanels;
  // Threads that bring in pages hinder each other: spread out, those tasks meet threads that compute.
  const int64_t pages = x.pages ? x.pages->count() : 0, tasks = z.batch * per_sample + pages;
  for_each_task(tasks, [&](int64_t, int64_t task) {
    const int64_t page = task * pages / tasks;
    if ((task + 1) * pages / tasks > page) {
      x.pages->bring(page);
      return;
    }
    const int64_t i = task - page, b = i / per_sample, first = i % per_sample * kPanels;
    Statistics<T> found = x.statistics;
    found.row_max += b * z.sources;
    found.row_argmax += b * z.sources;
    function(
        {source.data() + b * rows * z.m, target.data() + b * columns * z.m, z.m}, z.sources, z.targets, first,
        std::min(source_panels, first + kPanels), found);
  });
}

template <class In, class Out>
void guided_band(const BandArguments<In, Out>& x) {
  using T = compute_t<In>;
  const Features<In>& z = x.z;
  const int64_t rows = round_up(z.sources, kRows), columns = round_up(z.count, kCols<T>);
  Scratch<T> source(z.batch * rows * z.m), target(z.batch * columns * z.m);
  pack_all_panels(z, rows, columns, source.data(), target.data());
  Statistics<T> found = x.statistics;
  found.norm += z.begin;
  normalize_columns<Out>(
      z.batch, z.sources, z.count, found,
      [&](int64_t b) { return Products<T>{source.data() + b * rows * z.m, target.data() + b * columns * z.m, z.m}; },
      [&](int64_t b) {
        return Matrix<Out>{x.out + b * x.out_strides.batch, x.out_strides.source, x.out_strides.target};
      },
      z.targets);
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

// The same of all samples.
template <class In, class T = compute_t<In>>
struct PackedBatch {
  PackedBatch(const Features<In>& z_, const Statistics<T>& statistics, int64_t rows_, int64_t columns_)
      : z(z_),
        rows(rows_),
        columns(columns_),
        source_stride(round_up(z.m, kRows)),
        target_stride(round_up(z.m, simd<T>::width)),
        norm(statistics.norm),
        source(z.batch * rows * z.m),
        target(z.batch * columns * z.m),
        inverse_b(z.batch * rows),
        source_rows(z.batch * rows * source_stride),
        target_rows(z.batch * columns * target_stride) {
    pack_all_panels(z, rows, columns, source.data(), target.data());
    pack_all_rows(z, rows, columns, source_stride, target_stride, source_rows.data(), target_rows.data());
    for (int64_t b = 0; b < z.batch; ++b) {
      invert(statistics.row_max + b * z.sources, z.sources, rows, inverse_b.data() + b * rows);
    }
  }
  Packed<T> at(int64_t b) {
    return {
        {source.data() + b * rows * z.m, target.data() + b * columns * z.m, z.m},
        source_rows.data() + b * rows * source_stride,
        target_rows.data() + b * columns * target_stride,
        inverse_b.data() + b * rows,
        norm + b * z.targets + z.begin,
        rows,
        source_stride,
        target_stride};
  }

  const Features<In>& z;
  int64_t rows, columns, source_stride, target_stride;
  const T* norm;
  Scratch<T> source, target, inverse_b, source_rows, target_rows;
};

// Scratch of a worker, and the sums of its task.
template <class T>
struct BackwardScratch {
  T* c_block;
  T* g_block;
  T* dc;
  T* target_block;
  T* source_part;
  T* beta_part;
};

// One block of targets: its columns of the target gradient (complete but for beta), its share of the source gradient.
template <class G, class In, class T = compute_t<In>>
static void backward_block(
    const Packed<T>& packed, const Features<In>& z, const Matrix<const G>& grad, int64_t q0, int64_t panels, T eps,
    const BackwardScratch<T>& to, T* target_grad) {
  const int64_t width = panels * kCols<T>, t0 = q0 * kCols<T>, valid = std::min(width, z.count - t0);
  vec<T> dot[kMaxVecs], inverse_n[kMaxVecs] = {}, slope[kMaxVecs] = {};
  gradient_dots<G>(
      packed.products, grad, z.sources, packed.rows, z.count, q0, panels, packed.inverse_b, to.c_block, to.g_block,
      dot);
  gradient_slopes<T>(packed.norm + t0, valid, eps, dot, inverse_n, slope);
  std::fill(to.target_block, to.target_block + packed.source_stride * width, T(0));
  for (int64_t s0 = 0; s0 < packed.rows; s0 += kChunk) {
    const int64_t count = std::min<int64_t>(kChunk, packed.rows - s0);
    gradient_rows<T>(
        count, width, packed.inverse_b + s0, to.c_block + s0 * width, to.g_block + s0 * width, inverse_n, slope,
        to.dc, to.beta_part + s0);
    add_source_product<T>(
        count, width, to.dc, packed.target_rows + t0 * packed.target_stride, packed.target_stride,
        to.source_part + s0 * packed.target_stride);
    add_target_product<T>(
        count, width, to.dc, packed.source_rows + s0 * packed.source_stride, packed.source_stride, to.target_block);
  }
  for (int64_t k = 0; k < z.m; ++k) {
    std::copy(
        to.target_block + k * width, to.target_block + k * width + valid, target_grad + k * z.targets + t0);
  }
}

template <class In, class G>
void guided_band_backward(const BandBackwardArguments<In, G>& x) {
  using T = compute_t<In>;
  const Features<In>& z = x.z;
  const int64_t m = z.m, S = z.sources, n = z.count, rows = round_up(S, kStep);
  const int64_t per_block = panels_per_block<T>(rows), width = per_block * kCols<T>;
  const int64_t columns = round_up(n, width), blocks = columns / width;
  PackedBatch<In> packed(z, x.statistics, rows, columns);
  const int64_t part = rows * packed.target_stride, slots = source_slots(z.batch, blocks, part);
  Scratch<T> source_parts(z.batch * slots * part), beta_parts(z.batch * slots * rows);
  const int64_t dc_size = kChunk * width, target_size = packed.source_stride * width;
  const int64_t per_worker = 2 * rows * width + dc_size + target_size;
  Scratch<T> scratch(count_workers(z.batch * slots) * per_worker);
  for_each_task(z.batch * slots, [&](int64_t worker, int64_t task) {
    const int64_t b = task / slots, slot = task % slots;
    BackwardScratch<T> to{};
    to.c_block = scratch.data() + worker * per_worker;
    to.g_block = to.c_block + rows * width;
    to.dc = to.g_block + rows * width;
    to.target_block = to.dc + dc_size;
    to.source_part = source_parts.data() + task * part;
    to.beta_part = beta_parts.data() + task * rows;
    std::fill(to.source_part, to.source_part + part, T(0));
    std::fill(to.beta_part, to.beta_part + rows, T(0));
    const Matrix<const G> grad{x.grad + b * x.grad_strides.batch, x.grad_strides.source, x.grad_strides.target};
    for (int64_t block = blocks * slot / slots; block < blocks * (slot + 1) / slots; ++block) {
      const int64_t q0 = block * per_block;
      const int64_t panels = std::min(per_block, round_up(n, kCols<T>) / kCols<T> - q0);
      backward_block<G>(
          packed.at(b), z, grad, q0, panels, x.statistics.eps, to, x.target_grad + b * m * z.targets + z.begin);
    }
  });
  add_source_parts<T>(z.batch, slots, m, S, rows, packed.target_stride, source_parts.data(), x.source_grad);
  for (int64_t b = 0; b < z.batch; ++b) {
    for (int64_t slot = 0; slot < slots; ++slot) {
      const T* beta = beta_parts.data() + (b * slots + slot) * rows;
      for (int64_t s = 0; s < S; ++s) {
        x.beta[b * S + s] += beta[s];
      }
    }
  }
}

// The gradient through b_s = C(s, t*(s)), a rank-one term per source. None where b_s is at its floor.
template <class In>
void guided_row_max_backward(const RowMaxBackwardArguments<In>& x) {
  using T = compute_t<In>;
  const Features<In>& z = x.z;
  torch::stable::parallel_for(0, z.batch * z.m, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / z.m;
      const In* z_s = z.source + i * z.sources;
      const In* z_t = z.target + i * z.targets;
      T* source_grad = x.source_grad + i * z.sources;
      T* target_grad = x.target_grad + i * z.targets;
      for (int64_t s = 0; s < z.sources; ++s) {
        const int64_t at = x.statistics.row_argmax[b * z.sources + s];
        const T beta = x.statistics.row_max[b * z.sources + s] == x.statistics.eps ? 0 : x.beta[b * z.sources + s];
        source_grad[s] += beta * static_cast<T>(z_t[at]);
        target_grad[at] += beta * static_cast<T>(z_s[s]);
      }
    }
  });
}
