// correlation_4d for CUDA tensors; see correlation_4d.cuh.
#include "cuda/common.cuh"
#include "cuda/correlation_4d.cuh"

namespace pose_kernels {

static void correlate(const Tensor& source_, const Tensor& target_, bool tf32, const MapResult& result) {
  check_positions(source_, target_);
  Call call(source_);
  const Tensor source = torch::stable::contiguous(source_), target = torch::stable::contiguous(target_);
  fill_map(result, source.scalar_type(), [&](const MapResult& to) {
    dispatch_map(source.scalar_type(), to.map.scalar_type(), "correlation_4d", [&](auto zero, auto narrow) {
      using In = decltype(zero);
      using E = decltype(narrow);
      run_correlation_4d(
          features_of<In>(source, target), tf32,
          make_map(mutable_data<E>(to.map), positions(source), positions(target), to.channels_last), call.context());
    });
  });
}

static Tensor correlation_4d(
    const Tensor& source, const Tensor& target, bool tf32, bool channels_last, ScalarType out_dtype) {
  check_features(source, target);
  check_map_type(out_dtype, "out_dtype", source.scalar_type());
  const Tensor result = empty_map(target, positions(source), channels_last, out_dtype);
  correlate(source, target, tf32, {result, channels_last, true});
  return result;
}

static void correlation_4d_out(const Tensor& source, const Tensor& target, bool tf32, Tensor out) {
  check_features(source, target);
  check_out(out, source, target);
  correlate(source, target, tf32, given_map(out));
}

static std::tuple<Tensor, Tensor> correlation_4d_backward(
    const Tensor& grad_, const Tensor& source_, const Tensor& target_, bool tf32, bool want_source, bool want_target) {
  check_features(source_, target_);
  check_positions(source_, target_);
  check_map_gradient(grad_, source_, target_);
  Call call(source_);
  bool channels_last;
  const Tensor grad = readable_map(readable_gradient(grad_, source_.scalar_type()), &channels_last);
  const Tensor source = torch::stable::contiguous(source_), target = torch::stable::contiguous(target_);
  const Tensor source_grad = new_like(source, want_source), target_grad = new_like(target, want_target);
  if (source.size(0) > 0 && (want_source || want_target)) {
    dispatch_map(source.scalar_type(), grad.scalar_type(), "correlation_4d_backward", [&](auto zero, auto narrow) {
      using In = decltype(zero);
      using E = decltype(narrow);
      run_correlation_4d_backward(
          features_of<In>(source, target), tf32,
          make_map(const_data<E>(grad), positions(source), positions(target), channels_last),
          data_or_null<In>(source_grad), data_or_null<In>(target_grad), call.context());
    });
  }
  return {source_grad, target_grad};
}

}  // namespace pose_kernels

STABLE_TORCH_LIBRARY_IMPL(pose_kernels, CUDA, m) {
  m.impl("correlation_4d", TORCH_BOX(&pose_kernels::correlation_4d));
  m.impl("correlation_4d_out", TORCH_BOX(&pose_kernels::correlation_4d_out));
  m.impl("correlation_4d_backward", TORCH_BOX(&pose_kernels::correlation_4d_backward));
}
