// Loops of flow_sample for one instruction set; the mathematics is at the top of flow_sample.cpp.
#include "cpu/flow_positions.inl"

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

// Adds what one plane has of the gradient of the displacement at every output pixel of a band.
template <class In, class Index, class T = compute_t<In>>
static void add_fine_gradient(
    Band<T, Index>& band, const In* image, const In* from, int64_t pixels, T* sum_x, T* sum_y) {
  constexpr int W = simd<T>::width;
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

// The transposed interpolation: from the output pixels of the rows [y0, y1) to `own` [2][part_rows][flow_width], the
// rows of the coarse flow that the band touches.
template <class T>
static void add_coarse_gradient(
    const SampleGeometry<T>& g, int64_t y0, int64_t y1, const T* sum_x, const T* sum_y, T* scratch, T* own,
    int64_t part_rows) {
  for (int64_t y = y0; y < y1; ++y) {
    const Tap<T> vertical = g.rows[y];
    for (int axis = 0; axis < 2; ++axis) {
      const T* sum = (axis == 0 ? sum_x : sum_y) + (y - y0) * g.out_width;
      T* low = own + (axis * part_rows + vertical.low - g.rows[y0].low) * g.flow_width;
      T* high = own + (axis * part_rows + vertical.high - g.rows[y0].low) * g.flow_width;
      const T* coarse = sum;
      if (!g.columns_as_they_are) {
        T* to = scratch;
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

template <class In, class Index>
static void flow_gradient(const SampleArguments<In>& x) {
  using T = compute_t<In>;
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
        add_fine_gradient<In>(
            band, x.image + c * plane, x.grad + c * out_plane + y0 * g.out_width, pixels, sum_x, sum_y);
      }
      T* own = parts.data() + n * part;
      std::fill(own, own + part, T(0));
      add_coarse_gradient(g, y0, y1, sum_x, sum_y, band.row_.data(), own, part_rows);
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
