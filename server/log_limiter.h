// Bounds how often lines of one kind are logged.
//
//   LogLimiter limiter(log, /*lines_per_second=*/10);
//   ...
//   if (limiter.Allow({.event = "call", .rpc = "ComputeAttention",
//                      .code = "INVALID_ARGUMENT"}, spdlog::level::info)) {
//     log.info("event=call rpc=ComputeAttention code=INVALID_ARGUMENT ...");
//   }
#ifndef ATTENTION_SERVER_LOG_LIMITER_H_
#define ATTENTION_SERVER_LOG_LIMITER_H_

#include <spdlog/logger.h>

#include <array>
#include <cstdint>
#include <mutex>

#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace attention::server {

// What makes two lines be of one kind. MUST be static text (literals, names of
// codes), never what a client sent: the limiter keeps the views.
struct LogKind {
  absl::string_view event;
  absl::string_view rpc = "";
  absl::string_view code = "";
  absl::string_view reason = "";

  bool operator==(const LogKind&) const = default;
};

// Lets through `lines_per_second` lines of a kind in each second that begins
// with a line of it. How many it held back is told once per such second, by
//   event=log_suppressed kind=call/ComputeAttention/INVALID_ARGUMENT count=N
// with the next line that Allow() lets through, by Tell(), or by the
// destructor.
//
// Thread-safe; allocates nothing, never throws. Knows kMaxKinds kinds; any
// beyond them share the last place, as kind=other.
//
// For what peers can cause. Start, stop and shutdown are logged without it.
class LogLimiter {
 public:
  static constexpr int kMaxKinds = 64;

  // `lines_per_second` >= 0; 0 holds nothing back. `log` must outlive this.
  LogLimiter(spdlog::logger& log, int64_t lines_per_second)
      : log_(log), lines_per_second_(lines_per_second) {}
  ~LogLimiter();
  LogLimiter(const LogLimiter&) = delete;
  LogLimiter& operator=(const LogLimiter&) = delete;

  // Whether a line of this kind is to be logged now. False, and not counted, if
  // the log does not take its level.
  bool Allow(const LogKind& kind, spdlog::level::level_enum level,
             absl::Time now = absl::Now()) noexcept;

  // Tells of the seconds that have ended, for kinds of which no more came. To
  // be called about once a second.
  void Tell(absl::Time now = absl::Now()) noexcept;

 private:
  struct Slot {
    LogKind kind;
    absl::Time start = absl::InfinitePast();
    int64_t lines = 0;
    int64_t suppressed = 0;
    // The highest of the lines suppressed: they are told at it.
    spdlog::level::level_enum level = spdlog::level::trace;
  };
  // What is to be told once the mutex is released.
  struct Suppressed {
    LogKind kind;
    int64_t count = 0;
    spdlog::level::level_enum level = spdlog::level::trace;
  };

  Slot& Find(const LogKind& kind);
  static Suppressed TakeSuppressed(Slot& slot);
  void Log(const Suppressed& suppressed) noexcept;

  spdlog::logger& log_;
  const int64_t lines_per_second_;
  std::mutex mutex_;
  // Guarded by mutex_; the first kinds_ are in use.
  std::array<Slot, kMaxKinds> slots_;
  int kinds_ = 0;
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_LOG_LIMITER_H_
