// Where the output pixels of flow_sample look, and reading their neighbours, for one instruction set.

// Where and how the pixels of one band of output rows sample: offsets of the four neighbours in a plane and their
// weights; for the gradient of the flow also the derivatives of the weights by the displacement in x and y.
// Rows of `width` pixels are padded to whole vectors while they are worked out, hence the slack at the end.
template <class T, class Index>
struct Band {
  Band(int64_t rows, int64_t width, int64_t flow_width, bool with_slopes)
      : stride(rows * width + 16),
        at_(4 * stride),
        weight_(4 * stride),
        slope_(with_slopes ? 8 * stride : 1),
        row_(2 * std::max(flow_width, width) + 32),
        outside_(stride),
        adjacent_(stride) {}
  Index* at(int n) {
    return at_.data() + n * stride;
  }
  T* weight(int n) {
    return weight_.data() + n * stride;
  }
  T* slope(int axis, int n) {
    return slope_.data() + (4 * axis + n) * stride;
  }

  int64_t stride;
  int64_t outside_count = 0;
  Scratch<Index> at_;
  Scratch<T> weight_, slope_, row_;
  Scratch<int32_t> outside_;  // pixels that see nothing of the image ("zeros")
  Scratch<bool> adjacent_;  // per vector: every pixel's left and right neighbours lie side by side in memory
};

template <class In, class Index>
SIMD_INLINE vec<compute_t<In>> gather(const In* plane, const Index* at) {
  using T = compute_t<In>;
#if defined(SIMD_AVX512)
  if constexpr (std::is_same_v<In, float> && sizeof(Index) == 4) {
    return _mm512_i32gather_ps(_mm512_loadu_si512(at), plane, 4);
  }
#elif defined(SIMD_AVX2)
  if constexpr (std::is_same_v<In, float> && sizeof(Index) == 4) {
    return _mm256_i32gather_ps(plane, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)), 4);
  }
#endif
  vec<T> x;
  for (int i = 0; i < simd<T>::width; ++i) {
    x[i] = static_cast<T>(plane[at[i]]);
  }
  return x;
}

#if defined(SIMD_AVX2) || defined(SIMD_AVX512)
// Pairs of neighbours, eight at a time: one 8-byte load each instead of two gathered ones.
SIMD_INLINE __m256 load_two_and_two_pairs(const float* plane, const int32_t* at) {
  __m128 low = _mm_castpd_ps(_mm_load_sd(reinterpret_cast<const double*>(plane + at[0])));
  __m128 high = _mm_castpd_ps(_mm_load_sd(reinterpret_cast<const double*>(plane + at[4])));
  low = _mm_loadh_pi(low, reinterpret_cast<const __m64*>(plane + at[1]));
  high = _mm_loadh_pi(high, reinterpret_cast<const __m64*>(plane + at[5]));
  return _mm256_insertf128_ps(_mm256_castps128_ps256(low), high, 1);
}
SIMD_INLINE void load_pairs(const float* plane, const int32_t* at, __m256& left, __m256& right) {
  const __m256 a = load_two_and_two_pairs(plane, at);  // pixels 0 1 4 5
  const __m256 b = load_two_and_two_pairs(plane, at + 2);  // pixels 2 3 6 7
  left = _mm256_shuffle_ps(a, b, 0x88);
  right = _mm256_shuffle_ps(a, b, 0xdd);
}
#endif

// Notes which vectors of pixels can be read in pairs; `pixels` of the band are in use.
template <class T, class Index>
static void find_adjacent(Band<T, Index>& band, int64_t pixels) {
  constexpr int W = simd<T>::width;
  for (int64_t p = 0; p + W <= pixels; p += W) {
    Index apart = 0;
    for (int i = 0; i < W; ++i) {
      apart |= (band.at(1)[p + i] - band.at(0)[p + i] - 1) | (band.at(3)[p + i] - band.at(2)[p + i] - 1);
    }
    band.adjacent_.data()[p / W] = apart == 0;
  }
}

