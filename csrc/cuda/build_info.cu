// What this library was built with, readable without a GPU.
#include <string>

#include <torch/csrc/stable/library.h>

namespace pose_kernels {

static std::string cuda_build_info() {
  return "nvcc " + std::to_string(__CUDACC_VER_MAJOR__) + "." + std::to_string(__CUDACC_VER_MINOR__) + "." +
      std::to_string(__CUDACC_VER_BUILD__) + ", architectures " POSE_KERNELS_ARCHITECTURES;
}

}  // namespace pose_kernels

STABLE_TORCH_LIBRARY_FRAGMENT(pose_kernels, m) {
  m.def("cuda_build_info() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(pose_kernels, CompositeExplicitAutograd, m) {
  m.impl("cuda_build_info", TORCH_BOX(&pose_kernels::cuda_build_info));
}
