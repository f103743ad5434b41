// Run-time choice of the instruction set: one build serves every machine, with no build-machine flags.
//
// An operator keeps its loops in <op>.inl and compiles it once per instruction set:
//
//   #define SIMD_INL "cpu/<op>.inl"
//   #include "cpu/foreach_target.h"     // -> pose_kernels::baseline::..., ::avx2::..., ::avx512::...
//   SIMD_DISPATCH(function<float>)(args);
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#define SIMD_X86 1
#include <immintrin.h>
#endif

// Whether system and compiler know of Intel AMX; see amx.h.
#if defined(SIMD_X86) && defined(__linux__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#define SIMD_AMX 1
#endif

namespace pose_kernels {

// bf16: avx512, and products of bfloat16 through bf16_vectors.h; amx: those through amx.h.
enum class SimdLevel : int64_t { baseline = 0, avx2 = 1, avx512 = 2, bf16 = 3, amx = 4 };

// What this machine can do, or less where POSE_KERNELS_SIMD=baseline|avx2|avx512|bf16 asks for it (read once; another word
// raises).
SimdLevel simd_level();

}  // namespace pose_kernels

// Functions between the two are compiled for these features.
#define SIMD_PRAGMA(...) _Pragma(#__VA_ARGS__)
#ifdef __clang__
#define SIMD_BEGIN(features) \
  SIMD_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define SIMD_END SIMD_PRAGMA(clang attribute pop)
#else
#define SIMD_BEGIN(features) SIMD_PRAGMA(GCC push_options) SIMD_PRAGMA(GCC target(features))
#define SIMD_END SIMD_PRAGMA(GCC pop_options)
#endif

// Variadic for the commas between template arguments.
#ifdef SIMD_X86
#define SIMD_DISPATCH(...)                                                                    \
  (::pose_kernels::simd_level() >= ::pose_kernels::SimdLevel::avx512 ? avx512::__VA_ARGS__    \
       : ::pose_kernels::simd_level() == ::pose_kernels::SimdLevel::avx2 ? avx2::__VA_ARGS__  \
                                                                         : baseline::__VA_ARGS__)
#else
#define SIMD_DISPATCH(...) (baseline::__VA_ARGS__)
#endif
