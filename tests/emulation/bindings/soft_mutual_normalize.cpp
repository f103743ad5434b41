#include "cuda/soft_mutual_normalize.cuh"

#include "bindings.h"

namespace {

// Maps are [B, S, T].
void soft_mutual_normalize(
    py::array map, double eps, py::array result, py::array row_max, py::array row_argmax, py::array norm) {
  dispatch(map, result, [&](auto zero, auto narrow, const Context& context) {
    using E = decltype(zero);
    using G = decltype(narrow);
    run_soft_mutual_normalize(
        MapPair<E, G>{map.shape(0), map.shape(1), map.shape(2), in<E>(map), nullptr},
        statistics<compute_t<E>>(eps, row_max, row_argmax, norm), out<G>(result), context);
  });
}

void soft_mutual_normalize_backward(
    py::array grad, py::array map, py::array row_max, py::array row_argmax, py::array norm, double eps,
    py::array result) {
  dispatch(map, grad, [&](auto zero, auto narrow, const Context& context) {
    using E = decltype(zero);
    using G = decltype(narrow);
    run_soft_mutual_normalize_backward(
        MapPair<E, G>{map.shape(0), map.shape(1), map.shape(2), in<E>(map), in<G>(grad)},
        statistics<compute_t<E>>(eps, row_max, row_argmax, norm), out<E>(result), context);
  });
}

const Bind soft_mutual_normalize_bind([](py::module_& m) {
  m.def("soft_mutual_normalize", &soft_mutual_normalize);
  m.def("soft_mutual_normalize_backward", &soft_mutual_normalize_backward);
});

}  // namespace
