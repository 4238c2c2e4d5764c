// The clock that leases run on. It is never set: were it wall time, a jump of
// that would end every session that is unused just then.
#ifndef ATTENTION_SESSIONS_LEASE_CLOCK_H_
#define ATTENTION_SESSIONS_LEASE_CLOCK_H_

#include <chrono>

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace attention {

// A moment, counted from one that is the same while the process lives; it has
// no meaning elsewhere. A type of its own, so that wall time does not pass for
// it.
class LeaseTime {
 public:
  LeaseTime() = default;
  explicit LeaseTime(absl::Duration since_start) : since_start_(since_start) {}

  LeaseTime& operator+=(absl::Duration time) {
    since_start_ += time;
    return *this;
  }
  friend LeaseTime operator+(LeaseTime from, absl::Duration time) {
    return from += time;
  }
  friend LeaseTime operator-(LeaseTime from, absl::Duration time) {
    return from += -time;
  }
  friend absl::Duration operator-(LeaseTime to, LeaseTime from) {
    return to.since_start_ - from.since_start_;
  }
  friend bool operator<(LeaseTime a, LeaseTime b) {
    return a.since_start_ < b.since_start_;
  }
  friend bool operator<=(LeaseTime a, LeaseTime b) { return !(b < a); }
  friend bool operator>(LeaseTime a, LeaseTime b) { return b < a; }
  friend bool operator>=(LeaseTime a, LeaseTime b) { return !(a < b); }

 private:
  absl::Duration since_start_;
};

// Thread-safe. Tests derive theirs from it.
class LeaseClock {
 public:
  LeaseClock() = default;
  LeaseClock(const LeaseClock&) = delete;
  LeaseClock& operator=(const LeaseClock&) = delete;
  virtual ~LeaseClock() = default;

  // Grows as time goes by, and does nothing else. It may stand still while the
  // machine sleeps.
  virtual LeaseTime Now() const {
    return LeaseTime(
        absl::FromChrono(std::chrono::steady_clock::now().time_since_epoch()));
  }
  // What clients are told; may jump.
  virtual absl::Time WallTime() const { return absl::Now(); }

  // When `time` will be, by what wall time is now.
  absl::Time ToWallTime(LeaseTime time) const {
    return WallTime() + (time - Now());
  }
};

}  // namespace attention

#endif  // ATTENTION_SESSIONS_LEASE_CLOCK_H_
