// The kernels' source executed by a host compiler: what csrc/cuda/device.cuh asks of a GPU, on the CPU, for the tests.
//
// Every CUDA thread is a fiber with a stack of its own. A warp runs alone from one block barrier to the next, lanes
// taking turns at operations that cross lanes; blocks run one after the other. `reversed` turns the order of blocks,
// warps and lanes around: a race that a barrier should have prevented gives other bits then; `few_blocks` makes each
// block walk far, so that there are iterations to race; `truncating` makes matrix fragments add as tensor cores are said
// to, towards zero. A copy that runs ahead is held back until it is waited for, or made at once where the order is
// `reversed`: hardware may do either. Without `waiting` nothing is waited for. Shared memory starts as NaN (all bits one) in an allocation of the exact size, so that
// AddressSanitizer sees what leaves it. An operation of a warp that not all its lanes reach, or not at the same place,
// and a barrier that not all threads reach, abort.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <type_traits>
#include <vector>

#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#define __global__
#define __launch_bounds__(...)
#define DEVICE inline
#define HOST_DEVICE inline

namespace emulation {

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackBytes = 512 << 10;
#else
constexpr size_t kStackBytes = 128 << 10;
#endif
constexpr int kLanes = 32;

struct Dim {
  unsigned x = 0;
};

[[noreturn]] inline void fail(const char* message) {
  std::fprintf(stderr, "CUDA emulation: %s\n", message);
  std::abort();
}

inline void require(bool condition, const char* message) {
  if (!condition) {
    fail(message);
  }
}

// ---- fibers

#if defined(__x86_64__)
// Saves what a call preserves, changes stacks. No system call, unlike swapcontext.
extern "C" void pose_kernels_switch_stack(void** save, void* to);
asm(R"(
.text
.weak pose_kernels_switch_stack
.type pose_kernels_switch_stack, @function
pose_kernels_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size pose_kernels_switch_stack, .-pose_kernels_switch_stack
)");
#endif

// A copy into shared memory that has not been waited for.
struct Copy {
  void* to;
  const void* from;  // null: zeros
  size_t bytes;

  void make() const {
    if (from != nullptr) {
      std::memcpy(to, from, bytes);
    } else {
      std::memset(to, 0, bytes);
    }
  }
};

struct Fiber {
  std::deque<std::vector<Copy>> copies;  // groups of them, the last one not committed yet
  char* stack = nullptr;
  Dim thread;
  bool done = false;
#if defined(__x86_64__)
  void* top = nullptr;
#else
  ucontext_t context;
#endif
  void* fake_stack = nullptr;
};

enum class Wait { kNone, kWarp, kBlock };

struct Warp {
  int arrived = 0;
  uint64_t generation = 0;
  const void* place = nullptr;  // which operation
  alignas(64) unsigned char in[kLanes][128], out[kLanes][128];
};

struct State {
  Fiber scheduler;
  Fiber* current = nullptr;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::vector<Wait> waits;
  std::vector<uint64_t> awaited;
  Dim block;
  unsigned threads = 0;
  std::unique_ptr<unsigned char[]> shared;
  std::function<void()> kernel;
  bool reversed = false, few_blocks = false, truncating = false, waiting = true;
  uint64_t products = 0, operations = 0;  // of matrix fragments, and all that cross lanes
  void* stream = nullptr;  // the current one
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_bytes = 0;
};

inline State& state() {
  static State state;
  return state;
}

inline void switch_to(Fiber& from, Fiber& to, bool from_dies) {
  State& s = state();
#if defined(__SANITIZE_ADDRESS__)
  const void* bottom = to.stack != nullptr ? to.stack : s.scheduler_stack;
  const size_t bytes = to.stack != nullptr ? kStackBytes : s.scheduler_stack_bytes;
  __sanitizer_start_switch_fiber(from_dies ? nullptr : &from.fake_stack, bottom, bytes);
#else
  (void)s;
  (void)from_dies;
#endif
#if defined(__x86_64__)
  pose_kernels_switch_stack(&from.top, to.top);
#else
  swapcontext(&from.context, &to.context);
#endif
#if defined(__SANITIZE_ADDRESS__)
  const void* old_bottom;
  size_t old_bytes;
  __sanitizer_finish_switch_fiber(from.fake_stack, &old_bottom, &old_bytes);
#endif
}

inline void fiber_main() {
  State& s = state();
#if defined(__SANITIZE_ADDRESS__)
  const void* bottom;
  size_t bytes;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
  s.scheduler_stack = bottom;
  s.scheduler_stack_bytes = bytes;
#endif
  s.kernel();
  s.current->done = true;
  switch_to(*s.current, s.scheduler, true);
  fail("a finished thread was resumed");
}

inline void prepare(Fiber& fiber) {
  if (fiber.stack == nullptr) {
    void* memory =
        mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    require(memory != MAP_FAILED, "no memory for a stack");
    fiber.stack = static_cast<char*>(memory);
  }
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(fiber.stack, kStackBytes);  // a finished thread never left its last functions
#endif
  fiber.done = false;
  fiber.copies.assign(1, {});
  fiber.fake_stack = nullptr;
#if defined(__x86_64__)
  void** top = reinterpret_cast<void**>(fiber.stack + kStackBytes) - 2;
  *top = reinterpret_cast<void*>(&fiber_main);  // what the first switch returns to
  fiber.top = top - 6;
  std::memset(fiber.top, 0, 6 * sizeof(void*));
#else
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack;
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, &fiber_main, 0);
#endif
}

