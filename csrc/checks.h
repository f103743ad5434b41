// What the operators ask of their arguments, on every device. The public functions have checked before, in words for
// their users; this guards callers that come through torch.ops.
#pragma once

#include "common.h"

namespace pose_kernels {

inline void check_shape(const Tensor& x, const char* name, std::initializer_list<int64_t> expected) {
  bool ok = x.dim() == static_cast<int64_t>(expected.size());
  int64_t d = 0;
  for (int64_t size : expected) {
    ok = ok && x.size(d++) == size;
  }
  STD_TORCH_CHECK(ok, name, ": unexpected shape");
}

inline void check_type(const Tensor& x, const char* name, ScalarType expected) {
  STD_TORCH_CHECK(x.scalar_type() == expected, name, ": unexpected dtype");
}

inline void check_contiguous(std::initializer_list<const Tensor*> tensors) {
  for (const Tensor* x : tensors) {
    STD_TORCH_CHECK(x->is_contiguous(), "expected contiguous tensors");
  }
}

inline void check_features(const Tensor& source, const Tensor& target) {
  STD_TORCH_CHECK(source.dim() == 4, "source: expected [B, m, hs, ws]");
  STD_TORCH_CHECK(target.dim() == 4, "target: expected [B, m, ht, wt]");
  STD_TORCH_CHECK(
      source.size(0) == target.size(0) && source.size(1) == target.size(1),
      "target: expected the batch and channels of source");
  STD_TORCH_CHECK(
      source.size(1) * source.size(2) * source.size(3) * target.size(2) * target.size(3) > 0,
      "source, target: expected no empty dimension but B");
  check_type(target, "target", source.scalar_type());
}

// A map, or its gradient, has the dtype of what it is made of or a narrower one.
inline void check_map_type(ScalarType map, const char* name, ScalarType from) {
  const bool half = map == ScalarType::Half || map == ScalarType::BFloat16;
  const bool narrower = from == ScalarType::Double ? half || map == ScalarType::Float : from == ScalarType::Float && half;
  STD_TORCH_CHECK(map == from || narrower, name, ": unexpected dtype");
}

// G of a map of these features.
inline void check_map_gradient(const Tensor& grad, const Tensor& source, const Tensor& target) {
  check_shape(grad, "grad", {source.size(0), positions(source), target.size(2), target.size(3)});
  check_map_type(grad.scalar_type(), "grad", source.scalar_type());
}

// A caller's memory for a map.
inline void check_out(const Tensor& out, std::initializer_list<int64_t> expected, ScalarType from) {
  check_shape(out, "out", expected);
  check_map_type(out.scalar_type(), "out", from);
  STD_TORCH_CHECK(out.is_contiguous() || is_channels_last(out), "out: expected contiguous or channels-last");
}

inline void check_out(const Tensor& out, const Tensor& source, const Tensor& target) {
  check_out(out, {source.size(0), positions(source), target.size(2), target.size(3)}, source.scalar_type());
}

inline void check_row_max(const Tensor& row_max, int64_t batch, int64_t sources, ScalarType type) {
  check_shape(row_max, "row_max", {batch, sources});
  check_type(row_max, "row_max", compute_type(type));
}

inline void check_row_argmax(const Tensor& row_argmax, int64_t batch, int64_t sources) {
  check_shape(row_argmax, "row_argmax", {batch, sources});
  check_type(row_argmax, "row_argmax", ScalarType::Long);
}

inline void check_norm(const Tensor& norm, int64_t batch, int64_t targets, ScalarType type) {
  check_shape(norm, "norm", {batch, targets});
  check_type(norm, "norm", compute_type(type));
}

// Those of a map [B, S, T] of this type.
inline void check_statistics(
    const StatisticsTensors& x, int64_t batch, int64_t sources, int64_t targets, ScalarType type) {
  check_row_max(x.row_max, batch, sources, type);
  check_row_argmax(x.row_argmax, batch, sources);
  check_norm(x.norm, batch, targets, type);
}

// What a band of the map is made of: features [B, m, S] and [B, m, T].
inline void check_band_features(const Tensor& source, const Tensor& target) {
  STD_TORCH_CHECK(source.dim() == 3 && target.dim() == 3, "source, target: expected [B, m, positions]");
  STD_TORCH_CHECK(
      source.size(0) == target.size(0) && source.size(1) == target.size(1),
      "target: expected the batch and channels of source");
  STD_TORCH_CHECK(
      source.size(1) * source.size(2) * target.size(2) > 0, "source, target: expected no empty dimension but B");
  check_type(target, "target", source.scalar_type());
  check_contiguous({&source, &target});
}

// The band [B, S, n] for the targets from `begin` on, `out` or `grad`.
inline void check_band(
    const Tensor& band, const char* name, const Tensor& source, const Tensor& target, const Tensor& row_max,
    const Tensor& norm, int64_t begin) {
  check_band_features(source, target);
  const int64_t batch = source.size(0), sources = source.size(2), targets = target.size(2), n = band.size(-1);
  check_row_max(row_max, batch, sources, source.scalar_type());
  check_norm(norm, batch, targets, source.scalar_type());
  check_shape(band, name, {batch, sources, n});
  check_contiguous({&row_max, &norm, &band});
  STD_TORCH_CHECK(begin >= 0 && n > 0 && begin + n <= targets, "begin: the band lies outside the targets");
}

inline void check_row_max_backward(
    const Tensor& source, const Tensor& target, const Tensor& row_max, const Tensor& row_argmax) {
  check_band_features(source, target);
  check_row_max(row_max, source.size(0), source.size(2), source.scalar_type());
  check_row_argmax(row_argmax, source.size(0), source.size(2));
  check_contiguous({&row_max, &row_argmax});
}

// What a band's backward adds to; beta also where it is read. A gradient that nobody asked for is an empty tensor.
inline void check_band_gradients(
    const Tensor& source, const Tensor& target, const Tensor& source_grad, const Tensor& target_grad,
    const Tensor& beta) {
  const int64_t batch = source.size(0), m = source.size(1), sources = source.size(2);
  if (source_grad.numel() > 0) {
    check_shape(source_grad, "source_grad", {batch, m, sources});
  }
  if (target_grad.numel() > 0) {
    check_shape(target_grad, "target_grad", {batch, m, target.size(2)});
  }
  check_shape(beta, "beta", {batch, sources});
  check_type(source_grad, "source_grad", compute_type(source.scalar_type()));
  check_type(target_grad, "target_grad", compute_type(source.scalar_type()));
  check_type(beta, "beta", compute_type(source.scalar_type()));
  check_contiguous({&source_grad, &target_grad, &beta});
}

inline void check_readout(const Tensor& source, const Tensor& target, const Tensor& values, int64_t power) {
  check_features(source, target);
  STD_TORCH_CHECK(
      (values.dim() == 2 || (values.dim() == 3 && values.size(0) == source.size(0))) &&
          values.size(-1) == positions(source) && values.size(-2) > 0,
      "values: expected [n, hs*ws] or [B, n, hs*ws]");
  dispatch_floating(values.scalar_type(), "values", [](auto) {});
  STD_TORCH_CHECK(power == 1 || power == 2, "power: expected 1 or 2");
}

inline void check_map(const Tensor& map) {
  STD_TORCH_CHECK(
      map.dim() == 4 && map.size(1) * map.size(2) * map.size(3) > 0,
      "correlation: expected [B, hs*ws, ht, wt] with no empty dimension but B");
}

inline void check_normalize_backward(const Tensor& grad, const Tensor& map, const StatisticsTensors& statistics) {
  const int64_t batch = map.size(0), sources = map.size(1), targets = map.size(2) * map.size(3);
  check_shape(grad, "grad", {batch, sources, map.size(2), map.size(3)});
  check_map_type(grad.scalar_type(), "grad", map.scalar_type());
  check_statistics(statistics, batch, sources, targets, map.scalar_type());
}

inline void check_image_and_flow(const Tensor& image, const Tensor& flow) {
  STD_TORCH_CHECK(image.dim() == 4, "image: expected [B, C, H, W]");
  STD_TORCH_CHECK(flow.dim() == 4 && flow.size(1) == 2 && flow.size(0) == image.size(0), "flow: expected [B, 2, h, w]");
  STD_TORCH_CHECK(
      image.size(1) * image.size(2) * image.size(3) * flow.size(2) * flow.size(3) > 0,
      "image, flow: expected no empty dimension but B");
}

inline void check_size(int64_t height, int64_t width) {
  STD_TORCH_CHECK(height > 0 && width > 0, "size: expected two positive integers");
}

inline void check_sample_gradient(const Tensor& grad, const Tensor& image) {
  STD_TORCH_CHECK(
      grad.dim() == 4 && grad.size(0) == image.size(0) && grad.size(1) == image.size(1), "grad: unexpected shape");
  check_type(grad, "grad", image.scalar_type());
}

}  // namespace pose_kernels
