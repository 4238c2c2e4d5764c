// Threads that run jobs in the order they come.
#ifndef ATTENTION_SERVER_WORKER_THREADS_H_
#define ATTENTION_SERVER_WORKER_THREADS_H_

#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/functional/any_invocable.h"

namespace attention::server {

// Thread-safe. The destructor runs every job that was submitted before it
// returns; none may be submitted after it began.
class WorkerThreads {
 public:
  explicit WorkerThreads(int threads);
  ~WorkerThreads();
  WorkerThreads(const WorkerThreads&) = delete;
  WorkerThreads& operator=(const WorkerThreads&) = delete;

  // Never blocks. The queue has no bound of its own: ByteBudget bounds it.
  void Submit(absl::AnyInvocable<void()> job);

 private:
  void Run();

  std::mutex mutex_;
  std::condition_variable changed_;
  // Both guarded by mutex_.
  std::deque<absl::AnyInvocable<void()>> jobs_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_WORKER_THREADS_H_
