#include "server/admission/admission.h"

#include "absl/strings/str_cat.h"
#include "server/status.h"

namespace attention::server {
namespace {

// About as long as a large call takes.
constexpr absl::Duration kRetryDelay = absl::Milliseconds(100);

}  // namespace

absl::Status Admission::Enter(int64_t bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (draining_) {
    return absl::UnavailableError("the server is shutting down");
  }
  absl::Status charged = Charge(bytes);
  if (charged.ok()) ++calls_;
  return charged;
}

absl::Status Admission::Grow(int64_t bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  return Charge(bytes);
}

absl::Status Admission::Charge(int64_t bytes) {
  if (bytes > max_bytes_ - bytes_) {
    return RetryLater(absl::StrCat("the server is busy: ", bytes,
                                   " bytes more would exceed the ", max_bytes_,
                                   " it works on at once (max_inflight_bytes)"),
                      kRetryDelay);
  }
  bytes_ += bytes;
  return absl::OkStatus();
}

void Admission::Leave(int64_t bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  bytes_ -= bytes;
  --calls_;
  // Under the lock: the waiter may destroy this as soon as it can run.
  changed_.notify_all();
}

void Admission::Drain() {
  std::lock_guard<std::mutex> lock(mutex_);
  draining_ = true;
  changed_.notify_all();
}

void Admission::SetDeadline(absl::Time deadline) {
  std::lock_guard<std::mutex> lock(mutex_);
  deadline_ = deadline;
  changed_.notify_all();
}

bool Admission::WaitUntilIdle() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (!draining_ || calls_ > 0) {
    if (!draining_ || deadline_ == absl::InfiniteFuture()) {
      changed_.wait(lock);
    } else if (absl::Now() >= deadline_) {
      return false;
    } else {
      changed_.wait_until(lock, absl::ToChronoTime(deadline_));
    }
  }
  return true;
}

int64_t Admission::calls() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return calls_;
}

}  // namespace attention::server
