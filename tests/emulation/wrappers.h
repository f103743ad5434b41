// Stands before csrc/cuda/*.cu where they are compiled for the CPU whole, with the host code around the kernels: what
// they register for CUDA tensors becomes the operators of CPU tensors, guard and stream are the emulation's own.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "cuda/device.cuh"

namespace emulation {

inline char no_stream;

}  // namespace emulation

namespace torch::stable::accelerator {

// Each has a stream of its own, the current one while it lives; launch() takes no other.
class EmulatedGuard {
 public:
  explicit EmulatedGuard(DeviceIndex) : before_(emulation::state().stream) {
    emulation::state().stream = &stream_;
  }
  ~EmulatedGuard() {
    emulation::state().stream = before_;
  }
  EmulatedGuard(const EmulatedGuard&) = delete;
  EmulatedGuard& operator=(const EmulatedGuard&) = delete;

 private:
  void* before_;
  char stream_ = 0;
};

}  // namespace torch::stable::accelerator

// Without a guard there is none to launch on.
inline AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = emulation::state().stream == &emulation::no_stream ? nullptr : emulation::state().stream;
  return AOTI_TORCH_SUCCESS;
}

#define DeviceGuard EmulatedGuard

#undef STABLE_TORCH_LIBRARY_IMPL
#define STABLE_TORCH_LIBRARY_IMPL(ns, key, m) POSE_KERNELS_IMPL(ns, EMULATED_KEY_##key, m)
#define POSE_KERNELS_IMPL(ns, key, m) _STABLE_TORCH_LIBRARY_IMPL(ns, key, m, C10_UID)
#define EMULATED_KEY_CUDA CPU
#define EMULATED_KEY_CompositeExplicitAutograd CompositeExplicitAutograd

// What nvcc and setup.py define.
#define __CUDACC_VER_MAJOR__ 0
#define __CUDACC_VER_MINOR__ 0
#define __CUDACC_VER_BUILD__ 0
#define POSE_KERNELS_ARCHITECTURES "none, emulated"
