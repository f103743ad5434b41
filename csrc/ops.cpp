// The namespace of the operators. Their schemas, shapes for tracing and autograd are in pose_kernels/<op>.py; each
// implementation registers itself in csrc/cpu/<op>.cpp, csrc/cuda/<op>.cu.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(pose_kernels, m) {
  m.def("simd_level() -> int");
}
