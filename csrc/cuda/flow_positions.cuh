// Where the output pixels of flow_sample look, worked out from the coarse flow by the same expressions in the same
// precision as the reference: equal sizes give exact identities.
#pragma once

#include "cuda/launch.cuh"

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
  Neighbours<T> x, y;
  int64_t at[4];  // in a plane
  bool inside[4];
  T weight[4];
  bool lost;
};

template <class T>
DEVICE Sample<T> locate(const SampleGeometry<T>& g, int64_t b, int64_t pixel) {
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
  Sample<T> sample;
  sample.x = neighbours_of(
      add_exactly(centre_of(g.x, j), multiply_exactly(d[0], static_cast<T>(g.x.extent) / 2)), g.x.extent, g.zeros);
  sample.y = neighbours_of(
      add_exactly(centre_of(g.y, i), multiply_exactly(d[1], static_cast<T>(g.y.extent) / 2)), g.y.extent, g.zeros);
  const Neighbours<T>&x = sample.x, &y = sample.y;
  sample.lost = x.lost || y.lost;
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    sample.at[n] = (n / 2 ? y.high : y.low) * g.x.extent + (n % 2 ? x.high : x.low);
    sample.inside[n] = (n / 2 ? y.high_inside : y.low_inside) && (n % 2 ? x.high_inside : x.low_inside);
    sample.weight[n] = (n / 2 ? y.weight : 1 - y.weight) * (n % 2 ? x.weight : 1 - x.weight);
  }
  return sample;
}

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

template <class Flow, class T>
T* make_displacement(int64_t batch, int64_t height, int64_t width, const Flow* flow, const Context& context) {
  const int64_t n = 2 * batch * height * width;
  T* displacement = context.allocate_array<T>(n);
  launch(
      displacement_kernel<Flow, T>, blocks_for(n), kThreads, 0, context.stream, n, height, width, flow, displacement);
  return displacement;
}

}  // namespace pose_kernels
