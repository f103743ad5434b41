// For the loops: aligned scratch, tasks for threads that bring scratch of their own, the pages of large results.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <ctime>
#include <new>

#include "common.h"

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

// How many threads for_each_task uses.
inline int64_t count_workers(int64_t tasks) {
  return std::min<int64_t>(tasks, torch::stable::get_num_threads());
}

// f(worker, task) for every task, the next one to whoever is free. Scratch belongs to workers and is allocated before,
// by the caller: what threads allocate themselves stays in the pools that malloc keeps for each of them.
template <class F>
void for_each_task(int64_t tasks, const F& f) {
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, count_workers(tasks), 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      for (int64_t task = next++; task < tasks; task = next++) {
        f(worker, task);
      }
    }
  });
}

// Brings in the pages of a fresh result of many MiB, all threads at once: faulting them one by one costs more than the
// arithmetic. Pages of 2 MiB are the quickest where the system has them at hand; a virtual machine whose host takes
// free ones away pays up to fifty times more for each that it must get back. So each thread goes on with them until they
// have cost what small pages would cost for its whole share, and then takes small ones: at worst twice the time, and
// the large pages that it did get are at hand the next time.
// Advice only: where the system knows none of this, pages come in when they are written.
inline void prefault(void* data, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23  // Linux 5.14
#endif
  constexpr int64_t kPage = 2 << 20;
  constexpr double kSmall = 600e-6;  // 2 MiB in small pages; as one page it takes some 200
  const auto seconds = [] {  // of this thread: a busy machine is no reason
    timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
  };
  const int64_t skip = -reinterpret_cast<intptr_t>(data) & (kPage - 1);
  char* const first = static_cast<char*>(data) + skip;
  const int64_t pages = (bytes - skip) / kPage;
  if (pages < 2) {
    return;
  }
  torch::stable::parallel_for(0, pages, 1, [&](int64_t begin, int64_t end) {
    madvise(first + begin * kPage, (end - begin) * kPage, MADV_HUGEPAGE);
    const double allowed = seconds() + kSmall * static_cast<double>(end - begin);
    while (begin < end && seconds() < allowed) {
      madvise(first + begin * kPage, kPage, MADV_POPULATE_WRITE);
      ++begin;
    }
    if (begin < end) {
      madvise(first + begin * kPage, (end - begin) * kPage, MADV_NOHUGEPAGE);
      madvise(first + begin * kPage, (end - begin) * kPage, MADV_POPULATE_WRITE);
    }
  });
#else
  (void)data;
  (void)bytes;
#endif
}

}  // namespace pose_kernels
