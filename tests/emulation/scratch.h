// Scratch memory of an emulated call: exact sizes for AddressSanitizer, NaN (all bits one) until it is written.
#pragma once

#include <cstring>
#include <memory>
#include <vector>

#include "cuda/product.cuh"

class Scratch {
 public:
  pose_kernels::Allocate allocate() {
    return [this](int64_t bytes) {
      blocks_.emplace_back(new char[bytes > 0 ? bytes : 1]);
      std::memset(blocks_.back().get(), 0xff, bytes);
      return static_cast<void*>(blocks_.back().get());
    };
  }

 private:
  std::vector<std::unique_ptr<char[]>> blocks_;
};
