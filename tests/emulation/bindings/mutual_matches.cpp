#include "cuda/mutual_matches.cuh"

#include "bindings.h"

namespace {

void mutual_matches(
    py::array source, py::array target, bool tf32, py::array sources, py::array correlations, py::array targets,
    py::array target_correlations) {
  dispatch(source, [&](auto zero, const Context& context) {
    using In = decltype(zero);
    using T = compute_t<In>;
    const Matches<T> found{
        sources.shape(1), out<int64_t>(sources), out<T>(correlations), out<int64_t>(targets),
        out<T>(target_correlations)};
    run_mutual_matches(features<In>(source, target), tf32, found, context);
  });
}

const Bind mutual_matches_bind([](py::module_& m) { m.def("mutual_matches", &mutual_matches); });

}  // namespace