// The four neighbours of the vector of pixels at p.
template <class In, class Index, class T = compute_t<In>>
SIMD_INLINE void load_neighbours(Band<T, Index>& band, const In* plane, int64_t p, vec<T> (&value)[4]) {
#if defined(SIMD_AVX2) || defined(SIMD_AVX512)
  if constexpr (std::is_same_v<In, float> && sizeof(Index) == 4) {
    if (band.adjacent_.data()[p / simd<T>::width]) {
      for (int row = 0; row < 2; ++row) {
        const int32_t* at = band.at(2 * row) + p;
        __m256 left, right;
        load_pairs(plane, at, left, right);
#if defined(SIMD_AVX512)
        __m256 next_left, next_right;
        load_pairs(plane, at + 8, next_left, next_right);
        value[2 * row] = _mm512_insertf32x8(_mm512_castps256_ps512(left), next_left, 1);
        value[2 * row + 1] = _mm512_insertf32x8(_mm512_castps256_ps512(right), next_right, 1);
#else
        value[2 * row] = left;
        value[2 * row + 1] = right;
#endif
      }
      return;
    }
  }
#endif
  for (int n = 0; n < 4; ++n) {
    value[n] = gather(plane, band.at(n) + p);
  }
}

// The two neighbours of a vector of positions along one axis.
template <class T>
struct Neighbours {
  ints<T> low, high;  // inside the image, whatever the weights
  vec<T> low_weight, high_weight;  // 0 where the neighbour is outside
  vec<T> low_slope, high_slope;  // derivatives of the weights by the displacement
};

template <class T>
SIMD_INLINE Neighbours<T> neighbours(vec<T> position, int64_t extent, bool zeros) {
  using lane = typename simd<T>::lane;
  const vec<T> nothing{};
  const vec<T> low_end = splat<T>(zeros ? T(-2) : T(0));
  const vec<T> high_end = splat<T>(zeros ? T(extent + 1) : T(extent - 1));
  // As grid_sample: no gradient where the position was clamped, or sits on the end.
  const ints<T> moves = (position > low_end) & (position < high_end);
  position = position < low_end ? low_end : position;
  position = position > high_end ? high_end : position;
  const ints<T> lost = position != position;
  ints<T> low = __builtin_convertvector(lost ? nothing : position, ints<T>);  // towards zero
  low += __builtin_convertvector(low, vec<T>) > position;  // a mask is -1: down to the floor
  const ints<T> high = low + 1;
  const vec<T> high_weight = position - __builtin_convertvector(low, vec<T>);
  const ints<T> first{}, last = ints<T>{} + static_cast<lane>(extent - 1);
  const ints<T> low_inside = (low >= first) & (low <= last), high_inside = (high >= first) & (high <= last);
  const vec<T> step = splat<T>(T(extent) / 2);  // pixels per unit of displacement
  Neighbours<T> found;
  found.low = low < first ? first : (low > last ? last : low);
  found.high = high < first ? first : (high > last ? last : high);
  found.low_weight = lost ? position : (low_inside ? 1 - high_weight : nothing);
  found.high_weight = lost ? position : (high_inside ? high_weight : nothing);
  found.low_slope = (low_inside & moves) ? -step : nothing;
  found.high_slope = (high_inside & moves) ? step : nothing;
  return found;
}

// Offsets in a plane. A plane of 2^31 pixels and more needs wider indices than the lanes are.
template <class T, class Index>
SIMD_INLINE void store_offsets(Index* to, ints<T> y, ints<T> x, int64_t width) {
  if constexpr (sizeof(Index) == sizeof(typename simd<T>::lane)) {
    const ints<T> offsets = y * static_cast<typename simd<T>::lane>(width) + x;
    std::memcpy(to, &offsets, sizeof(offsets));
  } else {
    for (int i = 0; i < simd<T>::width; ++i) {
      to[i] = static_cast<Index>(y[i] * width + x[i]);
    }
  }
}

