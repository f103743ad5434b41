// The namespace of the operators. Their schemas are in pose_kernels/_library.py, with shapes for tracing (fakes) and
// autograd beside the public functions; each implementation registers itself in csrc/cpu/<op>.cpp and csrc/cuda/<op>.cu.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(pose_kernels, m) {
  m.def("simd_level() -> int");
}
