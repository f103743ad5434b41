// Loops of flow_sample for one instruction set; the mathematics is at the top of flow_sample.cpp.

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
        const int64_t count = std::min<int64_t>(W, g.out_width - x);
        for (int64_t i = 0; i < count; ++i) {
          if ((nx.low_weight[i] == 0 && nx.high_weight[i] == 0) || (ny.low_weight[i] == 0 && ny.high_weight[i] == 0)) {
            band.outside_.data()[band.outside_count++] = static_cast<int32_t>(pixel + i);
          }
        }
      }
    }
  }
}

template <class In, class Index, class T = compute_t<In>>
static void sample_plane(Band<T, Index>& band, const In* plane, int64_t pixels, In* out) {
  constexpr int W = simd<T>::width;
  int64_t p = 0;
  for (; p + W <= pixels; p += W) {
    vec<T> value[4];
    load_neighbours(band, plane, p, value);
    vec<T> sum = value[0] * load(band.weight(0) + p);
    for (int n = 1; n < 4; ++n) {
      sum += value[n] * load(band.weight(n) + p);
    }
    store_as(out + p, sum);
  }
  for (; p < pixels; ++p) {
    T sum = 0;
    for (int n = 0; n < 4; ++n) {
      sum += static_cast<T>(plane[band.at(n)[p]]) * band.weight(n)[p];
    }
    out[p] = static_cast<In>(sum);
  }
  for (int64_t i = 0; i < band.outside_count; ++i) {
    out[band.outside_.data()[i]] = static_cast<In>(T(0));  // also where the nearest pixel is infinite
  }
}

template <class In, class Index>
static void sample_all(const SampleArguments<In>& x) {
  using T = compute_t<In>;
  const SampleGeometry<T>& g = x.geometry;
  const int64_t rows = g.band_rows(), bands = g.bands();
  const int64_t plane = g.height * g.width, out_plane = g.out_height * g.out_width;
  torch::stable::parallel_for(0, x.batch * bands, g.grain(x.channels), [&](int64_t begin, int64_t end) {
    Band<T, Index> band(rows, g.out_width, g.flow_width, false);
    for (int64_t n = begin; n < end; ++n) {
      const int64_t b = n / bands, y0 = n % bands * rows, y1 = std::min(g.out_height, y0 + rows);
      locate<T, Index>(g, x.displacement + b * 2 * g.flow_height * g.flow_width, y0, y1, false, band);
      find_adjacent(band, (y1 - y0) * g.out_width);
      for (int64_t c = b * x.channels; c < (b + 1) * x.channels; ++c) {
        sample_plane<In, Index>(
            band, x.image + c * plane, (y1 - y0) * g.out_width, x.result + c * out_plane + y0 * g.out_width);
      }
    }
  });
}

template <class In>
void sample(const SampleArguments<In>& x) {
  const bool small = x.geometry.height * x.geometry.width <= std::numeric_limits<int32_t>::max();
  small ? sample_all<In, int32_t>(x) : sample_all<In, int64_t>(x);
}

// ---- backward

