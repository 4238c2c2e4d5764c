// Whether and when a call that failed is tried again: docs/retries.md.
#ifndef ATTENTION_INTERNAL_RETRIES_H_
#define ATTENTION_INTERNAL_RETRIES_H_

#include <functional>
#include <memory>
#include <optional>
#include <stop_token>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "attention/client.h"
#include "attention/connection.h"
#include "attention/internal/patience.h"
#include "attention/internal/unary_call.h"

namespace attention::internal {

// What comes of doing a call twice.
enum class Twice {
  kHarmful,   // not the same as once
  kHarmless,  // the same as once
  kAppend,    // the same as once, by its request id; and a try may still run
};

// Of one call. Thread-compatible.
class Retries {
 public:
  Retries(Twice twice, int max_attempts)
      : twice_(twice), max_attempts_(max_attempts) {}

  // To be asked after each try that failed: the pause before the next one.
  // Nothing: there is none, or it would begin after the deadline.
  std::optional<absl::Duration> PauseAfter(const absl::Status& failed,
                                           absl::Time deadline);

 private:
  std::optional<absl::Duration> PauseAfter(const absl::Status& failed);

  Twice twice_;
  int max_attempts_;
  // Tries that count.
  int attempts_ = 0;
  absl::Duration under_way_pause_ = absl::Milliseconds(10);
};

// What a call ends with whose pause the caller has ended.
absl::Status CancelledInPause();

// Tries `once` on this thread until it ends well or another try is no use. It
// gets the options in the time that is left, and holds nothing between tries.
template <typename Result>
Result RunTries(const Connection& connection, Twice twice,
                const CallOptions& options,
                const std::function<Result(const CallOptions&)>& once) {
  const absl::Time begin = absl::Now();
  Result result = once(options);
  if (result.ok()) return result;
  Retries retries(twice, connection.max_attempts());
  const Patience patience{begin + options.timeout, options.stop,
                          options.interrupted};
  while (!result.ok()) {
    const std::optional<absl::Duration> pause =
        retries.PauseAfter(result.status(), patience.deadline);
    if (!pause) break;
    if (!patience.Sleep(*pause)) {
      if (absl::Now() < patience.deadline) return CancelledInPause();
      break;
    }
    result = once(InTimeLeft(options, begin));
  }
  return result;
}

// Calls `then` once on SharedQueue()'s thread, after `pause` or as soon as
// `stop` is requested. No thread waits meanwhile.
void AfterPause(absl::Duration pause, const std::stop_token& stop,
                std::function<void()> then);

// RunTries() without blocking: `start` begins a try, which calls back once, and
// so does `done`. Both are kept until then, and what they hold.
template <typename Result>
class StartedTries : public std::enable_shared_from_this<StartedTries<Result>> {
 public:
  using Done = std::function<void(Result)>;
  using Start = std::function<void(const CallOptions&, Done)>;

  static void Begin(const Connection& connection, Twice twice,
                    const CallOptions& options, Start start, Done done) {
    std::shared_ptr<StartedTries>(
        new StartedTries(Retries(twice, connection.max_attempts()), options,
                         std::move(start), std::move(done)))
        ->Next();
  }

 private:
  StartedTries(Retries retries, const CallOptions& options, Start start,
               Done done)
      : retries_(retries),
        options_(options),
        start_(std::move(start)),
        done_(std::move(done)) {}

  void Next() {
    start_(InTimeLeft(options_, begin_),
           [self = this->shared_from_this()](Result result) {
             self->Ended(std::move(result));
           });
  }

  void Ended(Result result) {
    const std::optional<absl::Duration> pause =
        result.ok()
            ? std::nullopt
            : retries_.PauseAfter(result.status(), begin_ + options_.timeout);
    if (!pause) return done_(std::move(result));
    AfterPause(*pause, options_.stop, [self = this->shared_from_this()] {
      if (self->options_.stop.stop_requested()) {
        return self->done_(CancelledInPause());
      }
      self->Next();
    });
  }

  const absl::Time begin_ = absl::Now();
  Retries retries_;
  const CallOptions options_;
  const Start start_;
  const Done done_;
};

}  // namespace attention::internal

#endif  // ATTENTION_INTERNAL_RETRIES_H_
