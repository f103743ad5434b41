// Scratch memory of an emulated call: exact sizes for AddressSanitizer, NaN (all bits one) until it is written. And a
// list of functions, one per file.
#pragma once

#include <cstring>
#include <memory>
#include <vector>

#include "cuda/launch.cuh"

// An object at the top of a file adds a function to the list.
template <class Function>
struct Listed {
  explicit Listed(Function function) {
    all().push_back(function);
  }
  static std::vector<Function>& all() {
    static std::vector<Function> functions;
    return functions;
  }
};

class Scratch {
 public:
  pose_kernels::Context context() {
    return {nullptr, [this](int64_t bytes) {
              blocks_.emplace_back(new char[bytes > 0 ? bytes : 1]);
              std::memset(blocks_.back().get(), 0xff, bytes);
              return static_cast<void*>(blocks_.back().get());
            }};
  }

 private:
  std::vector<std::unique_ptr<char[]>> blocks_;
};
