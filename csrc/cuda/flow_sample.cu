// flow_sample for CUDA tensors; see flow_sample.cuh.
#include "cuda/common.cuh"
#include "cuda/flow_sample.cuh"

namespace pose_kernels {

template <class T>
static SampleGeometry<T> make_geometry(
    const Tensor& image, const Tensor& flow, int64_t height, int64_t width, bool zeros, Call& call) {
  SampleGeometry<T> geometry{
      image.size(0), image.size(1), make_axis<T>(image.size(3), flow.size(3), width),
      make_axis<T>(image.size(2), flow.size(2), height), zeros, nullptr};
  dispatch_floating(flow.scalar_type(), "flow", [&](auto zero) {
    using Flow = decltype(zero);
    geometry.displacement = make_displacement<Flow, T>(
        flow.size(0), flow.size(2), flow.size(3), const_data<Flow>(flow), call.context());
  });
  return geometry;
}

static Tensor flow_sample(const Tensor& image_, const Tensor& flow_, int64_t height, int64_t width, bool zeros) {
  check_image_and_flow(image_, flow_);
  check_size(height, width);
  Call call(image_);
  const Tensor image = torch::stable::contiguous(image_), flow = torch::stable::contiguous(flow_);
  const Tensor result = empty(image, {image.size(0), image.size(1), height, width}, image.scalar_type());
  if (image.size(0) > 0) {
    dispatch_floating(image.scalar_type(), "image", [&](auto zero) {
      using In = decltype(zero);
      run_flow_sample(
          make_geometry<compute_t<In>>(image, flow, height, width, zeros, call), const_data<In>(image),
          mutable_data<In>(result), call.context().stream);
    });
  }
  return result;
}

static std::tuple<Tensor, Tensor> flow_sample_backward(
    const Tensor& grad_, const Tensor& image_, const Tensor& flow_, bool zeros, bool deterministic, bool want_image,
    bool want_flow) {
  check_image_and_flow(image_, flow_);
  check_sample_gradient(grad_, image_);
  Call call(image_);
  const Tensor grad = torch::stable::contiguous(grad_);  // it may be expanded (all strides 0)
  const Tensor image = torch::stable::contiguous(image_), flow = torch::stable::contiguous(flow_);
  const Tensor image_grad = new_like(image, want_image), flow_grad = new_like(flow, want_flow);
  if (image.size(0) == 0 || !(want_image || want_flow)) {
    return {image_grad, flow_grad};
  }
  dispatch_floating(image.scalar_type(), "image", [&](auto zero) {
    using In = decltype(zero);
    using T = compute_t<In>;
    const SampleGeometry<T> geometry = make_geometry<T>(image, flow, grad.size(2), grad.size(3), zeros, call);
    if (want_image && !deterministic) {
      scatter_image_gradient(geometry, const_data<In>(grad), mutable_data<In>(image_grad), call.context());
    } else if (want_image) {
      STD_TORCH_CHECK(
          std::max(4 * geometry.pixels(), geometry.plane()) < INT32_MAX,
          "image: the deterministic gradient of a plane of 2^29 output pixels or 2^31 image pixels and more is not "
          "supported");
      gather_image_gradient(geometry, const_data<In>(grad), mutable_data<In>(image_grad), call.context());
    }
    if (want_flow) {
      dispatch_floating(flow.scalar_type(), "flow", [&](auto flow_zero) {
        using Flow = decltype(flow_zero);
        run_flow_gradient(
            geometry, const_data<In>(image), const_data<In>(grad), mutable_data<Flow>(flow_grad), call.context());
      });
    }
  });
  return {image_grad, flow_grad};
}

}  // namespace pose_kernels

STABLE_TORCH_LIBRARY_IMPL(pose_kernels, CUDA, m) {
  m.impl("flow_sample", TORCH_BOX(&pose_kernels::flow_sample));
  m.impl("flow_sample_backward", TORCH_BOX(&pose_kernels::flow_sample_backward));
}
