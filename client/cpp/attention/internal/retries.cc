#include "attention/internal/retries.h"

#include <grpcpp/alarm.h>

#include <algorithm>
#include <mutex>
#include <random>
#include <string>

#include "attention/internal/shared_queue.h"
#include "attention/status.h"

namespace attention::internal {
namespace {

constexpr absl::Duration kFirstPause = absl::Milliseconds(100);
constexpr absl::Duration kLongestPause = absl::Seconds(5);
constexpr absl::Duration kLongestUnderWayPause = absl::Milliseconds(500);

// Up to a fifth longer, so that clients which were refused together do not come
// back together.
absl::Duration Jittered(absl::Duration pause) {
  thread_local std::minstd_rand random(std::random_device{}());
  return pause * std::uniform_real_distribution<double>(1, 1.2)(random);
}

// Ends with the alarm, which a stop makes ring.
class Pause final : public QueueEvent {
 public:
  explicit Pause(std::function<void()> then) : then_(std::move(then)) {}

  void Begin(absl::Duration pause, const std::stop_token& stop) {
    const std::lock_guard<std::mutex> lock(mutex_);
    alarm_.Set(&SharedQueue(), absl::ToChronoTime(absl::Now() + pause),
               static_cast<QueueEvent*>(this));
    stop_.emplace(stop, Ring{&alarm_});
  }

  void Run(bool /*ok*/) override {
    {
      const std::lock_guard<std::mutex> begun(mutex_);
    }
    stop_.reset();
    const std::function<void()> then = std::move(then_);
    delete this;
    then();
  }

 private:
  struct Ring {
    grpc::Alarm* alarm;
    void operator()() const { alarm->Cancel(); }
  };

  // Held by Begin(): the alarm may ring before that returns.
  std::mutex mutex_;
  std::function<void()> then_;
  grpc::Alarm alarm_;
  std::optional<std::stop_callback<Ring>> stop_;
};

}  // namespace

std::optional<absl::Duration> Retries::PauseAfter(const absl::Status& failed,
                                                  absl::Time deadline) {
  ++attempts_;
  const std::optional<absl::Duration> pause = PauseAfter(failed);
  if (!pause || absl::Now() + *pause >= deadline) return std::nullopt;
  return pause;
}

std::optional<absl::Duration> Retries::PauseAfter(const absl::Status& failed) {
  const bool busy = absl::IsResourceExhausted(failed);
  if ((!busy && !absl::IsUnavailable(failed)) || ForbidsRetry(failed)) {
    return std::nullopt;
  }
  const std::string reason = ErrorReason(failed);
  const std::optional<absl::Duration> told = RetryDelay(failed);
  if (!busy && reason == "APPEND_UNDER_WAY") {
    if (twice_ != Twice::kAppend || max_attempts_ == 1) return std::nullopt;
    --attempts_;
    // Longer each time, so that large tokens are not sent over and over.
    const absl::Duration own = under_way_pause_;
    under_way_pause_ = std::min(2 * own, kLongestUnderWayPause);
    return Jittered(std::max(told.value_or(own), own));
  }
  const bool may_repeat =
      busy ? told.has_value()
           : reason == "DRAINING" ||
                 (reason.empty() && twice_ != Twice::kHarmful);
  if (!may_repeat || attempts_ >= max_attempts_) return std::nullopt;
  const absl::Duration own =
      std::min(kFirstPause * (1 << std::min(attempts_ - 1, 10)), kLongestPause);
  return Jittered(told.value_or(own));
}

absl::Status CancelledInPause() {
  return absl::CancelledError("the call was cancelled before another try");
}

void AfterPause(absl::Duration pause, const std::stop_token& stop,
                std::function<void()> then) {
  // Run() destroys it.
  (new Pause(std::move(then)))->Begin(pause, stop);
}

}  // namespace attention::internal
