// Threads that compute.
#ifndef ATTENTION_KERNEL_THREAD_POOL_H_
#define ATTENTION_KERNEL_THREAD_POOL_H_

#include <cstdint>
#include <memory>

#include "absl/functional/function_ref.h"

namespace attention {

// A set of threads shared by any number of concurrent callers. Thread-safe.
class ThreadPool {
 public:
  // `threads` >= 1, the calling thread included: one computes on the calling
  // thread alone.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }

  // Calls task(i) once for each i in [0, count), earlier ones started first,
  // and returns when all have ended. Tasks must not throw.
  void ParallelFor(int64_t count, absl::FunctionRef<void(int64_t)> task);

 private:
  struct Impl;
  const int threads_;
  std::unique_ptr<Impl> impl_;
};

}  // namespace attention

#endif  // ATTENTION_KERNEL_THREAD_POOL_H_
