#include "cuda/correlation_4d.cuh"

#include "bindings.h"

namespace {

void correlation_4d(py::array source, py::array target, bool tf32, bool channels_last, py::array result) {
  dispatch(source, [&](auto zero, const Context& context) {
    using In = decltype(zero);
    run_correlation_4d(
        features<In>(source, target), tf32,
        make_map(out<In>(result), source.shape(2), target.shape(2), channels_last), context);
  });
}

void correlation_4d_backward(
    py::array grad, bool channels_last, py::array source, py::array target, bool tf32, py::array source_grad,
    py::array target_grad) {
  dispatch(source, [&](auto zero, const Context& context) {
    using In = decltype(zero);
    run_correlation_4d_backward(
        features<In>(source, target), tf32, make_map(in<In>(grad), source.shape(2), target.shape(2), channels_last),
        out<In>(source_grad), out<In>(target_grad), context);
  });
}

const Bind correlation_4d_bind([](py::module_& m) {
  m.def("map_offset", &map_offset);
  m.def("correlation_4d", &correlation_4d);
  m.def("correlation_4d_backward", &correlation_4d_backward);
});

}  // namespace
