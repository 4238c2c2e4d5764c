// Which calls are let in: within a budget of bytes, and until draining begins.
#ifndef ATTENTION_SERVER_ADMISSION_ADMISSION_H_
#define ATTENTION_SERVER_ADMISSION_ADMISSION_H_

#include <condition_variable>
#include <cstdint>
#include <mutex>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace attention::server {

// Thread-safe; no member blocks but WaitUntilIdle().
class Admission {
 public:
  explicit Admission(int64_t max_bytes) : max_bytes_(max_bytes) {}
  Admission(const Admission&) = delete;
  Admission& operator=(const Admission&) = delete;

  // Lets a call of `bytes` in, or refuses it at once: Unavailable while
  // draining, ResourceExhausted with a delay to retry after when busy. A call
  // let in MUST Leave() with all its bytes.
  absl::Status Enter(int64_t bytes);
  // More bytes for a call that is in; not refused for draining.
  absl::Status Grow(int64_t bytes);
  void Leave(int64_t bytes);

  // From here on Enter() refuses.
  void Drain();
  // Waits until draining and no call is in, or the deadline: that of the latest
  // SetDeadline(), also while waiting. False at the deadline.
  bool WaitUntilIdle();
  void SetDeadline(absl::Time deadline);

  // Calls that are in.
  int64_t calls() const;

 private:
  absl::Status Charge(int64_t bytes);

  const int64_t max_bytes_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  // All guarded by mutex_.
  int64_t bytes_ = 0;
  int64_t calls_ = 0;
  bool draining_ = false;
  absl::Time deadline_ = absl::InfiniteFuture();
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_ADMISSION_ADMISSION_H_