inline unsigned thread_number() {
  return state().current->thread.x;
}

inline void yield(Wait wait) {
  State& s = state();
  s.waits[thread_number()] = wait;
  switch_to(*s.current, s.scheduler, false);
}

// Lanes hand in `in`; the last one lets `operation(in, out)` make all results; every lane gets its own.
template <class In, class Out, class Operation>
Out together(const In& in, const Operation& operation) {
  static_assert(sizeof(In) <= 128 && sizeof(Out) <= 128);
  static const char place = 0;  // one for every operation
  State& s = state();
  Warp& warp = s.warps[thread_number() / kLanes];
  const unsigned lane = thread_number() % kLanes;
  if (warp.arrived == 0) {
    warp.place = &place;
  }
  require(warp.place == &place, "lanes of a warp meet in different operations");
  std::memcpy(warp.in[lane], &in, sizeof(In));
  if (++warp.arrived == kLanes) {
    ++s.operations;
    In all[kLanes];
    Out results[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      std::memcpy(&all[i], warp.in[i], sizeof(In));
    }
    operation(all, results);
    for (int i = 0; i < kLanes; ++i) {
      std::memcpy(warp.out[i], &results[i], sizeof(Out));
    }
    warp.arrived = 0;
    ++warp.generation;
  } else {
    s.awaited[thread_number()] = warp.generation + 1;
    yield(Wait::kWarp);
  }
  Out out;
  std::memcpy(&out, warp.out[lane], sizeof(Out));
  return out;
}

// Runs one warp until each of its lanes is at the block's barrier or done.
inline void run_warp(unsigned number) {
  State& s = state();
  Warp& warp = s.warps[number];
  for (;;) {
    bool ran = false, stuck = false;
    for (int i = 0; i < kLanes; ++i) {
      const unsigned thread = number * kLanes + (s.reversed ? kLanes - 1 - i : i);
      Fiber& fiber = s.fibers[thread];
      if (fiber.done || s.waits[thread] == Wait::kBlock) {
        continue;
      }
      if (s.waits[thread] == Wait::kWarp && s.awaited[thread] > warp.generation) {
        stuck = true;
        continue;
      }
      s.waits[thread] = Wait::kNone;
      s.current = &fiber;
      switch_to(s.scheduler, fiber, false);
      ran = true;
    }
    if (!ran) {
      return require(!stuck, "an operation of a warp was not reached by all its lanes");
    }
  }
}

inline void run_block(size_t shared_bytes) {
  State& s = state();
  s.shared.reset(new unsigned char[shared_bytes]);
  std::memset(s.shared.get(), 0xff, shared_bytes);
  for (unsigned i = 0; i < s.threads; ++i) {
    s.fibers[i].thread.x = i;
    prepare(s.fibers[i]);
  }
  std::fill_n(s.waits.begin(), s.threads, Wait::kNone);
  const unsigned warps = s.threads / kLanes;
  for (unsigned i = 0; i < warps; ++i) {
    s.warps[i].arrived = 0;
  }
  for (;;) {
    for (unsigned i = 0; i < warps; ++i) {
      run_warp(s.reversed ? warps - 1 - i : i);
    }
    const auto begin = s.fibers.begin(), end = begin + s.threads;
    const unsigned done = std::count_if(begin, end, [](const Fiber& fiber) { return fiber.done; });
    if (done == s.threads) {
      return;
    }
    require(done == 0, "a barrier was not reached by all threads");
    std::fill_n(s.waits.begin(), s.threads, Wait::kNone);
  }
}

}  // namespace emulation

#define threadIdx (::emulation::state().current->thread)
#define blockIdx (::emulation::state().block)

