// flow_sample on CUDA; the mathematics is at the top of csrc/cpu/flow_sample.cpp. A thread per output pixel works its
// position out from the coarse flow and then goes through the channels: the interpolated flow is never stored.
//
// Everything is deterministic, without atomics. The gradient of the image is a gather: the (destination, pixel) pairs
// are sorted once for all channels, stably, so that each pixel of the image adds its list in the order of the output.
// The gradient of the flow is summed per output pixel over channels, then each coarse cell gathers the fixed window of
// output pixels that it had influenced.
//
// Predicted for B = 7, 3 x 256 x 256, flow 64 x 64, float32, on an H200: 11 MB of image, result and gradient sit in the
// L2 cache; forward 0.01 ms (the launch), gradient of the flow 0.015 ms, of the image 0.06 ms, most of it the sort of
// 1.8 M pairs. For 256 x 64 x 64: 29 MB each, forward 0.02 ms, gradients 0.03 and 0.04 ms.
#pragma once

#include "cuda/product.cuh"
#include "cuda/sort.cuh"

namespace pose_kernels {

// One axis: the image's size, the flow's and the output's.
template <class T>
struct Axis {
  int64_t extent, coarse, out;
  T extent_per_out, coarse_per_out;
};

template <class T>
Axis<T> make_axis(int64_t extent, int64_t coarse, int64_t out) {
  const auto ratio = [out](int64_t n) { return static_cast<T>(static_cast<double>(n) / static_cast<double>(out)); };
  return {extent, coarse, out, ratio(extent), ratio(coarse)};
}

template <class T>
struct SampleGeometry {
  int64_t batch, channels;
  Axis<T> x, y;
  bool zeros;
  const T* displacement;  // [B, 2, h, w]

