// flow_sample on CUDA; the mathematics is at the top of csrc/cpu/flow_sample.cpp. A thread per output pixel works its
// position out from the coarse flow and then goes through the channels: the interpolated flow is never stored.
//
// The gradient of the image is added up with atomics; or, where it shall be deterministic, by a gather: the
// (destination, pixel) pairs are sorted once for all channels, stably, so that each pixel of the image adds its list in
// the order of the output. The gradient of the flow is deterministic either way: it is summed per output pixel over
// channels, then each coarse cell gathers the fixed window of output pixels that it had influenced.
#pragma once

#include "cuda/atomic.cuh"
#include "cuda/flow_positions.cuh"
#include "cuda/sort.cuh"

namespace pose_kernels {

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

template <class In, class T>
struct ScatterArguments {
  SampleGeometry<T> geometry;
  int64_t chunks;
  const In* grad;  // [B, C, *size]
  T* sums;  // [B, C, H, W], added to
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

// ---- kernels

// Blocks are numbered [chunks][pixels of all samples / threads].
struct PixelPlace {
  int64_t b, pixel, chunk;
  bool inside;
};

DEVICE PixelPlace pixel_place(int64_t batch, int64_t pixels) {
  const int64_t groups = ceil_div(batch * pixels, kThreads);
  const int64_t index = blockIdx.x % groups * kThreads + threadIdx.x;
  return {index / pixels, index % pixels, blockIdx.x / groups, index < batch * pixels};
}

struct Range {
  int64_t first, last;
};

// The channels that a thread goes through.
DEVICE Range channels_of(const PixelPlace& place, int64_t channels, int64_t chunks) {
  return {channels * place.chunk / chunks, channels * (place.chunk + 1) / chunks};
}

template <class In, class T>
__global__ void __launch_bounds__(kThreads) sample_kernel(SampleArguments<In, T> x) {
  const SampleGeometry<T>& g = x.geometry;
  const PixelPlace place = pixel_place(g.batch, g.pixels());
  if (!place.inside) {
    return;
  }
  const Sample<T> sample = locate(g, place.b, place.pixel);
  const Range channels = channels_of(place, g.channels, x.chunks);
#pragma unroll 4
  for (int64_t c = place.b * g.channels + channels.first; c < place.b * g.channels + channels.last; ++c) {
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
  const Sample<T> sample = locate(g, place.b, place.pixel);
  const Range channels = channels_of(place, g.channels, x.chunks);
  T along_x = 0, along_y = 0;
#pragma unroll 2
  for (int64_t c = place.b * g.channels + channels.first; c < place.b * g.channels + channels.last; ++c) {
    const In* plane = x.image + c * g.plane();
    T value[4];
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      value[n] = sample.inside[n] ? static_cast<T>(plane[sample.at[n]]) : 0;
    }
    const T grad = static_cast<T>(x.grad[c * g.pixels() + place.pixel]);
    along_x += grad * ((value[1] - value[0]) * (1 - sample.y.weight) + (value[3] - value[2]) * sample.y.weight);
    along_y += grad * ((value[2] - value[0]) * (1 - sample.x.weight) + (value[3] - value[1]) * sample.x.weight);
  }
  T* to = x.fine_grad + ((place.chunk * g.batch + place.b) * 2) * g.pixels() + place.pixel;
  to[0] = sample.x.moves ? along_x * (static_cast<T>(g.x.extent) / 2) : 0;
  to[g.pixels()] = sample.y.moves ? along_y * (static_cast<T>(g.y.extent) / 2) : 0;
}

// Output pixels along an axis that coarse position i may influence, a few more for rounding.
template <class T>
DEVICE Range window_of(const Axis<T>& axis, int64_t i) {
  if (axis.coarse == axis.out) {
    return {i, i + 1};
  }
  const double ratio = static_cast<double>(axis.out) / static_cast<double>(axis.coarse);
  Range window{0, axis.out};
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
    const Range columns = window_of(g.x, j), rows = window_of(g.y, i);
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

template <class In, class T>
__global__ void __launch_bounds__(kThreads) scatter_kernel(ScatterArguments<In, T> x) {
  const SampleGeometry<T>& g = x.geometry;
  const PixelPlace place = pixel_place(g.batch, g.pixels());
  if (!place.inside) {
    return;
  }
  const Sample<T> sample = locate(g, place.b, place.pixel);
  const Range channels = channels_of(place, g.channels, x.chunks);
#pragma unroll 4
  for (int64_t c = place.b * g.channels + channels.first; c < place.b * g.channels + channels.last; ++c) {
    const T grad = sample.lost ? T(NAN) : static_cast<T>(x.grad[c * g.pixels() + place.pixel]);
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      if (sample.inside[n]) {
        add_in_any_order(x.sums + c * g.plane() + sample.at[n], grad * sample.weight[n]);
      }
    }
  }
}

template <class In, class T>
__global__ void __launch_bounds__(kThreads) round_kernel(int64_t n, const T* from, In* to) {
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index < n) {
    to[index] = static_cast<In>(from[index]);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) pairs_kernel(PairsArguments<T> x) {
  const SampleGeometry<T>& g = x.geometry;
  const PixelPlace place = pixel_place(x.count, g.pixels());
  if (!place.inside) {
    return;
  }
  const Sample<T> sample = locate(g, x.b + place.b, place.pixel);
  const int64_t first = 4 * (place.b * g.pixels() + place.pixel);
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    x.keys[first + n] =
        static_cast<uint32_t>(sample.inside[n] ? place.b * g.plane() + sample.at[n] : x.count * g.plane());
    x.values[first + n] = static_cast<uint32_t>(first + n);
    x.weights[first + n] = sample.lost ? T(NAN) : sample.weight[n];
  }
}

template <class E>
__global__ void __launch_bounds__(kThreads) clear_kernel(int64_t n, E* at) {
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
  const Range channels = channels_of(place, x.channels, x.chunks);
  for (int64_t c = channels.first; c < channels.last; c += kChannelsAtOnce) {
    const int count = static_cast<int>(channels.last - c < kChannelsAtOnce ? channels.last - c : kChannelsAtOnce);
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

// Chunks of channels: threads enough for a GPU, where channels allow.
inline int64_t channel_chunks(int64_t pixels, int64_t channels, int64_t least) {
  return std::clamp<int64_t>(enough(1 << 18) / std::max<int64_t>(1, pixels), 1, std::max<int64_t>(1, channels / least));
}

template <class In, class T = compute_t<In>>
void run_flow_sample(const SampleGeometry<T>& geometry, const In* image, In* result, Stream stream) {
  const int64_t pixels = geometry.batch * geometry.pixels();
  SampleArguments<In, T> x{};
  x.geometry = geometry;
  x.chunks = channel_chunks(pixels, geometry.channels, 8);
  x.image = image;
  x.result = result;
  launch(sample_kernel<In, T>, blocks_for(pixels) * x.chunks, kThreads, 0, stream, x);
}

template <class In, class Flow, class T = compute_t<In>>
void run_flow_gradient(
    const SampleGeometry<T>& geometry, const In* image, const In* grad, Flow* flow_grad, const Context& context) {
  const int64_t pixels = geometry.batch * geometry.pixels();
  SampleArguments<In, T> x{};
  x.geometry = geometry;
  x.chunks = channel_chunks(pixels, geometry.channels, 32);
  x.image = image;
  x.grad = grad;
  x.fine_grad = context.allocate_array<T>(x.chunks * 2 * pixels);
  launch(fine_grad_kernel<In, T>, blocks_for(pixels) * x.chunks, kThreads, 0, context.stream, x);
  const int64_t cells = geometry.batch * geometry.x.coarse * geometry.y.coarse;
  const int lanes = pixels > 4 * cells ? kWarp : 1;
  launch(
      coarse_grad_kernel<T, Flow>, blocks_for(cells * lanes), kThreads, 0, context.stream,
      CoarseGradArguments<T, Flow>{geometry, x.chunks, lanes, x.fine_grad, flow_grad});
}

// The (destination, pixel) pairs of a round of samples, sorted: keys and values lie twice, as they are made and sorted.
struct SortedPairs {
  int64_t most;
  int bits;  // of a key
  uint32_t* keys;
  uint32_t* values;
  void* scratch = nullptr;
  size_t scratch_bytes = 0;

  SortedPairs(int64_t most_pairs, int64_t most_destinations, const Context& context)
      : most(most_pairs),
        bits(1),
        keys(context.allocate_array<uint32_t>(2 * most)),
        values(context.allocate_array<uint32_t>(2 * most)) {
    while (most_destinations >> bits != 0) {
      ++bits;
    }
    sort(most, context.stream);  // only says how much it needs
    scratch = context.allocate(static_cast<int64_t>(scratch_bytes));
  }
  void sort(int64_t pairs, Stream stream) {
    sort_pairs(scratch, scratch_bytes, keys, keys + most, values, values + most, pairs, bits, stream);
  }
};

// In any order.
template <class In, class T = compute_t<In>>
void scatter_image_gradient(
    const SampleGeometry<T>& geometry, const In* grad, In* image_grad, const Context& context) {
  const int64_t pixels = geometry.batch * geometry.pixels();
  const int64_t values = geometry.batch * geometry.channels * geometry.plane();
  ScatterArguments<In, T> x{geometry, channel_chunks(pixels, geometry.channels, 8), grad, nullptr};
  if constexpr (std::is_same_v<In, T>) {
    x.sums = image_grad;
  } else {
    x.sums = context.allocate_array<T>(values);
  }
  launch(clear_kernel<T>, blocks_for(values), kThreads, 0, context.stream, values, x.sums);
  launch(scatter_kernel<In, T>, blocks_for(pixels) * x.chunks, kThreads, 0, context.stream, x);
  if constexpr (!std::is_same_v<In, T>) {
    launch(round_kernel<In, T>, blocks_for(values), kThreads, 0, context.stream, values, x.sums, image_grad);
  }
}

// In the order of the output: the same bits every time. `most` bounds the pairs sorted at once, whose numbers have 32 bits; samples go in rounds where there are more.
template <class In, class T = compute_t<In>>
void gather_image_gradient(
    const SampleGeometry<T>& geometry, const In* grad, In* image_grad, const Context& context,
    int64_t most = INT32_MAX) {
  const Stream stream = context.stream;
  const int64_t per_sample = std::max(4 * geometry.pixels(), geometry.plane() + 1);
  const int64_t samples = std::clamp<int64_t>(most / per_sample, 1, geometry.batch);
  SortedPairs sorted(samples * 4 * geometry.pixels(), samples * geometry.plane(), context);
  T* weights = context.allocate_array<T>(sorted.most);
  uint32_t* lists = context.allocate_array<uint32_t>(2 * samples * geometry.plane());
  for (int64_t b = 0; b < geometry.batch; b += samples) {
    const int64_t count = std::min(samples, geometry.batch - b);
    const int64_t pairs = count * 4 * geometry.pixels(), destinations = count * geometry.plane();
    launch(
        pairs_kernel<T>, blocks_for(count * geometry.pixels()), kThreads, 0, stream,
        PairsArguments<T>{geometry, b, count, sorted.keys, sorted.values, weights});
    sorted.sort(pairs, stream);
    launch(clear_kernel<uint32_t>, blocks_for(2 * destinations), kThreads, 0, stream, 2 * destinations, lists);
    launch(
        lists_kernel, blocks_for(pairs), kThreads, 0, stream,
        ListsArguments{pairs, destinations, sorted.keys + sorted.most, lists, lists + destinations});
    ImageGradArguments<In, T> x{};
    x.b = b;
    x.count = count;
    x.channels = geometry.channels;
    x.pixels = geometry.pixels();
    x.plane = geometry.plane();
    x.chunks = channel_chunks(destinations, geometry.channels, kChannelsAtOnce);
    x.begin = lists;
    x.end = lists + destinations;
    x.pairs = sorted.values + sorted.most;
    x.weights = weights;
    x.grad = grad;
    x.image_grad = image_grad;
    launch(image_grad_kernel<In, T>, blocks_for(destinations) * x.chunks, kThreads, 0, stream, x);
  }
}

}  // namespace pose_kernels
