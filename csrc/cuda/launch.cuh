// How kernels are cut into blocks and where their scratch comes from.
#pragma once

#include <algorithm>
#include <functional>

#include "cuda/device.cuh"
#include "types.h"

namespace pose_kernels {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kTile = 128;  // in scratch positions are padded to whole tiles

// What a call launches its kernels with.
struct Context {
  Stream stream;
  std::function<void*(int64_t bytes)> allocate;  // device memory for the rest of the call, freed in the stream's order

  template <class T>
  T* allocate_array(int64_t n) const {
    return static_cast<T*>(allocate(n * static_cast<int64_t>(sizeof(T))));
  }
};

HOST_DEVICE int64_t round_up(int64_t n, int64_t step) {
  return (n + step - 1) / step * step;
}

HOST_DEVICE int64_t ceil_div(int64_t n, int64_t size) {
  return (n + size - 1) / size;
}

inline int64_t blocks_for(int64_t threads) {
  return ceil_div(threads, kThreads);
}

}  // namespace pose_kernels
