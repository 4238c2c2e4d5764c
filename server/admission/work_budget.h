// A limit on work per second.
#ifndef ATTENTION_SERVER_ADMISSION_WORK_BUDGET_H_
#define ATTENTION_SERVER_ADMISSION_WORK_BUDGET_H_

#include <algorithm>

#include "absl/time/time.h"

namespace attention::server {

// A bucket that fills at a rate, up to what kBurst brings, and that a call may
// overdraw: what comes after it then waits for as long as it takes to fill. So
// calls of any size get through, and on the average no more than the rate.
// Thread-compatible.
class WorkBudget {
 public:
  static constexpr absl::Duration kBurst = absl::Seconds(1);

  // Full, at `now`.
  explicit WorkBudget(absl::Time now) : filled_(now - kBurst) {}

  // Until there is something in it; zero or less: there is.
  absl::Duration Wait(absl::Time now) const { return filled_ - now; }

  // Takes out `work` at `rate` > 0 per second; nothing if that is infinite.
  void Take(double work, double rate, absl::Time now) {
    filled_ = std::max(filled_, now - kBurst) + absl::Seconds(work / rate);
  }

  bool Full(absl::Time now) const { return Wait(now) <= -kBurst; }

 private:
  // When it was, or will be, empty but for what has come since.
  absl::Time filled_;
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_ADMISSION_WORK_BUDGET_H_