// The neighbours of the vector of pixels at `pixel`, of which `count` are there.
template <class T, class Index>
SIMD_INLINE void store_neighbours(
    const SampleGeometry<T>& g, const Neighbours<T>& nx, const Neighbours<T>& ny, int64_t pixel, int64_t count,
    bool with_slopes, Band<T, Index>& band) {
  store_offsets<T>(band.at(0) + pixel, ny.low, nx.low, g.width);
  store_offsets<T>(band.at(1) + pixel, ny.low, nx.high, g.width);
  store_offsets<T>(band.at(2) + pixel, ny.high, nx.low, g.width);
  store_offsets<T>(band.at(3) + pixel, ny.high, nx.high, g.width);
  store(band.weight(0) + pixel, ny.low_weight * nx.low_weight);
  store(band.weight(1) + pixel, ny.low_weight * nx.high_weight);
  store(band.weight(2) + pixel, ny.high_weight * nx.low_weight);
  store(band.weight(3) + pixel, ny.high_weight * nx.high_weight);
  if (with_slopes) {
    store(band.slope(0, 0) + pixel, ny.low_weight * nx.low_slope);
    store(band.slope(0, 1) + pixel, ny.low_weight * nx.high_slope);
    store(band.slope(0, 2) + pixel, ny.high_weight * nx.low_slope);
    store(band.slope(0, 3) + pixel, ny.high_weight * nx.high_slope);
    store(band.slope(1, 0) + pixel, ny.low_slope * nx.low_weight);
    store(band.slope(1, 1) + pixel, ny.low_slope * nx.high_weight);
    store(band.slope(1, 2) + pixel, ny.high_slope * nx.low_weight);
    store(band.slope(1, 3) + pixel, ny.high_slope * nx.high_weight);
  }
  if (g.zeros) {
    for (int64_t i = 0; i < count; ++i) {
      if ((nx.low_weight[i] == 0 && nx.high_weight[i] == 0) || (ny.low_weight[i] == 0 && ny.high_weight[i] == 0)) {
        band.outside_.data()[band.outside_count++] = static_cast<int32_t>(pixel + i);
      }
    }
  }
}

// Fills `band` for the output rows [y0, y1) of one sample; `displacement` is [2][h][w].
template <class T, class Index>
static void locate(
    const SampleGeometry<T>& g, const T* displacement, int64_t y0, int64_t y1, bool with_slopes,
    Band<T, Index>& band) {
  constexpr int W = simd<T>::width;
  const int64_t coarse_plane = g.flow_height * g.flow_width;
  const int64_t row_stride = std::max(g.flow_width, g.out_width) + 16;
  T* row = band.row_.data();
  band.outside_count = 0;
  for (int64_t y = y0; y < y1; ++y) {
    const Tap<T> vertical = g.rows[y];
    for (int axis = 0; axis < 2; ++axis) {
      const T* low = displacement + axis * coarse_plane + vertical.low * g.flow_width;
      const T* high = displacement + axis * coarse_plane + vertical.high * g.flow_width;
      T* to = row + axis * row_stride;
      if (vertical.low == vertical.high) {
        std::copy(low, low + g.flow_width, to);
      } else {
        for (int64_t j = 0; j < g.flow_width; ++j) {
          to[j] = low[j] * (1 - vertical.weight) + high[j] * vertical.weight;
        }
      }
    }
    for (int64_t x = 0; x < g.out_width; x += W) {
      const int64_t pixel = (y - y0) * g.out_width + x;
      vec<T> dx, dy;
      if (g.columns_as_they_are) {
        dx = load(row + x);
        dy = load(row + row_stride + x);
      } else {
        const vec<T> weight = load(g.column_weight.data() + x);
        const auto* low = g.column_low.data() + x;
        const auto* high = g.column_high.data() + x;
        dx = gather(row, low) * (1 - weight) + gather(row, high) * weight;
        dy = gather(row + row_stride, low) * (1 - weight) + gather(row + row_stride, high) * weight;
      }
      const Neighbours<T> nx =
          neighbours<T>(load(g.column_centre.data() + x) + dx * (T(g.width) / 2), g.width, g.zeros);
      const Neighbours<T> ny = neighbours<T>(vertical.centre + dy * (T(g.height) / 2), g.height, g.zeros);
      store_neighbours(g, nx, ny, pixel, std::min<int64_t>(W, g.out_width - x), with_slopes, band);
    }
  }
}
