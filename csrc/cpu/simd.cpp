#include "cpu/simd.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "common.h"

namespace pose_kernels {

static SimdLevel detect() {
  SimdLevel level = SimdLevel::baseline;
#ifdef SIMD_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
    level = SimdLevel::avx2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      level = SimdLevel::avx512;
    }
  }
#endif
  if (const char* wanted = std::getenv("POSE_KERNELS_SIMD")) {
    if (!std::strcmp(wanted, "baseline")) {
      level = SimdLevel::baseline;
    } else if (!std::strcmp(wanted, "avx2")) {
      level = std::min(level, SimdLevel::avx2);
    } else {
      STD_TORCH_CHECK(
          !std::strcmp(wanted, "avx512") || !*wanted, "POSE_KERNELS_SIMD: expected baseline, avx2 or avx512, got ", wanted);
    }
  }
  return level;
}

SimdLevel simd_level() {
  static const SimdLevel level = detect();
  return level;
}

static int64_t simd_level_op() {
  return static_cast<int64_t>(simd_level());
}

}  // namespace pose_kernels

STABLE_TORCH_LIBRARY_IMPL(pose_kernels, CompositeExplicitAutograd, m) {
  m.impl("simd_level", TORCH_BOX(&pose_kernels::simd_level_op));
}