  HOST_DEVICE int64_t pixels() const {
    return x.out * y.out;
  }
  HOST_DEVICE int64_t plane() const {
    return x.extent * y.extent;
  }
};

template <class In, class T>
struct SampleArguments {
  SampleGeometry<T> geometry;
  int64_t chunks;  // of channels, each a thread's
  const In* image;  // [B, C, H, W]
  const In* grad;  // [B, C, *size], backward only
  In* result;  // [B, C, *size], forward only
  T* fine_grad;  // [chunks, B, 2, *size]: of the displacement at every output pixel
};

template <class T, class Flow>
struct CoarseGradArguments {
  SampleGeometry<T> geometry;
  int64_t chunks;
  int lanes;  // that share a cell: 1 or all of a warp
  const T* fine_grad;
  Flow* flow_grad;  // [B, 2, h, w]
};

template <class T>
struct PairsArguments {
  SampleGeometry<T> geometry;
  int64_t b, count;  // samples of this round
  uint32_t* keys;  // [count, pixels, 4] destination, or count * plane for none
  uint32_t* values;
  T* weights;
};

struct ListsArguments {
  int64_t pairs, destinations;
  const uint32_t* keys;  // sorted
  uint32_t* begin;  // [destinations], begin == end == 0 where there is none
  uint32_t* end;
};

template <class In, class T>
struct ImageGradArguments {
  int64_t b, count, channels, pixels, plane, chunks;
  const uint32_t* begin;
  const uint32_t* end;
  const uint32_t* pairs;  // 4 pixel + neighbour, sorted by destination
  const T* weights;
  const In* grad;  // [B, C, *size]
  In* image_grad;  // [B, C, H, W]
};

// ---- positions; the same expressions in the same precision as the reference: equal sizes give exact identities

template <class T>
struct Tap {
  int64_t low, high;  // equal where nothing is interpolated
  T weight;  // of `high`; below 0 or above 1 beyond the outermost centres
};

template <class T>
DEVICE Tap<T> tap_of(const Axis<T>& axis, int64_t i) {
  if (axis.coarse == axis.out || axis.coarse == 1) {
    const int64_t at = axis.coarse == 1 ? 0 : i;
    return {at, at, 0};
  }
  const T middle = static_cast<T>(i) + T(0.5);
  const T position = add_exactly(multiply_exactly(middle, axis.coarse_per_out), T(-0.5));
  int64_t low = static_cast<int64_t>(floor(position));
  low = low < 0 ? 0 : (low > axis.coarse - 2 ? axis.coarse - 2 : low);
  return {low, low + 1, position - static_cast<T>(low)};
}

template <class T>
DEVICE T centre_of(const Axis<T>& axis, int64_t i) {
  const T middle = static_cast<T>(i) + T(0.5);
  return axis.extent == axis.out ? static_cast<T>(i)
                                 : add_exactly(multiply_exactly(middle, axis.extent_per_out), T(-0.5));
}

template <class T>
DEVICE T mix(T low, T high, const Tap<T>& tap) {
  return tap.low == tap.high
      ? low
      : add_exactly(multiply_exactly(low, 1 - tap.weight), multiply_exactly(high, tap.weight));
}

// The two neighbours along one axis.
template <class T>
struct Neighbours {
  int64_t low, high;  // inside the image, whatever the weights
  bool low_inside, high_inside, moves, lost;
  T weight;  // of `high`
};

template <class T>
DEVICE Neighbours<T> neighbours_of(T position, int64_t extent, bool zeros) {
  const T low_end = zeros ? T(-2) : T(0), high_end = static_cast<T>(zeros ? extent + 1 : extent - 1);
  Neighbours<T> found;
  // As grid_sample: no gradient where the position was clamped, or sits on the end.
  found.moves = position > low_end && position < high_end;
  position = position < low_end ? low_end : position;
  position = position > high_end ? high_end : position;
  found.lost = position != position;
  const T floored = floor(found.lost ? T(0) : position);
  const int64_t low = static_cast<int64_t>(floored), high = low + 1;
  found.weight = position - floored;
  found.low_inside = low >= 0 && low < extent;
  found.high_inside = high >= 0 && high < extent;
  found.low = low < 0 ? 0 : (low >= extent ? extent - 1 : low);
  found.high = high < 0 ? 0 : (high >= extent ? extent - 1 : high);
  return found;
}

// Where one output pixel samples: four neighbours and their weights.
template <class T>
struct Sample {
  int64_t at[4];  // in a plane
  bool inside[4];
  T weight[4];
  bool lost;
};

template <class T>
DEVICE void locate(
    const SampleGeometry<T>& g, int64_t b, int64_t pixel, Neighbours<T>& horizontal, Neighbours<T>& vertical) {
  const int64_t i = pixel / g.x.out, j = pixel % g.x.out;
  const Tap<T> row = tap_of(g.y, i), column = tap_of(g.x, j);
  const T* plane = g.displacement + b * 2 * g.x.coarse * g.y.coarse;
  T d[2];
#pragma unroll
  for (int axis = 0; axis < 2; ++axis) {
    const T* low = plane + (axis * g.y.coarse + row.low) * g.x.coarse;
    const T* high = plane + (axis * g.y.coarse + row.high) * g.x.coarse;
    d[axis] = mix(mix(low[column.low], high[column.low], row), mix(low[column.high], high[column.high], row), column);
  }
  horizontal = neighbours_of(
      add_exactly(centre_of(g.x, j), multiply_exactly(d[0], static_cast<T>(g.x.extent) / 2)), g.x.extent, g.zeros);
  vertical = neighbours_of(
      add_exactly(centre_of(g.y, i), multiply_exactly(d[1], static_cast<T>(g.y.extent) / 2)), g.y.extent, g.zeros);
}

template <class T>
DEVICE Sample<T> sample_of(const SampleGeometry<T>& g, const Neighbours<T>& x, const Neighbours<T>& y) {
  Sample<T> sample;
  sample.lost = x.lost || y.lost;
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    sample.at[n] = (n / 2 ? y.high : y.low) * g.x.extent + (n % 2 ? x.high : x.low);
    sample.inside[n] = (n / 2 ? y.high_inside : y.low_inside) && (n % 2 ? x.high_inside : x.low_inside);
    sample.weight[n] = (n / 2 ? y.weight : 1 - y.weight) * (n % 2 ? x.weight : 1 - x.weight);
  }
  return sample;
}

// ---- kernels

