// Maxima of C over targets and where they are, for one instruction set: of segments of targets first, a place within
// its segment at the end. Needs product.inl.

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

// Whether C of these panels may hold a NaN: a sum of products is one only where a feature is not finite, or the sum
// overflows.
template <class T>
static bool may_be_nan(const T* source, int64_t source_size, const T* target, int64_t target_size, int64_t m) {
  const T bound =
      largest_magnitude<T>(source, source_size) * largest_magnitude<T>(target, target_size) * static_cast<T>(m);
  return !(bound < std::numeric_limits<T>::max());
}
