// What every operator speaks of on every device: element types, pairs of feature maps, the statistics of a map. No
// tensors here, so that the CUDA kernels and their emulation read it too.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <type_traits>

#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

namespace pose_kernels {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;

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

// The same for what is computed, not only stored, in its type.
template <class F>
void dispatch_wide(ScalarType type, const char* name, F&& f) {
  if (type == ScalarType::Double) {
    return f(double{});
  }
  STD_TORCH_CHECK(type == ScalarType::Float, name, ": expected float32 or float64");
  f(float{});
}

// Calls f with values of the types of a band's features and of its map. Only float64 features have float64 maps.
template <class F>
void dispatch_band(ScalarType features, ScalarType map, F&& f) {
  dispatch_wide(features, "features", [&](auto wide) {
    using Wide = decltype(wide);
    dispatch_floating(map, "band", [&](auto zero) {
      if constexpr (std::is_same_v<Wide, float> && std::is_same_v<decltype(zero), double>) {
        STD_TORCH_CHECK(false, "band: a float64 map needs float64 features");
      } else {
        f(Wide{}, zero);
      }
    });
  });
}

// Calls f with values of the types of what a map is made of, and of the map as the loops write or read it: the same, or
// 16 bits from float32. Narrower maps of float64 are float64 here: see fill_map and readable_gradient.
template <class F>
void dispatch_map(ScalarType from, ScalarType map, const char* name, F&& f) {
  dispatch_floating(from, name, [&](auto zero) {
    using In = decltype(zero);
    if (map == from) {
      return f(zero, zero);
    }
    if constexpr (std::is_same_v<In, float>) {
      if (map == ScalarType::Half) {
        return f(zero, Half{});
      }
      if (map == ScalarType::BFloat16) {
        return f(zero, BFloat16{});
      }
    }
    STD_TORCH_CHECK(false, name, ": a map has the dtype of what it is made of, or a narrower one");
  });
}

// A pair of feature maps [B, m, S], [B, m, T]; of the targets only `count` from `begin` on take part.
template <class In>
struct Features {
  int64_t batch, m, sources, targets;
  const In* source;
  const In* target;
  int64_t begin, count;
};

// What normalizes a map, and its floors. Null for what a call has not.
template <class T>
struct Statistics {
  T eps;
  T* row_max;  // [B, S]: max(max_t C, eps)
  int64_t* row_argmax;  // [B, S]: where it is first
  T* norm;  // [B, T]: max(||C^3 / row_max||, eps)
};

}  // namespace pose_kernels
