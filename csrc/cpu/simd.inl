// Vectors of the current instruction set, in the compilers' own vector extension; see simd.h. Included per target.

#define SIMD_INLINE static inline __attribute__((always_inline))

template <class T>
struct simd {
  static constexpr int width = SIMD_BYTES / sizeof(T);
  using lane = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
  typedef T vec __attribute__((vector_size(SIMD_BYTES)));
  typedef lane ints __attribute__((vector_size(SIMD_BYTES)));
  typedef T unaligned __attribute__((vector_size(SIMD_BYTES), aligned(alignof(T)), may_alias));
};

template <class T>
using vec = typename simd<T>::vec;
template <class T>
using ints = typename simd<T>::ints;

template <class T>
SIMD_INLINE vec<T> load(const T* p) {
  return *reinterpret_cast<const typename simd<T>::unaligned*>(p);
}

template <class T>
SIMD_INLINE void store(T* p, vec<T> x) {
  *reinterpret_cast<typename simd<T>::unaligned*>(p) = x;
}

template <class T>
SIMD_INLINE vec<T> splat(T x) {
  return x - vec<T>{};
}

template <class T>
SIMD_INLINE ints<T> lane_numbers() {
  ints<T> n;
  for (int i = 0; i < simd<T>::width; ++i) {
    n[i] = i;
  }
  return n;
}

// In a fixed order, so that results repeat bit by bit.
template <class T>
SIMD_INLINE T sum_lanes(vec<T> x) {
  T total = 0;
  for (int i = 0; i < simd<T>::width; ++i) {
    total += x[i];
  }
  return total;
}

// A vector of compute type from storage type and back, rounding to nearest even.
SIMD_INLINE vec<float> load_as(const float* p) {
  return load(p);
}
SIMD_INLINE vec<double> load_as(const double* p) {
  return load(p);
}
SIMD_INLINE void store_as(float* p, vec<float> x) {
  store(p, x);
}
SIMD_INLINE void store_as(double* p, vec<double> x) {
  store(p, x);
}

typedef uint16_t u16s __attribute__((vector_size(SIMD_BYTES / 2)));
typedef uint32_t u32s __attribute__((vector_size(SIMD_BYTES)));

SIMD_INLINE vec<float> load_as(const BFloat16* p) {
  u16s narrow;
  std::memcpy(&narrow, p, sizeof(narrow));
  return reinterpret_cast<vec<float>>(__builtin_convertvector(narrow, u32s) << 16);
}
SIMD_INLINE u16s narrowed(const BFloat16*, vec<float> x) {
  const u32s bits = reinterpret_cast<u32s>(x);
  const u32s rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const u32s nan = reinterpret_cast<u32s>(x != x);
  return __builtin_convertvector((rounded & ~nan) | (0x7fc0 & nan), u16s);
}
SIMD_INLINE void store_as(BFloat16* p, vec<float> x) {
  const u16s narrow = narrowed(p, x);
  std::memcpy(p, &narrow, sizeof(narrow));
}

SIMD_INLINE vec<float> load_as(const Half* p) {
#if defined(SIMD_AVX512)
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(SIMD_AVX2)
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  vec<float> x;
  for (int i = 0; i < simd<float>::width; ++i) {
    x[i] = static_cast<float>(p[i]);
  }
  return x;
#endif
}
#if defined(SIMD_AVX512)
SIMD_INLINE u16s narrowed(const Half*, vec<float> x) {
  return reinterpret_cast<u16s>(_mm512_cvtps_ph(x, 0));
}
#endif
SIMD_INLINE void store_as(Half* p, vec<float> x) {
#if defined(SIMD_AVX512)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x, 0));
#elif defined(SIMD_AVX2)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x, 0));
#else
  for (int i = 0; i < simd<float>::width; ++i) {
    p[i] = static_cast<Half>(x[i]);
  }
#endif
}

// The first n lanes only; the others are zero.
template <class In>
SIMD_INLINE vec<compute_t<In>> load_part(const In* p, int64_t n) {
  vec<compute_t<In>> x{};
  for (int64_t i = 0; i < n; ++i) {
    x[i] = static_cast<compute_t<In>>(p[i]);
  }
  return x;
}
template <class In>
SIMD_INLINE void store_part(In* p, vec<compute_t<In>> x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    p[i] = static_cast<In>(x[i]);
  }
}

// Vectors of the compute type in as many bytes of the storage type.
template <class In>
constexpr int kPerStore = sizeof(compute_t<In>) / sizeof(In);

// So many, past the caches, for a result that is written once and read much later. p must be aligned to the vector;
// where the instruction set has no such store, plain ones.
template <class In>
SIMD_INLINE void store_streaming(In* p, const vec<compute_t<In>>* x) {
#if defined(SIMD_AVX512)
  if constexpr (std::is_same_v<In, float>) {
    return _mm512_stream_ps(p, *x);
  } else if constexpr (std::is_same_v<In, double>) {
    return _mm512_stream_pd(p, *x);
  } else {
    const __m512i low = _mm512_castsi256_si512(reinterpret_cast<__m256i>(narrowed(p, x[0])));
    const __m512i both = _mm512_inserti64x4(low, reinterpret_cast<__m256i>(narrowed(p, x[1])), 1);
    return _mm512_stream_si512(reinterpret_cast<__m512i*>(p), both);
  }
#elif defined(SIMD_AVX2)
  if constexpr (std::is_same_v<In, float>) {
    return _mm256_stream_ps(p, *x);
  } else if constexpr (std::is_same_v<In, double>) {
    return _mm256_stream_pd(p, *x);
  }
#endif
  for (int i = 0; i < kPerStore<In>; ++i) {
    store_as(p + i * simd<compute_t<In>>::width, x[i]);
  }
}

// acc[i][j] += sum_k a[i * a_row + k * a_step] * b[j-th vector of row k]: the register tile of every product here.
template <class T, int R, int N>
SIMD_INLINE void multiply_tile(
    int64_t K, const T* a, int64_t a_row, int64_t a_step, const T* b, int64_t b_step, vec<T> (&acc)[R][N]) {
  for (int64_t k = 0; k < K; ++k) {
    vec<T> row[N];
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) {
      row[j] = load(b + j * simd<T>::width);
    }
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      const T x = a[i * a_row];
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j) {
        acc[i][j] += row[j] * x;
      }
    }
    a += a_step;
    b += b_step;
  }
}
