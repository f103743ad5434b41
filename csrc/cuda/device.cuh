// What the kernels ask of the device, a wrapper each, and how they are launched: the only file that knows CUDA's
// intrinsics, PTX and <<< >>>. With POSE_KERNELS_EMULATE a host compiler gets the same functions from
// tests/emulation/cuda_emulation.h, which runs the kernels' source on the CPU for the tests.
#pragma once

#include "types.h"

namespace pose_kernels {

constexpr int kWarp = 32;

// 16 bytes of float, half of that or twice that in other types.
template <class T>
struct alignas(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) Quad {
  T v[4];
};

template <class T>
struct alignas(2 * sizeof(T)) Pair {
  T v[2];
};

}  // namespace pose_kernels

#ifdef POSE_KERNELS_EMULATE
#include "cuda_emulation.h"
#else

#include <cuda_runtime.h>
#include <torch/csrc/stable/macros.h>

namespace pose_kernels {

#define DEVICE __device__ __forceinline__
#define HOST_DEVICE __host__ __device__ __forceinline__

// ---- threads

DEVICE void sync_block() {
  __syncthreads();
}

// All 32 lanes take part in everything that crosses lanes.
template <class T>
DEVICE T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

template <class T>
DEVICE T shuffle(T value, int lane) {
  return __shfl_sync(0xffffffffu, value, lane);
}

DEVICE uint32_t ballot(bool predicate) {
  return __ballot_sync(0xffffffffu, predicate);
}

DEVICE int lowest_bit(uint32_t bits) {
  return __ffs(static_cast<int>(bits)) - 1;
}

// The block's dynamic shared memory, uninitialised.
template <class Shared>
DEVICE Shared& shared_memory() {
  extern __shared__ __align__(16) unsigned char bytes[];
  return *reinterpret_cast<Shared*>(bytes);
}

// The same number, but the compiler does not know it: what is made of it in a loop is not kept in registers meanwhile.
DEVICE int made_again(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

// ---- arithmetic

// Never contracted into a fused multiply-add: positions must come out as on the CPU.
DEVICE float multiply_exactly(float a, float b) {
  return __fmul_rn(a, b);
}
DEVICE double multiply_exactly(double a, double b) {
  return __dmul_rn(a, b);
}
DEVICE float add_exactly(float a, float b) {
  return __fadd_rn(a, b);
}
DEVICE double add_exactly(double a, double b) {
  return __dadd_rn(a, b);
}

// NaN is the largest value.
DEVICE float larger(float a, float b) {
  float c;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(c) : "f"(a), "f"(b));
  return c;
}
DEVICE double larger(double a, double b) {
  return a > b || a != a ? a : b;
}

// To 10 bits of mantissa, to nearest.
DEVICE float round_to_tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return __uint_as_float(bits);
}

// c += a b for a 16 x 8 and an 8 x 8 matrix spread over the warp. With g = lane / 4 and t = lane % 4:
//   a: (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4);  b: (t, g), (t + 4, g);
//   c: (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1).
// float multiplies TF32 numbers exactly and adds in float32.
DEVICE void matrix_multiply_add(float (&c)[4], const float (&a)[4], float b0, float b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
        "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
}

// The same of 16-bit numbers, two in a register, the first one in its lower half, for 16 x 16 and 16 x 8:
//   a: (g, 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8), and the next column of each;
//   b: (2t, g), (2t + 8, g), and the next row of each.
template <class Z>
DEVICE void multiply_add_pairs(float (&c)[4], const float (&a)[4], float b0, float b1) {
#define POSE_KERNELS_MULTIPLY_PAIRS(TYPE) \
  asm("mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, " \
      "{%0, %1, %2, %3};" \
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) \
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])), \
        "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)))
  if constexpr (std::is_same_v<Z, Half>) {
    POSE_KERNELS_MULTIPLY_PAIRS("f16");
  } else {
    POSE_KERNELS_MULTIPLY_PAIRS("bf16");
  }
#undef POSE_KERNELS_MULTIPLY_PAIRS
}