// (2j + 1 - size) / size rounded to the flow's dtype: the very numbers of identity_flow.
template <class Flow, class T>
DEVICE T identity_at(int64_t j, int64_t size) {
  return static_cast<T>(static_cast<Flow>(static_cast<double>(2 * j + 1 - size) / static_cast<double>(size)));
}

template <class Flow, class T>
__global__ void __launch_bounds__(kThreads)
    displacement_kernel(int64_t n, int64_t height, int64_t width, const Flow* flow, T* displacement) {
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index < n) {
    const int64_t j = index % width, i = index / width % height, axis = index / width / height % 2;
    displacement[index] =
        static_cast<T>(flow[index]) - (axis == 0 ? identity_at<Flow, T>(j, width) : identity_at<Flow, T>(i, height));
  }
}

// Blocks are numbered [chunks][pixels of all samples / threads].
struct PixelPlace {
  int64_t b, pixel, chunk;
  bool inside;
};

DEVICE PixelPlace pixel_place(int64_t batch, int64_t pixels) {
  const int64_t groups = round_up(batch * pixels, kThreads) / kThreads;
  const int64_t index = blockIdx.x % groups * kThreads + threadIdx.x;
  return {index / pixels, index % pixels, blockIdx.x / groups, index < batch * pixels};
}

template <class In, class T>
__global__ void __launch_bounds__(kThreads) sample_kernel(SampleArguments<In, T> x) {
  const SampleGeometry<T>& g = x.geometry;
  const PixelPlace place = pixel_place(g.batch, g.pixels());
  if (!place.inside) {
    return;
  }
  Neighbours<T> horizontal, vertical;
  locate(g, place.b, place.pixel, horizontal, vertical);
  const Sample<T> sample = sample_of(g, horizontal, vertical);
  const int64_t first = g.channels * place.chunk / x.chunks, last = g.channels * (place.chunk + 1) / x.chunks;
#pragma unroll 4
  for (int64_t c = place.b * g.channels + first; c < place.b * g.channels + last; ++c) {
    const In* plane = x.image + c * g.plane();
    T sum = 0;
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      if (sample.inside[n]) {
        sum += static_cast<T>(plane[sample.at[n]]) * sample.weight[n];
      }
    }
    x.result[c * g.pixels() + place.pixel] = static_cast<In>(sample.lost ? T(NAN) : sum);
  }
}

template <class In, class T>
__global__ void __launch_bounds__(kThreads) fine_grad_kernel(SampleArguments<In, T> x) {
  const SampleGeometry<T>& g = x.geometry;
  const PixelPlace place = pixel_place(g.batch, g.pixels());
  if (!place.inside) {
    return;
  }
  Neighbours<T> horizontal, vertical;
  locate(g, place.b, place.pixel, horizontal, vertical);
  const Sample<T> sample = sample_of(g, horizontal, vertical);
  const int64_t first = g.channels * place.chunk / x.chunks, last = g.channels * (place.chunk + 1) / x.chunks;
  T along_x = 0, along_y = 0;
#pragma unroll 2
  for (int64_t c = place.b * g.channels + first; c < place.b * g.channels + last; ++c) {
    const In* plane = x.image + c * g.plane();
    T value[4];
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      value[n] = sample.inside[n] ? static_cast<T>(plane[sample.at[n]]) : 0;
    }
    const T grad = static_cast<T>(x.grad[c * g.pixels() + place.pixel]);
    along_x += grad * ((value[1] - value[0]) * (1 - vertical.weight) + (value[3] - value[2]) * vertical.weight);
    along_y += grad * ((value[2] - value[0]) * (1 - horizontal.weight) + (value[3] - value[1]) * horizontal.weight);
  }
  T* to = x.fine_grad + ((place.chunk * g.batch + place.b) * 2) * g.pixels() + place.pixel;
  to[0] = horizontal.moves ? along_x * (static_cast<T>(g.x.extent) / 2) : 0;
  to[g.pixels()] = vertical.moves ? along_y * (static_cast<T>(g.y.extent) / 2) : 0;
}

// Output pixels along an axis that coarse position i may influence, a few more for rounding.
struct Window {
  int64_t first, last;
};

