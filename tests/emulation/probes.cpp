// Stands after csrc/cuda/*.cu where they are compiled for the CPU whole: what the tests ask of the emulation, and of
// what no result shows.
#include "wrappers.h"

namespace {

// In which order threads and blocks run, how many blocks there are, and how tensor cores add: see cuda_emulation.h.
void set_emulation(bool reversed, bool few_blocks, bool truncating) {
  emulation::state().reversed = reversed;
  emulation::state().few_blocks = few_blocks;
  emulation::state().truncating = truncating;
}

// Of matrix fragments so far.
int64_t products() {
  return static_cast<int64_t>(emulation::state().products);
}

// That cross lanes, so far.
int64_t operations() {
  return static_cast<int64_t>(emulation::state().operations);
}

// Bytes of scratch that backward needs beyond copies of features and what it keeps per position.
int64_t gradient_scratch(int64_t batch, int64_t m, int64_t sources, int64_t targets) {
  using namespace pose_kernels;
  const GradientPlan plan = plan_gradients(batch, m, sources, targets);
  const int64_t parts = plan.parts(plan.largest.s_tiles, plan.source_runs) +
      plan.parts(plan.largest.t_tiles, plan.target_runs);
  return plan.dC_quads() * static_cast<int64_t>(sizeof(Quad<float>)) + parts * static_cast<int64_t>(sizeof(float));
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(pose_kernels_emulation, m) {
  m.def("set(bool reversed, bool few_blocks, bool truncating) -> ()");
  m.def("products() -> int");
  m.def("operations() -> int");
  m.def("gradient_scratch(int batch, int m, int sources, int targets) -> int");
  m.def("map_offset(int b, int outer, int inner, int outers, int inners) -> int");
}

STABLE_TORCH_LIBRARY_IMPL(pose_kernels_emulation, CompositeExplicitAutograd, m) {
  emulation::state().stream = &emulation::no_stream;
  m.impl("set", TORCH_BOX(&set_emulation));
  m.impl("products", TORCH_BOX(&products));
  m.impl("operations", TORCH_BOX(&operations));
  m.impl("gradient_scratch", TORCH_BOX(&gradient_scratch));
  m.impl("map_offset", TORCH_BOX(&pose_kernels::map_offset));
}
