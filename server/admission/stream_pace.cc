#include "server/admission/stream_pace.h"

#include <algorithm>
#include <utility>

namespace attention::server {
namespace {

constexpr absl::Duration kLook = absl::Milliseconds(100);
// With less than this in so long a stream is stalled. Longer than for one
// message: a client may compute what it sends, and loses all that was computed.
constexpr absl::Duration kStall = absl::Seconds(1);
constexpr int64_t kProgressBytes = int64_t{16} << 10;

}  // namespace

void StreamPace::Await(std::optional<int64_t> received, absl::Time now) {
  waiting_ = true;
  since_ = now;
  next_look_ = now + kLook;
  received_ = received_first_ = received;
  counted_ = 0;
}

void StreamPace::Came(const Settings& settings, int64_t bytes,
                      std::optional<int64_t> received, absl::Time now) {
  Advance(received, now);
  Count(bytes - counted_);
  Judge(settings);
  waiting_ = false;
  idle_ = absl::ZeroDuration();
  idle_bytes_ = 0;
  stalled_ = false;
}

void StreamPace::Look(const Settings& settings, std::optional<int64_t> received,
                      absl::Time now) {
  if (!waiting_) return;
  Advance(received, now);
  Judge(settings);
  next_look_ = now + kLook;
  if (idle_bytes_ >= kProgressBytes) {
    idle_ = absl::ZeroDuration();
    idle_bytes_ = 0;
  }
  stalled_ = idle_ >= kStall;
}

int64_t StreamPace::MostBytes(std::optional<int64_t> received) const {
  if (!waiting_ || !received || !received_first_) return 0;
  return std::max<int64_t>(0, *received - *received_first_);
}

std::optional<absl::Duration> StreamPace::TooSlow(
    const Settings& settings) const {
  return below_rate_ ? std::optional(Window(settings)) : std::nullopt;
}

// Where only whole messages are seen, the largest one has as long as it may
// take.
absl::Duration StreamPace::Window(const Settings& settings) const {
  if (received_) return settings.grace;
  return settings.grace +
         absl::Seconds(static_cast<double>(settings.max_message_bytes) /
                       settings.min_rate);
}

void StreamPace::Advance(std::optional<int64_t> received, absl::Time now) {
  const absl::Duration passed = now - std::exchange(since_, now);
  waited_ += passed;
  idle_ += passed;
  if (!received || !received_) return;
  Count(*received - *received_);
  received_ = received;
}

void StreamPace::Judge(const Settings& settings) {
  if (waited_ < Window(settings)) return;
  const double least =
      settings.min_rate * absl::ToDoubleSeconds(settings.grace);
  below_rate_ = static_cast<double>(came_) < least;
  waited_ = absl::ZeroDuration();
  came_ = 0;
}

void StreamPace::Count(int64_t bytes) {
  bytes = std::max<int64_t>(0, bytes);
  counted_ += bytes;
  came_ += bytes;
  idle_bytes_ += bytes;
}

}  // namespace attention::server
