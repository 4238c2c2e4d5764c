#include "kernel/cpu/kernel_job.h"

#include <cstdint>
#include <new>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace attention {

absl::Status ErrorOf(absl::StatusCode code, absl::string_view text) {
  try {
    return absl::Status(code, text);
  } catch (const std::bad_alloc&) {
    return absl::Status(code, "");
  }
}

absl::Status NoMemory() {
  return ErrorOf(absl::StatusCode::kResourceExhausted,
                 "memory to compute in could not be allocated");
}

int64_t KernelJob::NextStage() {
  if (failed_) return 0;
  try {
    return Next();
  } catch (const std::bad_alloc&) {
    failed_ = true;
    return 0;
  }
}

bool KernelJob::RunTask(int64_t task, const Turn& turn) {
  if (failed_) return true;
  try {
    return Run(task, turn);
  } catch (const std::bad_alloc&) {
    failed_ = true;
    return true;
  }
}

void KernelJob::Done(JobEnd end) {
  absl::Status status;
  if (end == JobEnd::kCancelled) {
    status = ErrorOf(absl::StatusCode::kCancelled, "cancelled by the caller");
  } else if (end == JobEnd::kDeadlineExceeded) {
    status =
        ErrorOf(absl::StatusCode::kDeadlineExceeded, "the deadline passed");
  } else if (failed_) {
    status = NoMemory();
  }
  End(status.ok());
  // May destroy this.
  auto done = std::move(done_);
  done(std::move(status));
}

void RunBlocking(KernelJob& job, double flops, Executor& executor,
                 const std::atomic<bool>* cancelled) {
  if (flops < kInlineFlops) {
    Executor::RunHere(&job, cancelled);
  } else {
    executor.Run(&job, {.seconds = flops * 1e-11, .cancelled = cancelled});
  }
}

}  // namespace attention
