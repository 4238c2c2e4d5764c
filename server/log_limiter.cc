#include "server/log_limiter.h"

#include <algorithm>
#include <string_view>
#include <utility>

namespace attention::server {
namespace {

constexpr absl::Duration kInterval = absl::Seconds(1);

// In the type that spdlog formats.
std::string_view View(absl::string_view text) {
  return {text.data(), text.size()};
}

// Also when the clock was set back.
bool HasEnded(absl::Time start, absl::Time now) {
  return now < start || now - start >= kInterval;
}

}  // namespace

LogLimiter::~LogLimiter() { Tell(absl::InfiniteFuture()); }

bool LogLimiter::Allow(const LogKind& kind, spdlog::level::level_enum level,
                       absl::Time now) noexcept {
  if (!log_.should_log(level)) return false;
  if (lines_per_second_ == 0) return true;
  Suppressed before;
  bool allowed;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    Slot& slot = Find(kind);
    if (HasEnded(slot.start, now)) {
      before = TakeSuppressed(slot);
      slot.start = now;
      slot.lines = 0;
    }
    allowed = slot.lines < lines_per_second_;
    ++(allowed ? slot.lines : slot.suppressed);
    if (!allowed) slot.level = std::max(slot.level, level);
  }
  Log(before);
  return allowed;
}

void LogLimiter::Tell(absl::Time now) noexcept {
  for (int i = 0; i < kMaxKinds; ++i) {
    Suppressed before;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (i >= kinds_) return;
      if (HasEnded(slots_[i].start, now)) before = TakeSuppressed(slots_[i]);
    }
    Log(before);
  }
}

LogLimiter::Slot& LogLimiter::Find(const LogKind& kind) {
  for (int i = 0; i < kinds_; ++i) {
    if (slots_[i].kind == kind) return slots_[i];
  }
  if (kinds_ == kMaxKinds) return slots_.back();
  Slot& slot = slots_[kinds_++];
  slot.kind = kinds_ == kMaxKinds ? LogKind{"other"} : kind;
  return slot;
}

LogLimiter::Suppressed LogLimiter::TakeSuppressed(Slot& slot) {
  return {slot.kind, std::exchange(slot.suppressed, 0),
          std::exchange(slot.level, spdlog::level::trace)};
}

void LogLimiter::Log(const Suppressed& suppressed) noexcept {
  if (suppressed.count == 0) return;
  const LogKind& kind = suppressed.kind;
  const auto separator = [](absl::string_view part) {
    return part.empty() ? "" : "/";
  };
  log_.log(suppressed.level,
           "event=log_suppressed kind={}{}{}{}{}{}{} count={}",
           View(kind.event), separator(kind.rpc), View(kind.rpc),
           separator(kind.code), View(kind.code), separator(kind.reason),
           View(kind.reason), suppressed.count);
}

}  // namespace attention::server