template <class T>
DEVICE Window window_of(const Axis<T>& axis, int64_t i) {
  if (axis.coarse == axis.out) {
    return {i, i + 1};
  }
  const double ratio = static_cast<double>(axis.out) / static_cast<double>(axis.coarse);
  Window window{0, axis.out};
  if (i > 1) {  // the first cell also serves all that lies before it
    window.first = static_cast<int64_t>((static_cast<double>(i) - 0.5) * ratio) - 2;
    window.first = window.first < 0 ? 0 : window.first;
  }
  if (i < axis.coarse - 2) {
    const int64_t last = static_cast<int64_t>((static_cast<double>(i) + 1.5) * ratio) + 2;
    window.last = last < axis.out ? last : axis.out;
  }
  return window;
}

template <class T>
DEVICE T share_of(const Axis<T>& axis, int64_t out, int64_t i) {
  const Tap<T> tap = tap_of(axis, out);
  if (tap.low == tap.high) {
    return tap.low == i ? 1 : 0;
  }
  return tap.low == i ? 1 - tap.weight : (tap.high == i ? tap.weight : 0);
}

template <class T, class Flow>
__global__ void __launch_bounds__(kThreads) coarse_grad_kernel(CoarseGradArguments<T, Flow> x) {
  const SampleGeometry<T>& g = x.geometry;
  const int64_t cells = g.batch * g.x.coarse * g.y.coarse;
  const int64_t cell = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / x.lanes;
  const int lane = threadIdx.x % x.lanes;
  T sums[2] = {0, 0};
  if (cell < cells) {
    const int64_t j = cell % g.x.coarse, i = cell / g.x.coarse % g.y.coarse, b = cell / g.x.coarse / g.y.coarse;
    const Window columns = window_of(g.x, j), rows = window_of(g.y, i);
    const int64_t width = columns.last - columns.first, count = width * (rows.last - rows.first);
    for (int64_t n = lane; n < count; n += x.lanes) {
      const int64_t row = rows.first + n / width, column = columns.first + n % width;
      const T share = share_of(g.y, row, i) * share_of(g.x, column, j);
      if (share != 0) {
        for (int64_t chunk = 0; chunk < x.chunks; ++chunk) {
          const T* from = x.fine_grad + ((chunk * g.batch + b) * 2) * g.pixels() + row * g.x.out + column;
          sums[0] += share * from[0];
          sums[1] += share * from[g.pixels()];
        }
      }
    }
  }
  if (x.lanes > 1) {
#pragma unroll
    for (int mask = 1; mask < kWarp; mask *= 2) {
      sums[0] += shuffle_xor(sums[0], mask);
      sums[1] += shuffle_xor(sums[1], mask);
    }
  }
  if (cell < cells && lane == 0) {
    const int64_t plane = g.x.coarse * g.y.coarse, b = cell / plane, at = cell % plane;
    x.flow_grad[b * 2 * plane + at] = static_cast<Flow>(sums[0]);
    x.flow_grad[(b * 2 + 1) * plane + at] = static_cast<Flow>(sums[1]);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) pairs_kernel(PairsArguments<T> x) {
  const SampleGeometry<T>& g = x.geometry;
  const PixelPlace place = pixel_place(x.count, g.pixels());
  if (!place.inside) {
    return;
  }
  Neighbours<T> horizontal, vertical;
  locate(g, x.b + place.b, place.pixel, horizontal, vertical);
  const Sample<T> sample = sample_of(g, horizontal, vertical);
  const int64_t first = 4 * (place.b * g.pixels() + place.pixel);
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    x.keys[first + n] =
        static_cast<uint32_t>(sample.inside[n] ? place.b * g.plane() + sample.at[n] : x.count * g.plane());
    x.values[first + n] = static_cast<uint32_t>(first + n);
    x.weights[first + n] = sample.lost ? T(NAN) : sample.weight[n];
  }
}

static __global__ void __launch_bounds__(kThreads) clear_kernel(int64_t n, uint32_t* at) {
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index < n) {
    at[index] = 0;
  }
}

static __global__ void __launch_bounds__(kThreads) lists_kernel(ListsArguments x) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= x.pairs) {
    return;
  }
  const uint32_t key = x.keys[i];
  if (key < x.destinations) {
    if (i == 0 || x.keys[i - 1] != key) {
      x.begin[key] = static_cast<uint32_t>(i);
    }
    if (i == x.pairs - 1 || x.keys[i + 1] != key) {
      x.end[key] = static_cast<uint32_t>(i + 1);
    }
  }
}

