// correlation_4d for CUDA tensors; see correlation_4d.cuh.
#include <tuple>

#include "cuda/common.cuh"
#include "cuda/correlation_4d.cuh"

namespace pose_kernels {

static Tensor correlation_4d(const Tensor& source_, const Tensor& target_, bool tf32, bool channels_last) {
  check_features(source_, target_);
  Call call(source_);
  const Tensor source = torch::stable::contiguous(source_), target = torch::stable::contiguous(target_);
  const int64_t B = source.size(0), S = source.size(2) * source.size(3), T = target.size(2) * target.size(3);
  const Tensor result = empty_map(source, target, S, channels_last);
  if (B > 0) {
    dispatch_floating(source.scalar_type(), "correlation_4d", [&](auto zero) {
      using In = decltype(zero);
      run_correlation_4d<In>(
          features_of<In>(source, target), tf32, make_map(mutable_data<In>(result), S, T, channels_last),
          call.allocate(), call.stream());
    });
  }
  return result;
}

static std::tuple<Tensor, Tensor> correlation_4d_backward(
    const Tensor& grad_, const Tensor& source_, const Tensor& target_, bool tf32, bool want_source, bool want_target) {
  check_features(source_, target_);
  Call call(source_);
  bool channels_last;
  const Tensor grad = readable_map(grad_, &channels_last);
  const Tensor source = torch::stable::contiguous(source_), target = torch::stable::contiguous(target_);
  const int64_t B = source.size(0), m = source.size(1);
  const int64_t S = source.size(2) * source.size(3), T = target.size(2) * target.size(3);
  const ScalarType type = source.scalar_type();
  check_shape(grad, "grad", {B, S, target.size(2), target.size(3)});
  check_type(grad, "grad", type);
  const Tensor source_grad =
      want_source ? empty(source, {B, m, source.size(2), source.size(3)}, type) : empty(source, {0}, type);
  const Tensor target_grad =
      want_target ? empty(source, {B, m, target.size(2), target.size(3)}, type) : empty(source, {0}, type);
  if (B > 0 && (want_source || want_target)) {
    dispatch_floating(type, "correlation_4d_backward", [&](auto zero) {
      using In = decltype(zero);
      run_correlation_4d_backward<In>(
          features_of<In>(source, target), tf32, make_map(const_data<In>(grad), S, T, channels_last),
          want_source ? mutable_data<In>(source_grad) : nullptr, want_target ? mutable_data<In>(target_grad) : nullptr,
          call.allocate(), call.stream());
    });
  }
  return {source_grad, target_grad};
}

}  // namespace pose_kernels

STABLE_TORCH_LIBRARY_IMPL(pose_kernels, CUDA, m) {
  m.impl("correlation_4d", TORCH_BOX(&pose_kernels::correlation_4d));
  m.impl("correlation_4d_backward", TORCH_BOX(&pose_kernels::correlation_4d_backward));
}