namespace pose_kernels {

using std::max;
using std::min;
using std::sqrt;

// ---- threads

inline void sync_block() {
  emulation::yield(emulation::Wait::kBlock);
}

template <class T>
T shuffle_xor(T value, int mask) {
  return emulation::together<std::pair<T, int>, T>(
      {value, mask}, [](const std::pair<T, int>* in, T* out) {
        for (int i = 0; i < kWarp; ++i) {
          out[i] = in[i ^ in[i].second].first;
        }
      });
}

template <class T>
T shuffle(T value, int lane) {
  return emulation::together<std::pair<T, int>, T>(
      {value, lane}, [](const std::pair<T, int>* in, T* out) {
        for (int i = 0; i < kWarp; ++i) {
          out[i] = in[in[i].second].first;
        }
      });
}

inline uint32_t ballot(bool predicate) {
  return emulation::together<bool, uint32_t>(predicate, [](const bool* in, uint32_t* out) {
    uint32_t bits = 0;
    for (int i = 0; i < kWarp; ++i) {
      bits |= static_cast<uint32_t>(in[i]) << i;
    }
    std::fill(out, out + kWarp, bits);
  });
}

inline int lowest_bit(uint32_t bits) {
  return __builtin_ctz(bits);
}

template <class Shared>
Shared& shared_memory() {
  return *reinterpret_cast<Shared*>(emulation::state().shared.get());
}

inline int made_again(int x) {
  return x;
}

// ---- arithmetic; to be compiled with -ffp-contract=off

template <class T>
T multiply_exactly(T a, T b) {
  return a * b;
}
template <class T>
T add_exactly(T a, T b) {
  return a + b;
}

template <class T>
T larger(T a, T b) {
  return a > b || a != a ? a : b;
}

inline float bits_to_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline uint32_t float_to_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

// cvt.rna: to nearest, ties away from zero.
inline float round_to_tf32(float x) {
  const uint32_t bits = float_to_bits(x);
  if ((bits & 0x7f800000u) == 0x7f800000u) {
    return x != x ? bits_to_float(0x7fffffffu) : x;
  }
  return bits_to_float((bits + 0x1000u) & ~0x1fffu);
}

// The hardware reads 19 bits of a TF32 operand, whatever the rest.
inline double operand(float x) {
  return x != x ? x : bits_to_float(float_to_bits(x) & ~0x1fffu);
}
inline double operand(double x) {
  return x;
}

// An accumulator holds a sum of exact products: to nearest, or what is nearer to zero.
inline float to_accumulator(double sum, float) {
  const float nearest = static_cast<float>(sum);
  const bool further = std::abs(static_cast<double>(nearest)) > std::abs(sum) && std::isfinite(sum);
  return emulation::state().truncating && further ? bits_to_float(float_to_bits(nearest) - 1) : nearest;
}
inline double to_accumulator(double sum, double) {
  return sum;
}

// Fragments as in the PTX manual: mma.m16n8k8 for .tf32, and m8n8k4 for .f64 in four.
template <class T>
void matrix_multiply_add(T (&c)[4], const T (&a)[4], T b0, T b1) {
  struct In {
    T c[4], a[4], b[2];
  };
  struct Out {
    T c[4];
  };
  const Out out = emulation::together<In, Out>(
      {{c[0], c[1], c[2], c[3]}, {a[0], a[1], a[2], a[3]}, {b0, b1}}, [](const In* in, Out* result) {
        ++emulation::state().products;
        double A[16][8], B[8][8];
        for (int lane = 0; lane < kWarp; ++lane) {
          const int g = lane / 4, t = lane % 4;
          A[g][t] = operand(in[lane].a[0]);
          A[g + 8][t] = operand(in[lane].a[1]);
          A[g][t + 4] = operand(in[lane].a[2]);
          A[g + 8][t + 4] = operand(in[lane].a[3]);
          B[t][g] = operand(in[lane].b[0]);
          B[t + 4][g] = operand(in[lane].b[1]);
        }
        for (int lane = 0; lane < kWarp; ++lane) {
          for (int e = 0; e < 4; ++e) {
            const int row = lane / 4 + (e / 2) * 8, column = lane % 4 * 2 + e % 2;
            double sum = static_cast<double>(in[lane].c[e]);
            for (int k = 0; k < 8; ++k) {
              sum += A[row][k] * B[k][column];
            }
            result[lane].c[e] = to_accumulator(sum, T{});
          }
        }
      });
  std::memcpy(c, out.c, sizeof(c));
}

// mma.m16n8k16 for .f16 and .bf16. A register holds two numbers, the first one in its lower half.
template <class Z>
void multiply_add_pairs(float (&c)[4], const float (&a)[4], float b0, float b1) {
  struct In {
    float c[4];
    Z a[4][2], b[2][2];
  };
  struct Out {
    float c[4];
  };
  In mine;
  const float b[2] = {b0, b1};
  std::memcpy(mine.c, c, sizeof(mine.c));
  std::memcpy(mine.a, a, sizeof(mine.a));
  std::memcpy(mine.b, b, sizeof(mine.b));
  const Out out = emulation::together<In, Out>(mine, [](const In* in, Out* result) {
    ++emulation::state().products;
    double A[16][16], B[16][8];
    for (int lane = 0; lane < kWarp; ++lane) {
      const int g = lane / 4, t = lane % 4;
      for (int i = 0; i < 2; ++i) {
        A[g][2 * t + i] = static_cast<float>(in[lane].a[0][i]);
        A[g + 8][2 * t + i] = static_cast<float>(in[lane].a[1][i]);
        A[g][2 * t + 8 + i] = static_cast<float>(in[lane].a[2][i]);
        A[g + 8][2 * t + 8 + i] = static_cast<float>(in[lane].a[3][i]);
        B[2 * t + i][g] = static_cast<float>(in[lane].b[0][i]);
        B[2 * t + 8 + i][g] = static_cast<float>(in[lane].b[1][i]);
      }
    }
    for (int lane = 0; lane < kWarp; ++lane) {
      for (int e = 0; e < 4; ++e) {
        const int row = lane / 4 + (e / 2) * 8, column = lane % 4 * 2 + e % 2;
        double sum = in[lane].c[e];
        for (int k = 0; k < 16; ++k) {
          sum += A[row][k] * B[k][column];
        }
        result[lane].c[e] = to_accumulator(sum, float{});
      }
    }
  });
  std::memcpy(c, out.c, sizeof(c));
}

// ---- memory

inline void check_alignment(const void* at, size_t bytes) {
  emulation::require(reinterpret_cast<uintptr_t>(at) % bytes == 0, "a misaligned vector access");
}
template <class T>
Quad<T> load_cached(const Quad<T>* at) {
  check_alignment(at, alignof(Quad<T>));
  return *at;
}
template <class T>
Quad<T> load_streaming(const Quad<T>* at) {
  return load_cached(at);
}
template <class T>
void store_streaming(Quad<T>* at, const Quad<T>& value) {
  check_alignment(at, alignof(Quad<T>));
  *at = value;
}

// ---- copies that run ahead

template <class T>
void copy_ahead(Quad<T>* to, const Quad<T>* from, bool inside) {
  check_alignment(to, alignof(Quad<T>));
  check_alignment(from, alignof(Quad<T>));
  const emulation::Copy copy{to, inside ? from : nullptr, sizeof(*to)};
  if (emulation::state().reversed) {
    copy.make();
  } else {
    emulation::state().current->copies.back().push_back(copy);
  }
}

inline void commit_copies() {
  emulation::state().current->copies.emplace_back();
}

template <int N>
void wait_for_copies() {
  auto& copies = emulation::state().current->copies;
  while (emulation::state().waiting && copies.size() > N + 1) {
    for (const emulation::Copy& copy : copies.front()) {
      copy.make();
    }
    copies.pop_front();
  }
}

// ---- host

using Stream = void*;

inline int64_t enough(int64_t n) {
  return emulation::state().few_blocks ? 1 : n;
}

template <class... Parameters, class... Arguments>
void launch(
    void (*kernel)(Parameters...), int64_t blocks, int threads, int shared_bytes, Stream stream,
    const Arguments&... arguments) {
  emulation::State& s = emulation::state();
  emulation::require(stream == s.stream, "a launch that is not on the current stream");
  emulation::require(
      threads % kWarp == 0 && threads <= 1024 && blocks <= INT32_MAX && shared_bytes <= 227 << 10,
      "a launch no GPU takes");
  s.threads = threads;
  s.fibers.resize(std::max<size_t>(s.fibers.size(), threads));
  s.warps.resize(std::max<size_t>(s.warps.size(), threads / kWarp));
  s.waits.resize(std::max<size_t>(s.waits.size(), threads));
  s.awaited.resize(std::max<size_t>(s.awaited.size(), threads));
  s.kernel = [&] { kernel(arguments...); };
  for (int64_t i = 0; i < blocks; ++i) {
    s.block.x = static_cast<unsigned>(s.reversed ? blocks - 1 - i : i);
    emulation::run_block(shared_bytes);
  }
  s.kernel = nullptr;
}

inline void sort_pairs(
    void* scratch, size_t& scratch_bytes, const uint32_t* keys, uint32_t* sorted_keys, const uint32_t* values,
    uint32_t* sorted_values, int64_t n, int bits, Stream stream) {
  emulation::require(stream == emulation::state().stream, "a sort that is not on the current stream");
  if (scratch == nullptr) {
    scratch_bytes = 1;
    return;
  }
  const uint32_t mask = bits >= 32 ? ~0u : (1u << bits) - 1;
  std::vector<int64_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(
      order.begin(), order.end(), [&](int64_t a, int64_t b) { return (keys[a] & mask) < (keys[b] & mask); });
  for (int64_t i = 0; i < n; ++i) {
    sorted_keys[i] = keys[order[i]];
    sorted_values[i] = values[order[i]];
  }
}

}  // namespace pose_kernels
