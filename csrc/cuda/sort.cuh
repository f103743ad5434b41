// A stable sort of pairs; apart from device.cuh because it takes long to compile.
#pragma once

#include "cuda/device.cuh"

#ifndef POSE_KERNELS_EMULATE

#include <cub/device/device_radix_sort.cuh>

namespace pose_kernels {

// Sorts (key, value) pairs by the lowest `bits` of their keys; equal keys keep their order. With scratch == nullptr it
// only says how many bytes of scratch it needs.
inline void sort_pairs(
    void* scratch, size_t& scratch_bytes, const uint32_t* keys, uint32_t* sorted_keys, const uint32_t* values,
    uint32_t* sorted_values, int64_t n, int bits, Stream stream) {
  STD_CUDA_CHECK(cub::DeviceRadixSort::SortPairs(
      scratch, scratch_bytes, keys, sorted_keys, values, sorted_values, n, 0, bits, stream));
}

}  // namespace pose_kernels

#endif
