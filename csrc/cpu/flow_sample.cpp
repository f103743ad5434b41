// flow_sample on the CPU: bilinear sampling at a flow of any resolution, whose interpolation is never stored.
//
//   d = flow - identity, interpolated bilinearly at the output's pixel centres (linear beyond the outermost ones);
//   out(y, x) = sum_n w_n image(p_n),   p_n the four neighbours of (y' + d_y H/2, x' + d_x W/2)
//
// Work goes in bands of output rows: positions and weights once per band, then every channel. Backward:
// d_image(p_n) += w_n g, plane by plane;  d_d = sum_c g sum_n dw_n/dd image(p_n), then the transposed interpolation.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "checks.h"
#include "cpu/memory.h"
#include "cpu/simd.h"

namespace pose_kernels {

// How one output row or column reads the coarse displacement, and its centre in pixels of the image.
template <class T>
struct Tap {
  int64_t low, high;  // equal where nothing is interpolated
  T weight;  // of `high`; below 0 or above 1 beyond the outermost centres
  T centre;
};

// The same expressions as the reference, in the same precision: equal sizes give integers, hence exact identities.
template <class T>
std::vector<Tap<T>> make_taps(int64_t coarse, int64_t out, int64_t extent) {
  std::vector<Tap<T>> taps(out);
  for (int64_t i = 0; i < out; ++i) {
    Tap<T>& tap = taps[i];
    const T middle = static_cast<T>(i) + T(0.5);
    const double scale = static_cast<double>(extent) / static_cast<double>(out);
    tap.centre = out == extent ? static_cast<T>(i) : middle * static_cast<T>(scale) - T(0.5);
    if (coarse == out || coarse == 1) {
      tap.low = tap.high = coarse == 1 ? 0 : i;
      tap.weight = 0;
    } else {
      const T position = middle * static_cast<T>(static_cast<double>(coarse) / static_cast<double>(out)) - T(0.5);
      tap.low = std::clamp<int64_t>(static_cast<int64_t>(std::floor(position)), 0, coarse - 2);
      tap.high = tap.low + 1;
      tap.weight = position - static_cast<T>(tap.low);
    }
  }
  return taps;
}

template <class T>
struct SampleGeometry {
  int64_t height, width;  // image
  int64_t flow_height, flow_width;
  int64_t out_height, out_width;
  bool zeros;
  std::vector<Tap<T>> rows;
  // The taps of the columns one field at a time, padded to whole vectors.
  std::vector<T> column_weight, column_centre;
  std::vector<std::conditional_t<sizeof(T) == 8, int64_t, int32_t>> column_low, column_high;
  bool columns_as_they_are;  // no interpolation along x

  // Rows per band: their positions and weights stay in the first-level cache. Depends on shapes only.
  int64_t band_rows() const {
    return std::clamp<int64_t>(512 / out_width, 1, out_height);
  }
  int64_t bands() const {
    return (out_height + band_rows() - 1) / band_rows();
  }
  // Bands per thread at least, so that small images stay on one.
  int64_t grain(int64_t channels) const {
    return std::max<int64_t>(1, 16384 / (band_rows() * out_width * (channels + 8)));
  }
  int64_t flow_rows_per_band() const {
    int64_t most = 1;
    for (int64_t y = 0; y < out_height; y += band_rows()) {
      most = std::max(most, rows[std::min(out_height, y + band_rows()) - 1].high - rows[y].low + 1);
    }
    return most;
  }
};

template <class In>
struct SampleArguments {
  SampleGeometry<compute_t<In>> geometry;
  int64_t batch, channels;
  const In* image;  // [B, C, H, W]
  const compute_t<In>* displacement;  // [B, 2, h, w]
  In* result;  // [B, C, *size]
  const In* grad;  // [B, C, *size]
  In* image_grad;  // [B, C, H, W] or null
  compute_t<In>* displacement_grad;  // [B, 2, h, w] or null
};

}  // namespace pose_kernels

#define SIMD_INL "cpu/flow_sample.inl"
#include "cpu/foreach_target.h"

namespace pose_kernels {

// (2j + 1 - size) / size rounded to the flow's dtype: the very numbers of identity_flow.
template <class Flow, class T>
static std::vector<T> pixel_centres(int64_t size) {
  std::vector<T> centres(size);
  for (int64_t j = 0; j < size; ++j) {
    centres[j] = static_cast<T>(static_cast<Flow>(static_cast<double>(2 * j + 1 - size) / static_cast<double>(size)));
  }
  return centres;
}

template <class T>
static void displacement_of(const Tensor& flow, T* displacement) {
  const int64_t h = flow.size(2), w = flow.size(3);
  dispatch_floating(flow.scalar_type(), "flow", [&](auto zero) {
    using Flow = decltype(zero);
    const Flow* from = const_data<Flow>(flow);
    const std::vector<T> x = pixel_centres<Flow, T>(w), y = pixel_centres<Flow, T>(h);
    torch::stable::parallel_for(0, 2 * flow.size(0) * h, 32768 / w + 1, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        const Flow* row = from + n * w;
        T* to = displacement + n * w;
        if (n / h % 2 == 0) {
          for (int64_t j = 0; j < w; ++j) {
            to[j] = static_cast<T>(row[j]) - x[j];
          }
        } else {
          for (int64_t j = 0; j < w; ++j) {
            to[j] = static_cast<T>(row[j]) - y[n % h];
          }
        }
      }
    });
  });
}

