// The maxima b_s = max_t C(s, t), where they are first, and the gradient through them, for one instruction set. Needs
// product.inl and products.inl.

#include "cpu/maxima.inl"

// Of some source panels: the largest of each column of panels so far, and the mark of where it was.
template <class T>
struct RowMaxima {
  static constexpr int kGroup = 4;  // per pass over the targets: those are read from the second-level cache
  vec<T> top[kGroup][kRows][kVecs];
  ints<T> marks[kGroup][kRows][kVecs];
};

// Marks are target panels.
template <bool kMayBeNan, class Tiles, class T>
static void mark_panels(const Tiles& z, int64_t n, int64_t p0, int group, RowMaxima<T>& found) {
  for (int64_t q = 0; q * kCols<T> < n; ++q) {
    const ints<T> here = ints<T>{} + static_cast<typename simd<T>::lane>(q);
    for (int g = 0; g < group; ++g) {
      vec<T> c[kRows][kVecs];
      z.tile(p0 + g, q, c);
      mask_columns<T>(n - q * kCols<T>, c);
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
        for (int j = 0; j < kVecs; ++j) {
          keep_marked<kMayBeNan, T>(c[i][j], here, found.top[g][i][j], found.marks[g][i][j]);
        }
      }
    }
  }
}

// Marks are segments of panels: less to do for each tile, and a place to be looked for in the end.
template <bool kMayBeNan, class Tiles, class T>
static void mark_segments(const Tiles& z, int64_t n, int64_t p0, int group, RowMaxima<T>& found) {
  constexpr T kLowest = -std::numeric_limits<T>::infinity();
  vec<T> best[RowMaxima<T>::kGroup][kRows][kVecs];
  const int64_t panels = round_up(n, kCols<T>) / kCols<T>;
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
      keep_marked<kMayBeNan, T>(
          (&best[0][0][0])[v], here, (&found.top[0][0][0])[v], (&found.marks[0][0][0])[v]);
    }
  }
}

// Maxima over all targets and where they are first, for the source panels [first, last). A NaN is the largest value;
// features that cannot make one are spared the looking for it.
template <bool kMayBeNan, class Tiles, class T>
static void row_maxima(
    const Tiles& z, int64_t S, int64_t n, int64_t first, int64_t last, const Statistics<T>& to) {
  constexpr int kGroup = RowMaxima<T>::kGroup;
  RowMaxima<T> found;
  for (int64_t p0 = first; p0 < last; p0 += kGroup) {
    const int group = static_cast<int>(std::min<int64_t>(kGroup, last - p0));
    std::fill_n(&found.top[0][0][0], group * kRows * kVecs, splat<T>(-std::numeric_limits<T>::infinity()));
    std::fill_n(&found.marks[0][0][0], group * kRows * kVecs, ints<T>{});
    if constexpr (Tiles::kCheap) {
      mark_panels<kMayBeNan, Tiles, T>(z, n, p0, group, found);
    } else {
      mark_segments<kMayBeNan, Tiles, T>(z, n, p0, group, found);
    }
    for (int64_t s = p0 * kRows; s < std::min(S, (p0 + group) * kRows); ++s) {
      const int64_t g = s / kRows - p0, i = s % kRows;
      const Place<T> place = best_place<T>(found.top[g][i], found.marks[g][i]);
      to.row_max[s] = place.value < to.eps ? to.eps : place.value;
      to.row_argmax[s] = Tiles::kCheap ? place.mark * kCols<T> + place.lane : find_in_segment<T>(z, s, n, place.mark);
    }
  }
}

// `packed` are all sources, in whole panels, and all targets.
template <class In, class Packed>
static void row_max_of(const RowMaxArguments<In>& x, Packed& packed) {
  using T = compute_t<In>;
  using Tiles = typename Packed::Tiles;
  const Features<In>& z = x.z;
  const auto function = may_be_nan(z) ? row_maxima<true, Tiles, T> : row_maxima<false, Tiles, T>;
  constexpr int64_t kPanels = 8;  // a task
  const int64_t source_panels = round_up(z.sources, kRows) / kRows, per_sample = (source_panels + kPanels - 1) / kPanels;
  // Threads that bring in pages hinder each other: spread out, those tasks meet threads that compute.
  const int64_t pages = x.pages ? x.pages->count() : 0, tasks = z.batch * per_sample + pages;
  for_each_task(tasks, [&](int64_t, int64_t task) {
    const int64_t page = task * pages / tasks;
    if ((task + 1) * pages / tasks > page) {
      x.pages->bring(page);
      return;
    }
    [[maybe_unused]] const typename Tiles::Session session;
    const int64_t i = task - page, b = i / per_sample, first = i % per_sample * kPanels;
    Statistics<T> found = x.statistics;
    found.row_max += b * z.sources;
    found.row_argmax += b * z.sources;
    function(packed.at(b), z.sources, z.targets, first, std::min(source_panels, first + kPanels), found);
  });
}

template <class In>
void guided_row_max(const RowMaxArguments<In>& x) {
  PackedProducts<In> packed = pack_all<PackedProducts<In>>(x.z);
  row_max_of(x, packed);
}

// The gradient through b_s = C(s, t*(s)), a rank-one term per source. None where b_s is at its floor.
template <class In>
void guided_row_max_backward(const RowMaxBackwardArguments<In>& x) {
  using T = compute_t<In>;
  const Features<In>& z = x.z;
  Scratch<T> all(z.batch * z.sources);
  for (int64_t i = 0; i < z.batch * z.sources; ++i) {
    all.data()[i] = x.statistics.row_max[i] == x.statistics.eps ? 0 : x.beta[i];
  }
  torch::stable::parallel_for(0, z.batch * z.m, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / z.m;
      const T* beta = all.data() + b * z.sources;
      const int64_t* at = x.statistics.row_argmax + b * z.sources;
      const In* z_s = z.source + i * z.sources;
      const In* z_t = z.target + i * z.targets;
      if (x.source_grad != nullptr) {
        T* to = x.source_grad + i * z.sources;
        for (int64_t s = 0; s < z.sources; ++s) {
          to[s] += beta[s] * static_cast<T>(z_t[at[s]]);
        }
      }
      if (x.target_grad != nullptr) {
        T* to = x.target_grad + i * z.targets;
        for (int64_t s = 0; s < z.sources; ++s) {
          to[at[s]] += beta[s] * static_cast<T>(z_s[s]);
        }
      }
    }
  });
}
