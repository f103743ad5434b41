#include "cpu/amx.h"

#include <algorithm>
#include <cstring>

#ifdef SIMD_AMX

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace pose_kernels::amx {

bool available() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kBfloat16 = 1u << 22, kTile = 1u << 24;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & (kBfloat16 | kTile)) != (kBfloat16 | kTile)) {
    return false;
  }
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM; for all threads of the process
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace pose_kernels::amx

AMX_BEGIN
namespace pose_kernels::amx {

// ---- tiles: 0 and 1 accumulate, and 5 and 6 for another 16 rows; 2 and 7 are of the left operand, 3 and 4 of the right

struct alignas(64) Configuration {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static const Configuration kConfiguration;

Session::Session() {
  if (simd_level() == SimdLevel::amx) {
    _tile_loadconfig(&kConfiguration);
  }
}
Session::~Session() {
  if (simd_level() == SimdLevel::amx) {
    _tile_release();
  }
}

#define AMX_INLINE static inline __attribute__((always_inline))

constexpr int64_t kBytes = sizeof(Bits);

template <bool kTall>
AMX_INLINE void load_rows(const Bits* rows, int64_t stride) {
  _tile_loadd(2, rows, stride * kBytes);
  if (kTall) {
    _tile_loadd(7, rows + kHeight * stride, stride * kBytes);
  }
}

AMX_INLINE void load_pairs(const Bits* pairs, int64_t stride) {
  _tile_loadd(3, pairs, stride * kBytes);
  _tile_loadd(4, pairs + kWidth, stride * kBytes);
}

template <bool kTall>
AMX_INLINE void accumulate() {
  _tile_dpbf16ps(0, 2, 3);
  _tile_dpbf16ps(1, 2, 4);
  if (kTall) {
    _tile_dpbf16ps(5, 7, 3);
    _tile_dpbf16ps(6, 7, 4);
  }
}

// Low parts first.
template <bool kTall>
AMX_INLINE void accumulate_all(int64_t depth, const Matrix& rows, const Matrix& pairs) {
  for (int64_t k = 0; k < depth; ++k) {
    const int64_t row = k * kDepth, pair = k * kDepth / 2 * pairs.stride;
    if (rows.low != nullptr) {
      load_rows<kTall>(rows.low + row, rows.stride);
      load_pairs(pairs.high + pair, pairs.stride);
      accumulate<kTall>();
      load_rows<kTall>(rows.high + row, rows.stride);
    } else if (pairs.low != nullptr) {
      load_rows<kTall>(rows.high + row, rows.stride);
      load_pairs(pairs.low + pair, pairs.stride);
      accumulate<kTall>();
      load_pairs(pairs.high + pair, pairs.stride);
    } else {
      load_rows<kTall>(rows.high + row, rows.stride);
      load_pairs(pairs.high + pair, pairs.stride);
    }
    accumulate<kTall>();
  }
}

void multiply(int64_t depth, const Matrix& rows, const Matrix& pairs, float* c, int64_t stride) {
  const int64_t bytes = stride * static_cast<int64_t>(sizeof(float));
  _tile_zero(0);
  _tile_zero(1);
  accumulate_all<false>(depth, rows, pairs);
  _tile_stored(0, c, bytes);
  _tile_stored(1, c + kWidth / 2, bytes);
}

AMX_INLINE void store_tall(float* c, int64_t stride) {
  const int64_t bytes = stride * static_cast<int64_t>(sizeof(float));
  _tile_stored(0, c, bytes);
  _tile_stored(1, c + kWidth / 2, bytes);
  _tile_stored(5, c + kHeight * stride, bytes);
  _tile_stored(6, c + kHeight * stride + kWidth / 2, bytes);
}

void multiply_tall(int64_t depth, const Matrix& rows, const Matrix& pairs, float* c, int64_t stride) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(5);
  _tile_zero(6);
  accumulate_all<true>(depth, rows, pairs);
  store_tall(c, stride);
}

void add_tall(int64_t depth, const Matrix& rows, const Matrix& pairs, float* c, int64_t stride) {
  const int64_t bytes = stride * static_cast<int64_t>(sizeof(float));
  _tile_loadd(0, c, bytes);
  _tile_loadd(1, c + kWidth / 2, bytes);
  _tile_loadd(5, c + kHeight * stride, bytes);
  _tile_loadd(6, c + kHeight * stride + kWidth / 2, bytes);
  accumulate_all<true>(depth, rows, pairs);
  store_tall(c, stride);
}

// ---- packing

// Two values of which the first lies first.
static inline uint32_t pair(Bits first, Bits second) {
  return first | static_cast<uint32_t>(second) << 16;
}

void pack_rows(const Bits* x, int64_t m, int64_t stride, int64_t count, int64_t padded, int64_t depth, Bits* rows) {
  const int64_t row = depth * kDepth;
  constexpr int64_t kBlock = 32;  // columns whose rows are filled at a time
  for (int64_t first = 0; first < padded; first += kBlock) {
    const int64_t last = std::min(padded, first + kBlock), valid = std::clamp(count, first, last);
    for (int64_t k = 0; k + 1 < m; k += 2) {
      const Bits* even = x + k * stride;
      for (int64_t i = first; i < valid; ++i) {
        const uint32_t both = pair(even[i], even[stride + i]);
        std::memcpy(rows + i * row + k, &both, sizeof(both));
      }
    }
    for (int64_t i = first; i < last; ++i) {
      std::fill(rows + i * row + (i < valid ? m : 0), rows + (i + 1) * row, Bits(0));
      if (m % 2 != 0 && i < valid) {
        rows[i * row + m - 1] = x[(m - 1) * stride + i];
      }
    }
  }
}

void pack_panels(const Bits* x, int64_t m, int64_t stride, int64_t count, int64_t padded, int64_t depth, Bits* pairs) {
  for (int64_t first = 0; first < padded; first += kWidth) {
    const int64_t valid = std::clamp<int64_t>(count - first, 0, kWidth);
    for (int64_t k = 0; k < depth * kDepth; k += 2, pairs += 2 * kWidth) {
      const Bits* even = x + k * stride + first;
      const Bits* odd = even + stride;
      if (k + 1 < m && valid == kWidth) {
        for (int64_t i = 0; i < kWidth; ++i) {
          pairs[2 * i] = even[i];
          pairs[2 * i + 1] = odd[i];
        }
        continue;
      }
      for (int64_t i = 0; i < kWidth; ++i) {
        pairs[2 * i] = k < m && i < valid ? even[i] : Bits(0);
        pairs[2 * i + 1] = k + 1 < m && i < valid ? odd[i] : Bits(0);
      }
    }
  }
}

void pack_columns(const Bits* x, int64_t m, int64_t stride, int64_t count, int64_t padded, int64_t depth, Bits* pairs) {
  constexpr int64_t kBlock = 32;  // columns, whose cache lines are used up
  for (int64_t panel = 0; panel < depth * kDepth; panel += kWidth) {
    for (int64_t first = 0; first < padded; first += kBlock) {
      const int64_t last = std::min(padded, first + kBlock), whole = std::clamp(count, first, last) / 2 * 2;
      for (int64_t k = panel; k < panel + kWidth; ++k) {
        const Bits* from = x + k * stride;
        Bits* to = pairs + (panel * padded / 2 + k - panel) * 2;
        const int64_t valid = k < m ? whole : first;
        for (int64_t i = first; i < valid; i += 2) {
          std::memcpy(to + i * kWidth, from + i, 2 * sizeof(Bits));
        }
        for (int64_t i = valid; i < last; i += 2) {
          const uint32_t both = pair(k < m && i < count ? from[i] : Bits(0), 0);
          std::memcpy(to + i * kWidth, &both, sizeof(both));
        }
      }
    }
  }
}

}  // namespace pose_kernels::amx
SIMD_END

#else

namespace pose_kernels::amx {

bool available() {
  return false;
}

}  // namespace pose_kernels::amx

#endif  // SIMD_AMX