constexpr int kChannelsAtOnce = 4;
constexpr uint32_t kLongList = 256;

// A thread per pixel of the image, four channels at a time. Where "border" sends half the output to one pixel, its
// list is long: then the lanes of the warp share it.
template <class In, class T>
__global__ void __launch_bounds__(kThreads) image_grad_kernel(ImageGradArguments<In, T> x) {
  const PixelPlace place = pixel_place(x.count, x.plane);
  const int lane = threadIdx.x % kWarp;
  const int64_t destination = place.b * x.plane + place.pixel;
  const uint32_t begin = place.inside ? x.begin[destination] : 0, end = place.inside ? x.end[destination] : 0;
  const uint32_t long_lists = ballot(end - begin > kLongList);
  const int64_t c_first = x.channels * place.chunk / x.chunks, c_last = x.channels * (place.chunk + 1) / x.chunks;
  for (int64_t c = c_first; c < c_last; c += kChannelsAtOnce) {
    const int count = static_cast<int>(c_last - c < kChannelsAtOnce ? c_last - c : kChannelsAtOnce);
    T sums[kChannelsAtOnce] = {};
    const auto add = [&](T (&to)[kChannelsAtOnce], uint32_t pair) {
      const T weight = x.weights[pair];
      const int64_t b = pair / 4 / x.pixels, pixel = pair / 4 % x.pixels;
      const In* from = x.grad + ((x.b + b) * x.channels + c) * x.pixels + pixel;
#pragma unroll
      for (int i = 0; i < kChannelsAtOnce; ++i) {
        if (i < count) {
          to[i] += static_cast<T>(from[i * x.pixels]) * weight;
        }
      }
    };
    if (end - begin <= kLongList) {
      for (uint32_t n = begin; n < end; ++n) {
        add(sums, x.pairs[n]);
      }
    }
    for (uint32_t rest = long_lists; rest != 0; rest &= rest - 1) {
      const int owner = lowest_bit(rest);
      const uint32_t their_begin = shuffle(begin, owner), their_end = shuffle(end, owner);
      T part[kChannelsAtOnce] = {};
      for (uint32_t n = their_begin + lane; n < their_end; n += kWarp) {
        add(part, x.pairs[n]);
      }
#pragma unroll
      for (int i = 0; i < kChannelsAtOnce; ++i) {
#pragma unroll
        for (int mask = 1; mask < kWarp; mask *= 2) {
          part[i] += shuffle_xor(part[i], mask);
        }
        if (lane == owner) {
          sums[i] = part[i];
        }
      }
    }
    if (place.inside) {
#pragma unroll
      for (int i = 0; i < kChannelsAtOnce; ++i) {
        if (i < count) {
          x.image_grad[((x.b + place.b) * x.channels + c + i) * x.plane + place.pixel] = static_cast<In>(sums[i]);
        }
      }
    }
  }
}

// ---- calls

template <class Flow, class T>
T* make_displacement(
    int64_t batch, int64_t height, int64_t width, const Flow* flow, const Allocate& allocate, Stream stream) {
  const int64_t n = 2 * batch * height * width;
  T* displacement = allocate_array<T>(allocate, n);
  launch(
      displacement_kernel<Flow, T>, round_up(n, kThreads) / kThreads, kThreads, 0, stream, n, height, width, flow,
      displacement);
  return displacement;
}

// Chunks of channels: threads enough for a GPU, where channels allow.
inline int64_t channel_chunks(int64_t pixels, int64_t channels, int64_t least) {
  return std::clamp<int64_t>(enough(1 << 18) / std::max<int64_t>(1, pixels), 1, std::max<int64_t>(1, channels / least));
}

inline int64_t pixel_blocks(int64_t pixels, int64_t chunks) {
  return round_up(pixels, kThreads) / kThreads * chunks;
}

