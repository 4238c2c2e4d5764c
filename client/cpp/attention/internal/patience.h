// How long a call may wait for something that is not a call of gRPC's.
#ifndef ATTENTION_INTERNAL_PATIENCE_H_
#define ATTENTION_INTERNAL_PATIENCE_H_

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <stop_token>
#include <utility>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "attention/client.h"

namespace attention::internal {

// Of one call, from its beginning on.
struct Patience {
  // Between two looks at whether it is over.
  static constexpr std::chrono::milliseconds kLook{50};

  static Patience Of(const CallOptions& options) {
    return {absl::Now() + options.timeout, options.stop, options.interrupted};
  }

  // May run Python's signal handlers: not to be called with a lock.
  bool IsOver() const {
    return absl::Now() >= deadline || stop.stop_requested() ||
           (interrupted && interrupted());
  }

  // Waits so long. False: it is over before.
  bool Sleep(absl::Duration time) const {
    const absl::Time end = absl::Now() + time;
    while (!IsOver()) {
      const absl::Duration left = end - absl::Now();
      if (left <= absl::ZeroDuration()) return true;
      absl::SleepFor(std::min(left, absl::FromChrono(kLook)));
    }
    return false;
  }

  absl::Time deadline = absl::InfiniteFuture();
  std::stop_token stop = {};
  std::function<bool()> interrupted = {};
};

// A lock that is waited for with patience. Thread-safe.
class Turns {
 public:
  // Gives the turn back when it dies.
  class Turn {
   public:
    explicit Turn(Turns* turns) : turns_(turns) {}
    Turn(Turn&& other) noexcept
        : turns_(std::exchange(other.turns_, nullptr)) {}
    Turn& operator=(Turn&&) = delete;
    ~Turn() {
      if (turns_ != nullptr) turns_->Give();
    }
    explicit operator bool() const { return turns_ != nullptr; }

   private:
    Turns* turns_;
  };

  // False: somebody has it.
  Turn Try() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return Turn(std::exchange(taken_, true) ? nullptr : this);
  }
  // False: the patience is over.
  Turn Take(const Patience& patience) {
    while (true) {
      {
        const absl::Duration left = std::min(patience.deadline - absl::Now(),
                                             absl::FromChrono(Patience::kLook));
        std::unique_lock<std::mutex> lock(mutex_);
        if (free_.wait_for(lock, absl::ToChronoMicroseconds(left),
                           [&] { return !taken_; })) {
          taken_ = true;
          return Turn(this);
        }
      }
      if (patience.IsOver()) return Turn(nullptr);
    }
  }

 private:
  void Give() {
    const std::lock_guard<std::mutex> lock(mutex_);
    taken_ = false;
    free_.notify_one();
  }

  std::mutex mutex_;
  std::condition_variable free_;
  bool taken_ = false;
};

}  // namespace attention::internal

#endif  // ATTENTION_INTERNAL_PATIENCE_H_
