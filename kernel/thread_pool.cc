#include "kernel/thread_pool.h"

#include <tbb/global_control.h>
#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>

#include <algorithm>
#include <atomic>

namespace attention {

namespace {

// oneTBB starts no more threads than there are cores unless told otherwise, and
// of several limits the lowest holds: one for the process, above any pool, and
// each arena bounds itself.
void AllowAnyNumberOfThreads() {
  static const tbb::global_control limit(
      tbb::global_control::max_allowed_parallelism, 4096);
}

}  // namespace

struct ThreadPool::Impl {
  explicit Impl(int threads) : arena(threads) { AllowAnyNumberOfThreads(); }
  tbb::task_arena arena;
};

ThreadPool::ThreadPool(int threads)
    : threads_(threads < 1 ? 1 : threads),
      impl_(threads_ > 1 ? std::make_unique<Impl>(threads_) : nullptr) {}

ThreadPool::~ThreadPool() = default;

void ThreadPool::ParallelFor(int64_t count,
                             absl::FunctionRef<void(int64_t)> task) {
  if (impl_ == nullptr || count <= 1) {
    for (int64_t i = 0; i < count; ++i) task(i);
    return;
  }
  // Threads draw the next index: the order of starting is that of the indices,
  // so that long tasks put first leave no thread idle at the end.
  std::atomic<int64_t> next{0};
  const int64_t runners = std::min<int64_t>(count, threads_);
  // What oneTBB guarantees, said once more for ThreadSanitizer, which does not
  // see into it: all before comes before the tasks, all after after them.
  std::atomic<bool> begun;
  std::atomic<int64_t> ended{0};
  begun.store(true, std::memory_order_release);
  impl_->arena.execute([&] {
    tbb::parallel_for(
        int64_t{0}, runners,
        [&](int64_t) {
          begun.load(std::memory_order_acquire);
          for (int64_t i;
               (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) {
            task(i);
          }
          ended.fetch_add(1, std::memory_order_release);
        },
        tbb::simple_partitioner());
  });
  ended.load(std::memory_order_acquire);
}

}  // namespace attention
