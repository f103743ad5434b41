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

inline Tensor empty(const Tensor& like, std::initializer_list<int64_t> sizes, ScalarType type) {
  return torch::stable::new_empty(like, torch::headeronly::IntHeaderOnlyArrayRef(sizes.begin(), sizes.size()), type);
}

}  // namespace pose_kernels
