#include "cpu/simd.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iterator>

#include "common.h"
#include "cpu/amx.h"

namespace pose_kernels {

constexpr const char* kNames[] = {"baseline", "avx2", "avx512", "bf16", "amx"};

// The highest level asked for.
static SimdLevel wanted_level() {
  const char* wanted = std::getenv("POSE_KERNELS_SIMD");
  if (wanted == nullptr || !*wanted) {
    return SimdLevel::amx;
  }
  const auto same = [wanted](const char* name) { return !std::strcmp(wanted, name); };
  const auto found = std::find_if(std::begin(kNames), std::end(kNames), same);
  STD_TORCH_CHECK(
      found != std::end(kNames), "POSE_KERNELS_SIMD: expected baseline, avx2, avx512, bf16 or amx, got ", wanted);
  return static_cast<SimdLevel>(found - kNames);
}

[[maybe_unused]] static bool has_bf16() {
#ifdef SIMD_AMX
  return __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

static SimdLevel detect() {
  [[maybe_unused]] const SimdLevel wanted = wanted_level();
#ifdef SIMD_X86
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("f16c")) {
    return SimdLevel::baseline;
  }
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl")) {
    return std::min(wanted, SimdLevel::avx2);
  }
  // The permission is asked for where it is used only.
  if (wanted == SimdLevel::amx && amx::available()) {
    return wanted;
  }
  return std::min(wanted, has_bf16() ? SimdLevel::bf16 : SimdLevel::avx512);
#endif
  return SimdLevel::baseline;
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
