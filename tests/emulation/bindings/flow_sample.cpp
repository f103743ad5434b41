#include "cuda/flow_sample.cuh"

#include "bindings.h"

namespace {

template <class T>
SampleGeometry<T> geometry(
    const py::array& image, const py::array& flow, int64_t height, int64_t width, bool zeros, const Context& context) {
  SampleGeometry<T> g{
      image.shape(0), image.shape(1), make_axis<T>(image.shape(3), flow.shape(3), width),
      make_axis<T>(image.shape(2), flow.shape(2), height), zeros, nullptr};
  dispatch(flow, [&](auto zero, const Context&) {
    using Flow = decltype(zero);
    g.displacement =
        make_displacement<Flow, T>(flow.shape(0), flow.shape(2), flow.shape(3), in<Flow>(flow), context);
  });
  return g;
}

void flow_sample(py::array image, py::array flow, bool zeros, py::array result) {
  dispatch(image, [&](auto zero, const Context& context) {
    using In = decltype(zero);
    run_flow_sample(
        geometry<compute_t<In>>(image, flow, result.shape(2), result.shape(3), zeros, context), in<In>(image),
        out<In>(result), nullptr);
  });
}

// An empty array for a gradient that is not wanted. `most` as in gather_image_gradient, 0: in any order.
void flow_sample_backward(
    py::array grad, py::array image, py::array flow, bool zeros, int64_t most, py::array image_grad,
    py::array flow_grad) {
  dispatch(image, [&](auto zero, const Context& context) {
    using In = decltype(zero);
    const auto g = geometry<compute_t<In>>(image, flow, grad.shape(2), grad.shape(3), zeros, context);
    if (image_grad.size() > 0) {
      if (most == 0) {
        scatter_image_gradient(g, in<In>(grad), out<In>(image_grad), context);
      } else {
        gather_image_gradient(g, in<In>(grad), out<In>(image_grad), context, most);
      }
    }
    if (flow_grad.size() > 0) {
      dispatch(flow, [&](auto flow_zero, const Context&) {
        using Flow = decltype(flow_zero);
        run_flow_gradient(g, in<In>(image), in<In>(grad), out<Flow>(flow_grad), context);
      });
    }
  });
}

const Bind flow_sample_bind([](py::module_& m) {
  m.def("flow_sample", &flow_sample);
  m.def("flow_sample_backward", &flow_sample_backward);
});

}  // namespace
