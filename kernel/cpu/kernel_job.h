// What all jobs of the kernel share: a failed allocation ends the job, and how
// it ended becomes a status. Internal.
#ifndef ATTENTION_KERNEL_CPU_KERNEL_JOB_H_
#define ATTENTION_KERNEL_CPU_KERNEL_JOB_H_

#include <atomic>
#include <cstdint>
#include <new>
#include <utility>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "base/executor.h"

namespace attention {

// Multiply-adds times two below which a job runs on the calling thread: waking
// others takes as long.
inline constexpr double kInlineFlops = 1e6;

// An error, without its text where there is no memory even for that.
absl::Status ErrorOf(absl::StatusCode code, absl::string_view text);
// ResourceExhausted.
absl::Status NoMemory();

// What `function` returns, or NoMemory() if it throws std::bad_alloc.
template <typename Function>
auto Guarded(const Function& function) -> decltype(function()) {
  try {
    return function();
  } catch (const std::bad_alloc&) {
    return NoMemory();
  }
}

// Thread-safe as Executor::Job is.
class KernelJob : public Executor::Job {
 public:
  // `done` is called once, at the end, and may destroy the job.
  explicit KernelJob(absl::AnyInvocable<void(absl::Status)> done)
      : done_(std::move(done)) {}

  int64_t NextStage() final;
  bool RunTask(int64_t task, const Turn& turn) final;
  void Done(JobEnd end) final;

 protected:
  // NextStage() and RunTask(), which may throw std::bad_alloc here. No further
  // call of either begins after that.
  virtual int64_t Next() = 0;
  virtual bool Run(int64_t task, const Turn& turn) = 0;
  // Called at the end, before done(): frees the job's memory. `ok` if all
  // stages have run.
  virtual void End(bool ok) = 0;

 private:
  std::atomic<bool> failed_{false};
  absl::AnyInvocable<void(absl::Status)> done_;
};

// Runs a job of so many flops and blocks until it is done.
void RunBlocking(KernelJob& job, double flops, Executor& executor,
                 const std::atomic<bool>* cancelled);

}  // namespace attention

#endif  // ATTENTION_KERNEL_CPU_KERNEL_JOB_H_
