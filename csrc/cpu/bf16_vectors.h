// Products of bfloat16 in vectors (AVX512-BF16), accumulated in float32: twice as many at a time as of float32. Where
// simd_level() is bf16; the packing is that of amx.h, and so is what the hardware does with denormals.
#pragma once

#include "cpu/amx.h"

#ifdef SIMD_AMX

#define BF16_BEGIN SIMD_BEGIN("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")

namespace pose_kernels::bf16 {

// Rows of a product at a time: as many as registers hold, beside their operands.
constexpr int kHeight = 12;

// c [kHeight][amx::kWidth] = rows times pairs, neither of which has a low part, over their first m, and one that is
// zero where m is odd.
void multiply(int64_t m, const amx::Matrix& rows, const amx::Matrix& pairs, float* c);
// The first of these rows alone, to the bit.
void multiply_row(int64_t m, const amx::Matrix& rows, const amx::Matrix& pairs, float* c);

}  // namespace pose_kernels::bf16

#endif  // SIMD_AMX
