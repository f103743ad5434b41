// Reading one sample of a 4D tensor in its own layout, for one instruction set.

// One sample of a 4D tensor as a matrix [S][n]: sources by targets, one of the two strides is often 1.
template <class In>
struct Matrix {
  In* data;
  int64_t source_stride, target_stride;

  In* at(int64_t s, int64_t t) const {
    return data + s * source_stride + t * target_stride;
  }
  // Rows lie far apart: the hardware does not foresee them.
  void prefetch_rows(int64_t s, int64_t count, int64_t t, int64_t width) const {
    if (target_stride == 1) {
      for (int64_t i = s; i < s + count; ++i) {
        const char* next = reinterpret_cast<const char*>(at(i, t));
        for (int64_t byte = 0; byte < width * static_cast<int64_t>(sizeof(In)); byte += 64) {
          __builtin_prefetch(next + byte);
        }
      }
    }
  }
};

// W values of row s from column t on; those at `valid` and beyond are zero.
template <class In, class T = compute_t<std::remove_const_t<In>>>
SIMD_INLINE vec<T> load_row(const Matrix<In>& x, int64_t s, int64_t t, int64_t valid) {
  constexpr int W = simd<T>::width;
  const In* from = x.at(s, t);
  if (x.target_stride == 1 && t + W <= valid) {
    return load_as(from);
  }
  vec<T> row{};
  for (int64_t i = 0; i < std::min<int64_t>(W, valid - t); ++i) {
    row[i] = static_cast<T>(from[i * x.target_stride]);
  }
  return row;
}

// Rows [s0, s0 + count) and columns [t0, t0 + width) into `block`, zeros where there are no more than S and n.
template <class In, class T = compute_t<std::remove_const_t<In>>>
static void load_block(
    const Matrix<In>& x, int64_t s0, int64_t count, int64_t S, int64_t t0, int64_t width, int64_t n, T* block) {
  constexpr int W = simd<T>::width;
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t v = 0; v < width; v += W) {
      store(block + i * width + v, s0 + i < S && t0 + v < n ? load_row(x, s0 + i, t0 + v, n) : vec<T>{});
    }
  }
}
