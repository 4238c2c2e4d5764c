// Whether the server is to stop, and by when.
#ifndef ATTENTION_SERVER_STOP_REQUEST_H_
#define ATTENTION_SERVER_STOP_REQUEST_H_

#include <algorithm>
#include <condition_variable>
#include <mutex>

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace attention::server {

// Thread-safe. Without a request there is no end: the deadline is infinite.
class StopRequest {
 public:
  // May be called again, to set another deadline.
  void Set(absl::Time deadline) {
    const std::lock_guard<std::mutex> lock(mutex_);
    deadline_ = deadline;
    made_ = true;
    changed_.notify_all();
  }

  void Wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return made_; });
  }

  // Waits until `time` or the deadline, whichever comes first. False if that
  // is the deadline.
  bool WaitUntil(absl::Time time) {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      const absl::Time now = absl::Now();
      if (now >= deadline_) return false;
      if (now >= time) return true;
      changed_.wait_until(lock, absl::ToChronoTime(std::min(time, deadline_)));
    }
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_.
  bool made_ = false;
  absl::Time deadline_ = absl::InfiniteFuture();
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_STOP_REQUEST_H_
