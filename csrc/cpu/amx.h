// Products of bfloat16 in the tile registers of Intel AMX, accumulated in float32; where simd_level() is amx.
//
// c [16][32] = a [16][K] b [K][32], K in steps of kDepth. The left operand lies in `rows` [.][K], of which 16 are read
// whatever is used; the right one in `pairs` [K / 2][.][2]: two values of a column side by side. What the hardware has
// of its own: denormals are zeros, as operands and as results.
#pragma once

#include <cstdint>

#include "cpu/simd.h"

namespace pose_kernels::amx {

// Whether this machine can, and its system lets it; asks for the permission.
bool available();

}  // namespace pose_kernels::amx

#ifdef SIMD_AMX

#define AMX_BEGIN SIMD_BEGIN("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,amx-tile,amx-bf16")

AMX_BEGIN
namespace pose_kernels::amx {

using Bits = uint16_t;  // of a bfloat16

constexpr int kHeight = 16;
constexpr int kDepth = 32;
constexpr int kWidth = 32;

// Configures the tile registers of this thread, and gives them back: every use of the rest lies within one. Does
// nothing where simd_level() is less.
class Session {
 public:
  Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;
  ~Session();
};

// A matrix of one of the two kinds; `stride` between its rows, or between its rows of pairs, in Bits. What is float32
// is two of them: the leading bits, and in `low` the rest of it to 2^-17 of the value.
struct Matrix {
  const Bits* high;
  const Bits* low;  // or null
  int64_t stride;
};

// c = rows times pairs. At most one of the two has a low part. `depth` is in steps of kDepth; c has `stride` floats
// between rows.
void multiply(int64_t depth, const Matrix& rows, const Matrix& pairs, float* c, int64_t stride);
// The same for 2 kHeight rows, and added to c.
void multiply_tall(int64_t depth, const Matrix& rows, const Matrix& pairs, float* c, int64_t stride);
void add_tall(int64_t depth, const Matrix& rows, const Matrix& pairs, float* c, int64_t stride);

// Packing of the columns [0, count) of x [m][stride], with zeros beyond them and beyond m up to `depth` steps.
// Columns become rows [padded][depth kDepth].
void pack_rows(const Bits* x, int64_t m, int64_t stride, int64_t count, int64_t padded, int64_t depth, Bits* rows);
// Columns in panels of kWidth, rows in pairs: [padded / kWidth][depth kDepth / 2][kWidth][2].
void pack_panels(const Bits* x, int64_t m, int64_t stride, int64_t count, int64_t padded, int64_t depth, Bits* pairs);
// Columns in pairs, rows in panels of kWidth: [depth kDepth / kWidth][padded / 2][kWidth][2].
void pack_columns(const Bits* x, int64_t m, int64_t stride, int64_t count, int64_t padded, int64_t depth, Bits* pairs);

}  // namespace pose_kernels::amx
SIMD_END

#endif  // SIMD_AMX
