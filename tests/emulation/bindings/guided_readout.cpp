#include "cuda/guided_readout.cuh"

#include "bindings.h"

namespace {

// Values [n, S] or [B, n, S].
template <class In>
Readout<In> readout_of(const py::array& source, const py::array& target, const py::array& values, int power) {
  const int own = values.ndim() == 3;
  return {features<In>(source, target), in<In>(values), values.shape(own), own == 1, power};
}

void guided_readout(
    py::array source, py::array target, py::array values, int power, double eps, bool tf32, py::array result,
    py::array row_max, py::array row_argmax, py::array norm) {
  dispatch(source, [&](auto zero, const Context& context) {
    using In = decltype(zero);
    run_guided_readout(
        readout_of<In>(source, target, values, power), statistics<compute_t<In>>(eps, row_max, row_argmax, norm), tf32,
        out<In>(result), context);
  });
}

// A gradient that has no elements is not wanted.
void guided_readout_backward(
    py::array grad, py::array source, py::array target, py::array values, py::array result, py::array row_max,
    py::array row_argmax, py::array norm, int power, double eps, bool tf32, py::array source_grad,
    py::array target_grad, py::array values_grad) {
  dispatch(source, [&](auto zero, const Context& context) {
    using In = decltype(zero);
    run_guided_readout_backward(
        readout_of<In>(source, target, values, power), statistics<compute_t<In>>(eps, row_max, row_argmax, norm), tf32,
        in<In>(grad), in<In>(result),
        ReadoutGrads<In>{out<In>(source_grad), out<In>(target_grad), out<In>(values_grad)}, context);
  });
}

const Bind guided_readout_bind([](py::module_& m) {
  m.def("guided_readout", &guided_readout);
  m.def("guided_readout_backward", &guided_readout_backward);
});

}  // namespace