// Adds one band of K planes of the gradient to what it was sampled from. Neighbouring pixels add to the same places, so
// each plane is a chain of loads that wait for stores: K of them side by side hide that.
template <int K, class In, class Index, class T = compute_t<In>>
static void scatter_planes(
    Band<T, Index>& band, int64_t pixels, const In* from, int64_t from_plane, T* to, int64_t to_plane) {
  for (int64_t p = 0; p < pixels; ++p) {
    T value[K];
#pragma GCC unroll 4
    for (int c = 0; c < K; ++c) {
      value[c] = static_cast<T>(from[c * from_plane + p]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const int64_t at = band.at(i)[p];
      const T weight = band.weight(i)[p];
#pragma GCC unroll 4
      for (int c = 0; c < K; ++c) {
        to[c * to_plane + at] += value[c] * weight;
      }
    }
  }
}

// Each plane of the image gradient belongs to one task and is filled in the order of the output pixels: no atomics, the
// same bits for any number of threads.
template <class In, class Index>
static void image_gradient(const SampleArguments<In>& x) {
  using T = compute_t<In>;
  const SampleGeometry<T>& g = x.geometry;
  const int64_t rows = g.band_rows(), plane = g.height * g.width, out_plane = g.out_height * g.out_width;
  // Positions are worked out once per group of planes; a group per thread is enough.
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t groups = std::clamp<int64_t>((threads + x.batch - 1) / x.batch, 1, x.channels);
  torch::stable::parallel_for(0, x.batch * groups, 1, [&](int64_t begin, int64_t end) {
    Band<T, Index> band(rows, g.out_width, g.flow_width, false);
    constexpr bool kDirect = std::is_same_v<In, T>;
    for (int64_t n = begin; n < end; ++n) {
      const int64_t b = n / groups, group = n % groups;
      const int64_t c0 = b * x.channels + x.channels * group / groups;
      const int64_t c1 = b * x.channels + x.channels * (group + 1) / groups;
      Scratch<T> wide(kDirect ? 1 : (c1 - c0) * plane);
      T* sums = wide.data();
      if constexpr (kDirect) {
        sums = x.image_grad + c0 * plane;
      }
      std::fill(sums, sums + (c1 - c0) * plane, T(0));
      for (int64_t y0 = 0; y0 < g.out_height; y0 += rows) {
        const int64_t y1 = std::min(g.out_height, y0 + rows), pixels = (y1 - y0) * g.out_width;
        locate<T, Index>(g, x.displacement + b * 2 * g.flow_height * g.flow_width, y0, y1, false, band);
        const In* from = x.grad + y0 * g.out_width;
        int64_t c = c0;
        for (; c + 3 <= c1; c += 3) {
          scatter_planes<3, In>(band, pixels, from + c * out_plane, out_plane, sums + (c - c0) * plane, plane);
        }
        for (; c < c1; ++c) {
          scatter_planes<1, In>(band, pixels, from + c * out_plane, out_plane, sums + (c - c0) * plane, plane);
        }
      }
      if constexpr (!kDirect) {
        for (int64_t i = 0; i < (c1 - c0) * plane; ++i) {
          x.image_grad[c0 * plane + i] = static_cast<In>(sums[i]);
        }
      }
    }
  });
}

template <class In, class Index>
static void flow_gradient(const SampleArguments<In>& x) {
  using T = compute_t<In>;
  constexpr int W = simd<T>::width;
  const SampleGeometry<T>& g = x.geometry;
  const int64_t rows = g.band_rows(), bands = g.bands();
  const int64_t plane = g.height * g.width, out_plane = g.out_height * g.out_width;
  const int64_t coarse_plane = g.flow_height * g.flow_width;
  // A band touches few rows of the coarse flow: it sums into its own copy of those, and the copies are added in order.
  const int64_t part_rows = g.flow_rows_per_band(), part = 2 * part_rows * g.flow_width;
  Scratch<T> parts(x.batch * bands * part);
  torch::stable::parallel_for(0, x.batch * bands, g.grain(4 * x.channels), [&](int64_t begin, int64_t end) {
    Band<T, Index> band(rows, g.out_width, g.flow_width, true);
    Scratch<T> sums(2 * rows * g.out_width);
    for (int64_t n = begin; n < end; ++n) {
      const int64_t b = n / bands, y0 = n % bands * rows, y1 = std::min(g.out_height, y0 + rows);
      const int64_t pixels = (y1 - y0) * g.out_width;
      locate<T, Index>(g, x.displacement + b * 2 * coarse_plane, y0, y1, true, band);
      find_adjacent(band, pixels);
      T *sum_x = sums.data(), *sum_y = sums.data() + pixels;
      std::fill(sums.data(), sums.data() + 2 * pixels, T(0));
      for (int64_t c = b * x.channels; c < (b + 1) * x.channels; ++c) {
        const In* image = x.image + c * plane;
        const In* from = x.grad + c * out_plane + y0 * g.out_width;
        int64_t p = 0;
        for (; p + W <= pixels; p += W) {
          const vec<T> value = load_as(from + p);
          vec<T> neighbour[4], along_x{}, along_y{};
          load_neighbours(band, image, p, neighbour);
          for (int i = 0; i < 4; ++i) {
            along_x += neighbour[i] * load(band.slope(0, i) + p);
            along_y += neighbour[i] * load(band.slope(1, i) + p);
          }
          store(sum_x + p, load(sum_x + p) + value * along_x);
          store(sum_y + p, load(sum_y + p) + value * along_y);
        }
        for (; p < pixels; ++p) {
          T along_x = 0, along_y = 0;
          for (int i = 0; i < 4; ++i) {
            const T neighbour = static_cast<T>(image[band.at(i)[p]]);
            along_x += neighbour * band.slope(0, i)[p];
            along_y += neighbour * band.slope(1, i)[p];
          }
          sum_x[p] += static_cast<T>(from[p]) * along_x;
          sum_y[p] += static_cast<T>(from[p]) * along_y;
        }
      }
      T* own = parts.data() + n * part;
      std::fill(own, own + part, T(0));
      for (int64_t y = y0; y < y1; ++y) {
        const Tap<T> vertical = g.rows[y];
        for (int axis = 0; axis < 2; ++axis) {
          const T* sum = (axis == 0 ? sum_x : sum_y) + (y - y0) * g.out_width;
          T* low = own + (axis * part_rows + vertical.low - g.rows[y0].low) * g.flow_width;
          T* high = own + (axis * part_rows + vertical.high - g.rows[y0].low) * g.flow_width;
          const T* coarse = sum;
          if (!g.columns_as_they_are) {
            T* to = band.row_.data();
            std::fill(to, to + g.flow_width, T(0));
            for (int64_t i = 0; i < g.out_width; ++i) {
              const T far = sum[i] * g.column_weight[i];
              to[g.column_low[i]] += sum[i] - far;
              to[g.column_high[i]] += far;
            }
            coarse = to;
          }
          if (vertical.low == vertical.high) {
            for (int64_t j = 0; j < g.flow_width; ++j) {
              low[j] += coarse[j];
            }
          } else {
            for (int64_t j = 0; j < g.flow_width; ++j) {
              low[j] += coarse[j] * (1 - vertical.weight);
              high[j] += coarse[j] * vertical.weight;
            }
          }
        }
      }
    }
  });
  torch::stable::parallel_for(0, 2 * x.batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      T* to = x.displacement_grad + n * coarse_plane;
      std::fill(to, to + coarse_plane, T(0));
      for (int64_t band = 0; band < bands; ++band) {
        const T* from = parts.data() + (n / 2 * bands + band) * part + n % 2 * part_rows * g.flow_width;
        const int64_t first = g.rows[band * rows].low;
        const int64_t last = std::min(first + part_rows, g.flow_height);
        for (int64_t i = 0; i < (last - first) * g.flow_width; ++i) {
          to[first * g.flow_width + i] += from[i];
        }
      }
    }
  });
}

template <class In>
void sample_backward(const SampleArguments<In>& x) {
  const bool small = x.geometry.height * x.geometry.width <= std::numeric_limits<int32_t>::max();
  if (x.image_grad != nullptr) {
    small ? image_gradient<In, int32_t>(x) : image_gradient<In, int64_t>(x);
  }
  if (x.displacement_grad != nullptr) {
    small ? flow_gradient<In, int32_t>(x) : flow_gradient<In, int64_t>(x);
  }
}
