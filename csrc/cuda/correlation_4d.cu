// correlation_4d for CUDA tensors; see correlation_4d.cuh.
#include "cuda/common.cuh"
#include "cuda/correlation_4d.cuh"

namespace pose_kernels {

static Tensor correlation_4d(const Tensor& source_, const Tensor& target_, bool tf32, bool channels_last) {
  check_features(source_, target_);
  check_positions(source_, target_);
  Call call(source_);
  const Tensor source = torch::stable::contiguous(source_), target = torch::stable::contiguous(target_);
  const Tensor result = empty_map(source, target, positions(source), channels_last);
  if (source.size(0) > 0) {
    dispatch_floating(source.scalar_type(), "correlation_4d", [&](auto zero) {
      using In = decltype(zero);
      run_correlation_4d(
          features_of<In>(source, target), tf32,
          make_map(mutable_data<In>(result), positions(source), positions(target), channels_last), call.context());
    });
  }
  return result;
}

static std::tuple<Tensor, Tensor> correlation_4d_backward(
    const Tensor& grad_, const Tensor& source_, const Tensor& target_, bool tf32, bool want_source, bool want_target) {
  check_features(source_, target_);
  check_positions(source_, target_);
  check_map_gradient(grad_, source_, target_);
  Call call(source_);
  bool channels_last;
  const Tensor grad = readable_map(grad_, &channels_last);
  const Tensor source = torch::stable::contiguous(source_), target = torch::stable::contiguous(target_);
  const Tensor source_grad = new_like(source, want_source), target_grad = new_like(target, want_target);
  if (source.size(0) > 0 && (want_source || want_target)) {
    dispatch_floating(source.scalar_type(), "correlation_4d_backward", [&](auto zero) {
      using In = decltype(zero);
      run_correlation_4d_backward(
          features_of<In>(source, target), tf32,
          make_map(const_data<In>(grad), positions(source), positions(target), channels_last),
          data_or_null<In>(source_grad, want_source), data_or_null<In>(target_grad, want_target), call.context());
    });
  }
  return {source_grad, target_grad};
}

}  // namespace pose_kernels

STABLE_TORCH_LIBRARY_IMPL(pose_kernels, CUDA, m) {
  m.impl("correlation_4d", TORCH_BOX(&pose_kernels::correlation_4d));
  m.impl("correlation_4d_backward", TORCH_BOX(&pose_kernels::correlation_4d_backward));
}
