// Every kernel on awkward shapes, for AddressSanitizer and UBSan: inputs, results and scratch have exact sizes. Results
// must be finite (shared memory and scratch start as NaN) and the same in both orders of threads. An operator runs its
// own in sanitized/<op>.cpp, which build.py finds.
#pragma once

#include <cstdio>
#include <random>

#include "scratch.h"

using namespace pose_kernels;

inline int failures = 0;

using Run = Listed<void (*)()>;

template <class T>
struct Values : std::vector<T> {
  explicit Values(int64_t n, bool random = false) : std::vector<T>(n) {
    static std::mt19937 engine(0);
    std::normal_distribution<float> normal;
    for (T& x : *this) {
      x = static_cast<T>(random ? normal(engine) : NAN);
    }
  }
};

// The results of a call in one order of threads after the other.
template <class T>
class Results {
 public:
  void keep(const char* name, const Values<T>& x) {
    for (const T& value : x) {
      if (!std::isfinite(static_cast<double>(value))) {
        std::printf("%s: not finite\n", name);
        ++failures;
        break;
      }
    }
    all_.insert(all_.end(), x.begin(), x.end());
  }
  void compare(const char* name) const {
    const size_t half = all_.size() / 2;
    if (std::memcmp(all_.data(), all_.data() + half, half * sizeof(T)) != 0) {
      std::printf("%s: depends on the order of threads\n", name);
      ++failures;
    }
  }

 private:
  std::vector<T> all_;
};

// Calls f(context, reversed) in both orders.
template <class F>
void in_both_orders(F&& f) {
  for (bool reversed : {false, true}) {
    emulation::state().reversed = reversed;
    Scratch scratch;
    f(scratch.context(), reversed);
  }
}

struct Shape {
  int64_t batch, m, sources, targets;
};

// Calls f(shape, tf32, channels_last) for all shapes of a pair of features.
template <class F>
void for_shapes(F&& f) {
  for (const Shape& shape : {Shape{2, 9, 131, 66}, Shape{1, 1, 1, 1}, Shape{1, 50, 5, 133}}) {
    emulation::state().few_blocks = shape.batch == 2;
    f(shape, false, true);
    f(shape, true, false);
  }
  emulation::state().few_blocks = false;
}
