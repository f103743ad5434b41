#include "cuda/correlation_4d.cuh"

#include "bindings.h"

namespace {

void correlation_4d(py::array source, py::array target, bool tf32, bool channels_last, py::array result) {
  dispatch(source, result, [&](auto zero, auto narrow, const Context& context) {
    using In = decltype(zero);
    using E = decltype(narrow);
    run_correlation_4d(
        features<In>(source, target), tf32,
        make_map(out<E>(result), source.shape(2), target.shape(2), channels_last), context);
  });
}

void correlation_4d_backward(
    py::array grad, bool channels_last, py::array source, py::array target, bool tf32, py::array source_grad,
    py::array target_grad) {
  dispatch(source, grad, [&](auto zero, auto narrow, const Context& context) {
    using In = decltype(zero);
    using E = decltype(narrow);
    run_correlation_4d_backward(
        features<In>(source, target), tf32, make_map(in<E>(grad), source.shape(2), target.shape(2), channels_last),
        out<In>(source_grad), out<In>(target_grad), context);
  });
}

// Bytes of scratch that backward needs beyond copies of features and what it keeps per position.
int64_t gradient_scratch(int64_t batch, int64_t m, int64_t sources, int64_t targets) {
  const GradientPlan plan = plan_gradients(batch, m, sources, targets);
  const int64_t parts = plan.parts(plan.largest.s_tiles, plan.source_runs) +
      plan.parts(plan.largest.t_tiles, plan.target_runs);
  return plan.dC_quads() * static_cast<int64_t>(sizeof(Quad<float>)) + parts * static_cast<int64_t>(sizeof(float));
}

const Bind correlation_4d_bind([](py::module_& m) {
  m.def("map_offset", &map_offset);
  m.def("gradient_scratch", &gradient_scratch);
  m.def("correlation_4d", &correlation_4d);
  m.def("correlation_4d_backward", &correlation_4d_backward);
});

}  // namespace
