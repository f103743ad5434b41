// Includes SIMD_INL once per instruction set, each time in a namespace of its own. No include guard: meant for repeats.
// Inside, SIMD_BYTES is the width of a vector. The file may hold templates and plain functions; lambdas only where
// they do no vector work themselves (clang's attribute does not reach them).

#define SIMD_BYTES 16
namespace pose_kernels::baseline {
#include "cpu/simd.inl"
#include SIMD_INL
}  // namespace pose_kernels::baseline
#undef SIMD_BYTES

#ifdef SIMD_X86

#define SIMD_BYTES 32
#define SIMD_AVX2 1
SIMD_BEGIN("avx2,fma,f16c")
namespace pose_kernels::avx2 {
#include "cpu/simd.inl"
#include SIMD_INL
}  // namespace pose_kernels::avx2
SIMD_END
#undef SIMD_BYTES
#undef SIMD_AVX2

#define SIMD_BYTES 64
#define SIMD_AVX512 1
SIMD_BEGIN("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")
namespace pose_kernels::avx512 {
#include "cpu/simd.inl"
#include SIMD_INL
}  // namespace pose_kernels::avx512
SIMD_END
#undef SIMD_BYTES
#undef SIMD_AVX512

#endif  // SIMD_X86
#undef SIMD_INL
