#include "cpu/bf16_vectors.h"

#include <cstring>

#ifdef SIMD_AMX

BF16_BEGIN
namespace pose_kernels::bf16 {

static inline __attribute__((always_inline)) __m512bh as_pairs(__m512i bits) {
  return reinterpret_cast<__m512bh>(bits);
}

template <int kRows>
static inline __attribute__((always_inline)) void multiply_rows(
    int64_t m, const amx::Matrix& rows, const amx::Matrix& pairs, float* c) {
  constexpr int kVecs = 2, kLanes = amx::kWidth / kVecs;
  __m512 sums[kRows][kVecs];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
    sums[i][0] = sums[i][1] = _mm512_setzero_ps();
  }
  for (int64_t k = 0; k < (m + 1) / 2; ++k) {
    const amx::Bits* const right = pairs.high + k * pairs.stride;
    const __m512bh first = as_pairs(_mm512_loadu_si512(right)), second = as_pairs(_mm512_loadu_si512(right + 2 * kLanes));
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      int32_t both;
      std::memcpy(&both, rows.high + i * rows.stride + 2 * k, sizeof(both));
      const __m512bh left = as_pairs(_mm512_set1_epi32(both));
      sums[i][0] = _mm512_dpbf16_ps(sums[i][0], left, first);
      sums[i][1] = _mm512_dpbf16_ps(sums[i][1], left, second);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
    _mm512_storeu_ps(c + i * amx::kWidth, sums[i][0]);
    _mm512_storeu_ps(c + i * amx::kWidth + kLanes, sums[i][1]);
  }
}

void multiply(int64_t m, const amx::Matrix& rows, const amx::Matrix& pairs, float* c) {
  multiply_rows<kHeight>(m, rows, pairs, c);
}

void multiply_row(int64_t m, const amx::Matrix& rows, const amx::Matrix& pairs, float* c) {
  multiply_rows<1>(m, rows, pairs, c);
}

}  // namespace pose_kernels::bf16
SIMD_END

#endif  // SIMD_AMX