DEVICE void matrix_multiply_add(double& c0, double& c1, double a, double b) {
  asm("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
      : "+d"(c0), "+d"(c1)
      : "d"(a), "d"(b));
}
DEVICE void matrix_multiply_add(double (&c)[4], const double (&a)[4], double b0, double b1) {
  matrix_multiply_add(c[0], c[1], a[0], b0);
  matrix_multiply_add(c[0], c[1], a[2], b1);
  matrix_multiply_add(c[2], c[3], a[1], b0);
  matrix_multiply_add(c[2], c[3], a[3], b1);
}

// ---- memory

template <class To, class From>
DEVICE To bit_copy(const From& from) {
  static_assert(sizeof(From) == sizeof(To), "");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

// A quad of T as the hardware loads and stores it.
struct TwoVectors {
  uint4 v[2];
};

// Read-only for the whole kernel, and read again soon.
template <class T>
DEVICE Quad<T> load_cached(const Quad<T>* at) {
  const uint4* from = reinterpret_cast<const uint4*>(at);
  if constexpr (sizeof(T) == 4) {
    return bit_copy<Quad<T>>(__ldg(from));
  } else {
    return bit_copy<Quad<T>>(TwoVectors{{__ldg(from), __ldg(from + 1)}});
  }
}

// Read or written once: first to leave the cache.
template <class T>
DEVICE Quad<T> load_streaming(const Quad<T>* at) {
  if constexpr (sizeof(T) == 2) {
    return bit_copy<Quad<T>>(__ldcs(reinterpret_cast<const uint2*>(at)));
  } else if constexpr (sizeof(T) == 4) {
    return bit_copy<Quad<T>>(__ldcs(reinterpret_cast<const uint4*>(at)));
  } else {
    const uint4* from = reinterpret_cast<const uint4*>(at);
    return bit_copy<Quad<T>>(TwoVectors{{__ldcs(from), __ldcs(from + 1)}});
  }
}

template <class T>
DEVICE void store_streaming(Quad<T>* at, const Quad<T>& value) {
  if constexpr (sizeof(T) == 2) {
    __stcs(reinterpret_cast<uint2*>(at), bit_copy<uint2>(value));
  } else if constexpr (sizeof(T) == 4) {
    __stcs(reinterpret_cast<uint4*>(at), bit_copy<uint4>(value));
  } else {
    const TwoVectors two = bit_copy<TwoVectors>(value);
    __stcs(reinterpret_cast<uint4*>(at), two.v[0]);
    __stcs(reinterpret_cast<uint4*>(at) + 1, two.v[1]);
  }
}

// ---- copies from global into shared memory that run while the thread goes on

// A quad; zeros where it is not `inside`. The thread that issued a copy may read it once it has waited.
template <class T>
DEVICE void copy_ahead(Quad<T>* to, const Quad<T>* from, bool inside) {
  const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(to));
  if constexpr (sizeof(T) == 2) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(at), "l"(from), "r"(inside ? 8 : 0) : "memory");
  } else {
#pragma unroll
    for (unsigned i = 0; i < sizeof(Quad<T>); i += 16) {
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at + i),
                   "l"(reinterpret_cast<const char*>(from) + i), "r"(inside ? 16 : 0)
                   : "memory");
    }
  }
}

// What was copied since the last call is a group.
DEVICE void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Until all groups but the last N have come.
template <int N>
DEVICE void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// ---- host

using Stream = cudaStream_t;

// How many blocks (or threads) fill a GPU: a constant, for sums must have the same order on every one of them. The
// emulation can ask for few, so that its small examples walk over many tiles per block.
inline int64_t enough(int64_t n) {
  return n;
}

template <class... Parameters, class... Arguments>
void launch(
    void (*kernel)(Parameters...), int64_t blocks, int threads, int shared_bytes, Stream stream,
    const Arguments&... arguments) {
  if (blocks == 0) {
    return;
  }
  if (shared_bytes > 48 << 10) {
    STD_CUDA_CHECK(cudaFuncSetAttribute(
        reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
  }
  kernel<<<static_cast<unsigned>(blocks), threads, shared_bytes, stream>>>(arguments...);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace pose_kernels

#endif
