// Stands after csrc/cuda/*.cu where they are compiled for the CPU whole: what the tests ask of the emulation, and of
// what no result shows.
#include "wrappers.h"

namespace {

// In which order threads and blocks run, how many blocks there are, how tensor cores add, and whether copies are waited
// for: see cuda_emulation.h.
void set_emulation(bool reversed, bool few_blocks, bool truncating, bool waiting) {
  emulation::state().reversed = reversed;
  emulation::state().few_blocks = few_blocks;
  emulation::state().truncating = truncating;
  emulation::state().waiting = waiting;
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

// What csrc/cuda/device.cuh asks of a GPU, by itself: fragments as the PTX manual lays them out, copies that run ahead.
using namespace pose_kernels;

// Registers a [32, 4], b [32, 2] and c [32, 4] of a warp; c becomes c + a b.
template <class Z>
__global__ void pairs_kernel(const float* a, const float* b, float* c) {
  const int lane = threadIdx.x;
  float sum[4], left[4];
  std::memcpy(sum, c + 4 * lane, sizeof(sum));
  std::memcpy(left, a + 4 * lane, sizeof(left));
  multiply_add_pairs<Z>(sum, left, b[2 * lane], b[2 * lane + 1]);
  std::memcpy(c + 4 * lane, sum, sizeof(sum));
}

// `a` and `b` hold 16-bit numbers, two a register.
void multiply_add_pairs_of(const Tensor& a, const Tensor& b, Tensor c) {
  const auto kernel = a.scalar_type() == ScalarType::Half ? &pairs_kernel<Half> : &pairs_kernel<BFloat16>;
  launch(kernel, 1, kWarp, 0, emulation::state().stream, static_cast<const float*>(a.data_ptr()),
         static_cast<const float*>(b.data_ptr()), static_cast<float*>(c.data_ptr()));
}

// Each thread copies a quad of the first and of the second half of `from` to its own place, in two groups, and hands on
// both after waiting for the first alone, if at all.
__global__ void copy_kernel(const Quad<float>* from, Quad<float>* to, bool wait) {
  Quad<float>* shared = &shared_memory<Quad<float>>();
  for (int i = 0; i < 2; ++i) {
    copy_ahead(shared + threadIdx.x + i * kWarp, from + threadIdx.x + i * kWarp, true);
    commit_copies();
  }
  if (wait) {
    wait_for_copies<1>();
  }
  for (int i = 0; i < 2; ++i) {
    to[threadIdx.x + i * kWarp] = shared[threadIdx.x + i * kWarp];
  }
}

void copy_ahead_of(const Tensor& from, Tensor to, bool wait) {
  launch(copy_kernel, 1, kWarp, 2 * kWarp * static_cast<int>(sizeof(Quad<float>)), emulation::state().stream,
         static_cast<const Quad<float>*>(from.data_ptr()), static_cast<Quad<float>*>(to.data_ptr()), wait);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(pose_kernels_emulation, m) {
  m.def("set(bool reversed, bool few_blocks, bool truncating, bool waiting=True) -> ()");
  m.def("multiply_add_pairs(Tensor a, Tensor b, Tensor(c!) c) -> ()");
  m.def("copy_ahead(Tensor from_, Tensor(to!) to, bool wait) -> ()");
  m.def("products() -> int");
  m.def("operations() -> int");
  m.def("gradient_scratch(int batch, int m, int sources, int targets) -> int");
  m.def("map_offset(int b, int outer, int inner, int outers, int inners) -> int");
}

STABLE_TORCH_LIBRARY_IMPL(pose_kernels_emulation, CompositeExplicitAutograd, m) {
  emulation::state().stream = &emulation::no_stream;
  m.impl("set", TORCH_BOX(&set_emulation));
  m.impl("multiply_add_pairs", TORCH_BOX(&multiply_add_pairs_of));
  m.impl("copy_ahead", TORCH_BOX(&copy_ahead_of));
  m.impl("products", TORCH_BOX(&products));
  m.impl("operations", TORCH_BOX(&operations));
  m.impl("gradient_scratch", TORCH_BOX(&gradient_scratch));
  m.impl("map_offset", TORCH_BOX(&pose_kernels::map_offset));
}
