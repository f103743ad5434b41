// Adding to memory that others add to at the same time: in any order, so that the last bits vary from run to run.
#pragma once

#include "cuda/device.cuh"

namespace pose_kernels {

template <class T>
DEVICE void add_in_any_order(T* to, T value) {
#ifdef POSE_KERNELS_EMULATE
  *to += value;  // its threads take turns
#else
  atomicAdd(to, value);
#endif
}

}  // namespace pose_kernels
