// Shared by every operator: checks, dtype dispatch, allocation. Only the LibTorch stable ABI, never ATen.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

namespace pose_kernels {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// float16 and bfloat16 are storage formats: everything is computed in float32.
template <class In>
using compute_t = std::conditional_t<std::is_same_v<In, double>, double, float>;

inline ScalarType compute_type(ScalarType type) {
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Calls f with a value of the C++ type that `type` names. The public functions have checked the dtypes; this guards
// callers that come through torch.ops.
template <class F>
void dispatch_floating(ScalarType type, const char* name, F&& f) {
  switch (type) {
    case ScalarType::Float:
      return f(float{});
    case ScalarType::Double:
      return f(double{});
    case ScalarType::Half:
      return f(Half{});
    case ScalarType::BFloat16:
      return f(BFloat16{});
    default:
      STD_TORCH_CHECK(false, name, ": expected a floating dtype");
  }
}

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

template <class T>
const T* const_data(const Tensor& x) {
  return static_cast<const T*>(x.const_data_ptr());
}

template <class T>
T* mutable_data(const Tensor& x) {
  return static_cast<T*>(x.mutable_data_ptr());
}

inline Tensor empty(const Tensor& like, std::initializer_list<int64_t> sizes, ScalarType type) {
  return torch::stable::new_empty(like, torch::headeronly::IntHeaderOnlyArrayRef(sizes.begin(), sizes.size()), type);
}

// An uninitialised 4D tensor [B, S, ht, wt] as a correlation map is returned.
inline Tensor empty_map(const Tensor& like, const Tensor& target, int64_t sources, bool channels_last) {
  const int64_t B = target.size(0), ht = target.size(2), wt = target.size(3);
  if (!channels_last) {
    return empty(like, {B, sources, ht, wt}, like.scalar_type());
  }
  return torch::stable::permute(empty(like, {B, ht, wt, sources}, like.scalar_type()), {0, 3, 1, 2});
}

// A map [B, S, ht, wt] as matrices [S, T]: strides of batch, source and target.
struct MapStrides {
  int64_t batch, source, target;
};

// False where the target positions do not lie at even distances.
inline bool map_strides(const Tensor& map, MapStrides& strides) {
  const int64_t ht = map.size(2), wt = map.size(3);
  strides = {map.stride(0), map.stride(1), wt > 1 ? map.stride(3) : map.stride(2)};
  return ht == 1 || wt == 1 || map.stride(2) == wt * map.stride(3);
}

// The map itself where its strides will do, which includes channels-last and expanded gradients, else a copy.
inline Tensor with_map_strides(const Tensor& map, MapStrides& strides) {
  if (map_strides(map, strides)) {
    return map;
  }
  const Tensor copy = torch::stable::contiguous(map);
  map_strides(copy, strides);
  return copy;
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

// What a band of the map is made of: features [B, m, S] and [B, m, T] in the compute type.
inline void check_band_features(const Tensor& source, const Tensor& target) {
  STD_TORCH_CHECK(source.dim() == 3 && target.dim() == 3, "source, target: expected [B, m, positions]");
  STD_TORCH_CHECK(
      source.size(0) == target.size(0) && source.size(1) == target.size(1),
      "target: expected the batch and channels of source");
  STD_TORCH_CHECK(
      source.size(1) * source.size(2) * target.size(2) > 0, "source, target: expected no empty dimension but B");
  check_type(target, "target", source.scalar_type());
  STD_TORCH_CHECK(
      source.scalar_type() == ScalarType::Float || source.scalar_type() == ScalarType::Double,
      "source: expected float32 or float64");
}

inline void check_map(const Tensor& map) {
  STD_TORCH_CHECK(
      map.dim() == 4 && map.size(1) * map.size(2) * map.size(3) > 0,
      "correlation: expected [B, hs*ws, ht, wt] with no empty dimension but B");
}

inline void check_image_and_flow(const Tensor& image, const Tensor& flow) {
  STD_TORCH_CHECK(image.dim() == 4, "image: expected [B, C, H, W]");
  STD_TORCH_CHECK(flow.dim() == 4 && flow.size(1) == 2 && flow.size(0) == image.size(0), "flow: expected [B, 2, h, w]");
  STD_TORCH_CHECK(
      image.size(1) * image.size(2) * image.size(3) * flow.size(2) * flow.size(3) > 0,
      "image, flow: expected no empty dimension but B");
}

}  // namespace pose_kernels
