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

// Zeros to be added to; then rounded to the result.
template <class T>
class Sums : public Scratch<T> {
 public:
  explicit Sums(int64_t n) : Scratch<T>(n), n_(n) {
    std::fill_n(this->data(), n, T(0));
  }
  template <class Out>
  void round_to(Out* out) {
    std::transform(this->data(), this->data() + n_, out, [](T x) { return static_cast<Out>(x); });
  }

 private:
  int64_t n_;
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

// Brings in the pages of a fresh result of many MiB: faulting them one by one costs more than the arithmetic. Pages of
// 2 MiB are the quickest where the system has them at hand; a virtual machine whose host takes free ones away pays up to
// fifty times more for each that it must get back. Whoever meets a slow one goes on with small pages, and the next
// results, ever more of them, do not try.
// Advice only: where the system knows none of this, pages come in when they are written.
class FreshPages {
 public:
  // Memory that is not fresh has its pages.
  FreshPages(void* data, int64_t bytes, bool fresh = true) {
    const int64_t skip = -reinterpret_cast<intptr_t>(data) & (kPage - 1);
    first_ = static_cast<char*>(data) + skip;
    count_ = !fresh || bytes < 2 * kPage ? 0 : (bytes - skip) / kPage;
    large_ = count_ > 0 && wait().fetch_sub(1) <= 0;
  }

  // Of 2 MiB each.
  int64_t count() const {
    return count_;
  }

  void bring(int64_t i) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23  // Linux 5.14
#endif
    char* const page = first_ + i * kPage;
    if (!large_) {
      madvise(page, kPage, MADV_POPULATE_WRITE);
      return;
    }
    constexpr double kSlow = 600e-6;  // what 2 MiB of small pages cost; one large page is zeroed in some 200
    madvise(page, kPage, MADV_HUGEPAGE);
    const double start = seconds();
    madvise(page, kPage, MADV_POPULATE_WRITE);
    if (seconds() - start > kSlow) {
      if (large_.exchange(false)) {
        wait() = patience() = std::min<int64_t>(64, 2 * patience());
      }
    } else if (i == count_ - 1) {
      wait() = 0;
      patience() = 1;
    }
#else
    (void)i;
#endif
  }

 private:
  static constexpr int64_t kPage = 2 << 20;

  static double seconds() {  // of this thread: a busy machine is no reason
    timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
  }
  // Results that take small pages before large ones are tried again, and how many those were the last time.
  static std::atomic<int64_t>& wait() {
    static std::atomic<int64_t> results{0};
    return results;
  }
  static std::atomic<int64_t>& patience() {
    static std::atomic<int64_t> results{1};
    return results;
  }

  char* first_;
  int64_t count_;
  std::atomic<bool> large_;
};

inline void prefault(void* data, int64_t bytes) {
  FreshPages pages(data, bytes);
  for_each_task(pages.count(), [&](int64_t, int64_t i) { pages.bring(i); });
}

}  // namespace pose_kernels