template <class In, class T = Compute<In>>
void run_flow_sample(const SampleGeometry<T>& geometry, const In* image, In* result, Stream stream) {
  const int64_t pixels = geometry.batch * geometry.pixels();
  const int64_t chunks = channel_chunks(pixels, geometry.channels, 8);
  launch(
      sample_kernel<In, T>, pixel_blocks(pixels, chunks), kThreads, 0, stream,
      SampleArguments<In, T>{geometry, chunks, image, nullptr, result, nullptr});
}

template <class In, class Flow, class T = Compute<In>>
void run_flow_gradient(
    const SampleGeometry<T>& geometry, const In* image, const In* grad, Flow* flow_grad, const Allocate& allocate,
    Stream stream) {
  const int64_t pixels = geometry.batch * geometry.pixels();
  const int64_t chunks = channel_chunks(pixels, geometry.channels, 32);
  T* fine_grad = allocate_array<T>(allocate, chunks * 2 * pixels);
  launch(
      fine_grad_kernel<In, T>, pixel_blocks(pixels, chunks), kThreads, 0, stream,
      SampleArguments<In, T>{geometry, chunks, image, grad, nullptr, fine_grad});
  const int64_t cells = geometry.batch * geometry.x.coarse * geometry.y.coarse;
  const int lanes = pixels > 4 * cells ? kWarp : 1;
  launch(
      coarse_grad_kernel<T, Flow>, round_up(cells * lanes, kThreads) / kThreads, kThreads, 0, stream,
      CoarseGradArguments<T, Flow>{geometry, chunks, lanes, fine_grad, flow_grad});
}

// `most` bounds the pairs sorted at once, whose numbers have 32 bits; samples go in rounds where there are more.
template <class In, class T = Compute<In>>
void run_image_gradient(
    const SampleGeometry<T>& geometry, const In* grad, In* image_grad, const Allocate& allocate, Stream stream,
    int64_t most = INT32_MAX) {
  const int64_t per_sample = std::max(4 * geometry.pixels(), geometry.plane() + 1);
  const int64_t samples = std::clamp<int64_t>(most / per_sample, 1, geometry.batch);
  const int64_t most_pairs = samples * 4 * geometry.pixels(), most_destinations = samples * geometry.plane();
  uint32_t* keys = allocate_array<uint32_t>(allocate, 2 * most_pairs);
  uint32_t* values = allocate_array<uint32_t>(allocate, 2 * most_pairs);
  T* weights = allocate_array<T>(allocate, most_pairs);
  uint32_t* lists = allocate_array<uint32_t>(allocate, 2 * most_destinations);
  int bits = 1;
  while (most_destinations >> bits != 0) {
    ++bits;
  }
  size_t scratch_bytes = 0;
  sort_pairs(
      nullptr, scratch_bytes, keys, keys + most_pairs, values, values + most_pairs, most_pairs, bits, stream);
  void* scratch = allocate(static_cast<int64_t>(scratch_bytes));
  for (int64_t b = 0; b < geometry.batch; b += samples) {
    const int64_t count = std::min(samples, geometry.batch - b);
    const int64_t pairs = count * 4 * geometry.pixels(), destinations = count * geometry.plane();
    launch(
        pairs_kernel<T>, pixel_blocks(count * geometry.pixels(), 1), kThreads, 0, stream,
        PairsArguments<T>{geometry, b, count, keys, values, weights});
    sort_pairs(scratch, scratch_bytes, keys, keys + most_pairs, values, values + most_pairs, pairs, bits, stream);
    launch(
        clear_kernel, round_up(2 * destinations, kThreads) / kThreads, kThreads, 0, stream, 2 * destinations, lists);
    launch(
        lists_kernel, round_up(pairs, kThreads) / kThreads, kThreads, 0, stream,
        ListsArguments{pairs, destinations, keys + most_pairs, lists, lists + destinations});
    const int64_t chunks = channel_chunks(destinations, geometry.channels, kChannelsAtOnce);
    launch(
        image_grad_kernel<In, T>, pixel_blocks(destinations, chunks), kThreads, 0, stream,
        ImageGradArguments<In, T>{
            b, count, geometry.channels, geometry.pixels(), geometry.plane(), chunks, lists, lists + destinations,
            values + most_pairs, weights, grad, image_grad});
  }
}

}  // namespace pose_kernels
