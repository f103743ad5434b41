// Memory for the loops: aligned scratch, and large results on large pages.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace pose_kernels {

// Uninitialised, aligned to a cache line.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t n)
      : data_(static_cast<T*>(::operator new(static_cast<size_t>(n) * sizeof(T), std::align_val_t(64)))) {}
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() {
    ::operator delete(data_, std::align_val_t(64));
  }
  T* data() {
    return data_;
  }

 private:
  T* data_;
};

// A fresh result of tens of MiB costs more in page faults than in arithmetic; 2 MiB pages take most of that away.
// Advice only: harmless where the system has none to give.
inline void advise_large_pages(void* data, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = 2 << 20;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(data) + kPage - 1) / kPage * kPage;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(bytes)) / kPage * kPage;
  if (last >= first + 2 * kPage) {
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
  }
#else
  (void)data;
  (void)bytes;
#endif
}

}  // namespace pose_kernels