template <class T>
static SampleGeometry<T> make_geometry(
    const Tensor& image, const Tensor& flow, int64_t height, int64_t width, bool zeros) {
  SampleGeometry<T> g{image.size(2), image.size(3), flow.size(2), flow.size(3), height, width, zeros};
  g.rows = make_taps<T>(g.flow_height, height, g.height);
  std::vector<Tap<T>> columns = make_taps<T>(g.flow_width, width, g.width);
  g.columns_as_they_are = g.flow_width == width;
  columns.resize(width + 16, columns.back());
  for (const Tap<T>& tap : columns) {
    g.column_low.push_back(tap.low);
    g.column_high.push_back(tap.high);
    g.column_weight.push_back(tap.weight);
    g.column_centre.push_back(tap.centre);
  }
  return g;
}

static Tensor flow_sample(const Tensor& image_, const Tensor& flow_, int64_t height, int64_t width, bool zeros) {
  check_image_and_flow(image_, flow_);
  check_size(height, width);
  const Tensor image = torch::stable::contiguous(image_), flow = torch::stable::contiguous(flow_);
  const int64_t B = image.size(0), C = image.size(1);
  Tensor result = empty(image, {B, C, height, width}, image.scalar_type());
  if (B == 0) {
    return result;
  }
  dispatch_floating(image.scalar_type(), "image", [&](auto zero) {
    using In = decltype(zero);
    using T = compute_t<In>;
    Scratch<T> displacement(flow.numel());
    displacement_of<T>(flow, displacement.data());
    SampleArguments<In> x{make_geometry<T>(image, flow, height, width, zeros), B, C};
    x.image = const_data<In>(image);
    x.displacement = displacement.data();
    x.result = mutable_data<In>(result);
    prefault(x.result, result.numel() * static_cast<int64_t>(sizeof(In)));
    SIMD_DISPATCH(sample<In>)(x);
  });
  return result;
}

static std::tuple<Tensor, Tensor> flow_sample_backward(
    const Tensor& grad_, const Tensor& image_, const Tensor& flow_, bool zeros, bool, bool want_image,
    bool want_flow) {
  check_image_and_flow(image_, flow_);
  check_sample_gradient(grad_, image_);
  const Tensor grad = torch::stable::contiguous(grad_);  // it may be expanded (all strides 0)
  const Tensor image = torch::stable::contiguous(image_), flow = torch::stable::contiguous(flow_);
  const int64_t B = image.size(0), C = image.size(1);
  const Tensor image_grad = new_like(image, want_image), flow_grad = new_like(flow, want_flow);
  if (B == 0) {
    return {image_grad, flow_grad};
  }
  dispatch_floating(image.scalar_type(), "image", [&](auto zero) {
    using In = decltype(zero);
    using T = compute_t<In>;
    Scratch<T> displacement(flow.numel()), displacement_grad(want_flow ? flow.numel() : 1);
    displacement_of<T>(flow, displacement.data());
    SampleArguments<In> x{make_geometry<T>(image, flow, grad.size(2), grad.size(3), zeros), B, C};
    x.image = const_data<In>(image);
    x.displacement = displacement.data();
    x.grad = const_data<In>(grad);
    x.image_grad = data_or_null<In>(image_grad);
    x.displacement_grad = want_flow ? displacement_grad.data() : nullptr;
    if (want_image) {
      prefault(x.image_grad, image_grad.numel() * static_cast<int64_t>(sizeof(In)));
    }
    SIMD_DISPATCH(sample_backward<In>)(x);
    if (want_flow) {
      dispatch_floating(flow.scalar_type(), "flow", [&](auto flow_zero) {
        using Flow = decltype(flow_zero);
        Flow* to = mutable_data<Flow>(flow_grad);
        for (int64_t i = 0; i < flow.numel(); ++i) {
          to[i] = static_cast<Flow>(displacement_grad.data()[i]);
        }
      });
    }
  });
  return {image_grad, flow_grad};
}

}  // namespace pose_kernels

STABLE_TORCH_LIBRARY_IMPL(pose_kernels, CPU, m) {
  m.impl("flow_sample", TORCH_BOX(&pose_kernels::flow_sample));
  m.impl("flow_sample_backward", TORCH_BOX(&pose_kernels::flow_sample_backward));
}
