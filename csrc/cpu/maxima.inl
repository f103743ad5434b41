// Maxima of C over targets and where they are, for one instruction set: of segments of targets first, a place within
// its segment at the end. Needs product.inl.

constexpr int kSegment = 4;  // target panels whose maximum is kept, and looked through again for its place

template <class T>
SIMD_INLINE vec<T> larger(vec<T> a, vec<T> b) {
  return a > b ? a : b;
}

// Where a row's maximum is, the first where there are several: the lane, and what it was marked with, of which a lower
// one is before a higher one. NaN is the largest value.
template <class T>
struct Place {
  T value;
  int64_t mark, lane;
};

template <class T>
static Place<T> best_place(const vec<T> (&top)[kVecs], const ints<T> (&marks)[kVecs]) {
  constexpr int W = simd<T>::width;
  Place<T> best{-std::numeric_limits<T>::infinity(), 0, 0};
  for (int lane = 0; lane < kCols<T>; ++lane) {
    const T value = top[lane / W][lane % W];
    const int64_t mark = marks[lane / W][lane % W];
    const bool as_high = value == best.value || (value != value && best.value != best.value);
    if (value > best.value || (value != value && best.value == best.value) || (as_high && mark < best.mark)) {
      best = {value, mark, lane};
    }
  }
  return best;
}

// Keeps the larger of two vectors, the old one where they are equal, and its marks.
template <bool kMayBeNan, class T>
SIMD_INLINE void keep_marked(vec<T> value, ints<T> mark, vec<T>& top, ints<T>& marks) {
  ints<T> better = value > top;
  if constexpr (kMayBeNan) {
    better |= (value != value) & (top == top);
  }
  top = better ? value : top;
  marks = better ? mark : marks;
}

// The first target of a segment, of n in all, at which source s has its maximum there.
template <class T, class Tiles>
static int64_t find_in_segment(const Tiles& z, int64_t s, int64_t n, int64_t segment) {
  using lane = typename simd<T>::lane;
  const int64_t first = segment * kSegment, panels = round_up(n, kCols<T>) / kCols<T>;
  vec<T> top[kVecs];
  ints<T> marks[kVecs] = {};
  std::fill_n(top, kVecs, splat<T>(-std::numeric_limits<T>::infinity()));
  for (int64_t q = first; q < std::min(panels, first + kSegment); ++q) {
    vec<T> c[1][kVecs];
    z.row(s, q, c);
    for (int j = 0; j < kVecs; ++j) {
      const ints<T> lanes = lane_numbers<T>() + static_cast<lane>(j * simd<T>::width);
      const int64_t valid = std::min<int64_t>(kCols<T>, n - q * kCols<T>);
      const vec<T> value = lanes < static_cast<lane>(valid) ? c[0][j] : splat<T>(-std::numeric_limits<T>::infinity());
      keep_marked<true, T>(value, ints<T>{} + static_cast<lane>(q - first), top[j], marks[j]);
    }
  }
  const Place<T> best = best_place<T>(top, marks);
  return (first + best.mark) * kCols<T> + best.lane;
}

// The columns of a register tile from `valid` on are padding and must not win.
template <class T>
SIMD_INLINE void mask_columns(int64_t valid, vec<T> (&c)[kRows][kVecs]) {
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
}

// A register tile of C into the best so far.
template <bool kMayBeNan, class T>
SIMD_INLINE void keep_larger(vec<T> (&c)[kRows][kVecs], int64_t valid, vec<T> (&best)[kRows][kVecs]) {
  mask_columns<T>(valid, c);
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

// The largest magnitude, or NaN where a value is not finite.
template <class In, class T = compute_t<In>>
static T largest_magnitude(const In* x, int64_t count) {
  constexpr int W = simd<T>::width;
  vec<T> most{}, poison{};
  for (int64_t i = 0; i < count; i += W) {
    const vec<T> value = i + W <= count ? load_as(x + i) : load_part(x + i, count - i);
    most = larger<T>(most, larger<T>(value, -value));
    poison += value * T(0);
  }
  T highest = 0;
  for (int i = 0; i < W; ++i) {
    highest = most[i] > highest ? most[i] : highest;
  }
  return highest + sum_lanes<T>(poison);
}

// Whether C of all sources and targets may hold a NaN: a sum of products is one only where a feature is not finite, or
// the sum overflows.
template <class In>
static bool may_be_nan(const Features<In>& z) {
  using T = compute_t<In>;
  const T bound = largest_magnitude(z.source, z.batch * z.m * z.sources) *
                  largest_magnitude(z.target, z.batch * z.m * z.targets) * static_cast<T>(z.m);
  return !(bound < std::numeric_limits<T>::max());
}
