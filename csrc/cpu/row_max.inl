// The maxima b_s = max_t C(s, t), where they are first, and the gradient through them, for one instruction set. Needs
// product.inl and, of soft_mutual.inl, Products.

#include "cpu/maxima.inl"

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
  const bool careful = may_be_nan<T>(source.data(), source_size, target.data(), target_size, z.m);
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
      for (int64_t s = 0; s < z.sources; ++s) {
        const int64_t at = x.statistics.row_argmax[b * z.sources + s];
        const T beta = x.statistics.row_max[b * z.sources + s] == x.statistics.eps ? 0 : x.beta[b * z.sources + s];
        if (x.source_grad != nullptr) {
          x.source_grad[i * z.sources + s] += beta * static_cast<T>(z_t[at]);
        }
        if (x.target_grad != nullptr) {
          x.target_grad[i * z.targets + at] += beta * static_cast<T>(z_s[s]);
        }
      }
    }
  });
}
