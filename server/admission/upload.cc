#include "server/admission/upload.h"

#include <algorithm>

namespace attention::server {
namespace {

// After so long an upload is charged by how its connection behaves.
constexpr absl::Duration kYoung = absl::Milliseconds(10);
// A slow one is looked at less often: there may be thousands.
constexpr absl::Duration kSlowLook = absl::Milliseconds(100);
// An announced one is charged as it should be.
constexpr absl::Duration kAnnouncedLook = absl::Milliseconds(20);
// A connection that received less between two looks is slow: what it may still
// send until the next look is small.
constexpr int64_t kSlowBytes = int64_t{256} << 10;
// With less than this in so long an upload is stalled.
constexpr absl::Duration kWhile = absl::Milliseconds(250);
constexpr int64_t kLeastInAWhile = int64_t{16} << 10;
// A connection may receive so much beside the messages that come on it: their
// frames, and other calls.
constexpr int64_t kBesideMessages = int64_t{1} << 20;
// So much may have come of a message that is awaited before it is charged.
constexpr int64_t kAwaitedBytes = int64_t{64} << 10;
// An awaited one is looked at so often.
constexpr absl::Duration kAwaitedLook = absl::Milliseconds(20);

}  // namespace

Upload::Upload(const Settings& settings, std::optional<int64_t> announced,
               std::optional<int64_t> received, absl::Time now)
    : pace_(announced ? Pace::kAnnounced : Pace::kYoung),
      bytes_(announced.value_or(settings.young_bytes)),
      start_(now),
      received_first_(received),
      received_last_(received.value_or(0)),
      while_(now),
      while_received_(received_last_),
      window_(now),
      window_received_(received_last_) {}

Upload Upload::Awaited(std::optional<int64_t> received, absl::Time now) {
  Upload upload({}, 0, received, now);
  upload.pace_ = Pace::kAwaited;
  upload.may_wait_ = true;
  upload.stalled_ = true;
  return upload;
}

void Upload::Look(const Settings& settings, std::optional<int64_t> received,
                  int64_t reads, int64_t announced, absl::Time now) {
  if (!received_first_) received.reset();
  const bool slow = received && *received - received_last_ < kSlowBytes;
  const int64_t came =
      received ? std::max<int64_t>(0, *received - *received_first_) : 0;
  if (may_wait_ && came <= kAwaitedBytes) {
    pace_ = Pace::kAwaited;
    bytes_ = 0;
    next_look_ = now + kAwaitedLook;
  } else if (pace_ == Pace::kAnnounced && came > announced + kBesideMessages) {
    pace_ = Pace::kFast;  // More comes than was said.
    bytes_ = settings.max_bytes;
  } else if (pace_ != Pace::kAnnounced && now - start_ >= kYoung) {
    pace_ = slow ? Pace::kSlow : Pace::kFast;
    bytes_ = slow ? std::min(settings.max_bytes, came + 2 * kSlowBytes)
                  : settings.max_bytes;
    if (slow) next_look_ = now + kSlowLook;
  }
  if (pace_ == Pace::kAnnounced) next_look_ = now + kAnnouncedLook;
  if (stalled_) next_look_ = now + kSlowLook;
  if (!received) return;
  received_last_ = *received;
  if (now - while_ >= kWhile) {
    stalled_ = received_last_ - while_received_ < reads * kLeastInAWhile;
    // What little came was other calls'. It must not add up.
    if (stalled_ && pace_ == Pace::kAwaited) received_first_ = received;
    while_ = now;
    while_received_ = received_last_;
  }
  if (now - window_ < settings.grace) return;
  const auto least = settings.min_rate * absl::ToDoubleSeconds(settings.grace);
  below_rate_ = static_cast<double>(received_last_ - window_received_) < least;
  window_ = now;
  window_received_ = received_last_;
}

void Upload::NotMine(int64_t bytes, int64_t received) {
  if (!received_first_) return;
  for (int64_t* since :
       {&*received_first_, &while_received_, &window_received_}) {
    *since = std::min(*since + bytes, received);
  }
}

std::optional<absl::Duration> Upload::TooSlow(const Settings& settings,
                                              absl::Time now) const {
  if (may_wait_) return std::nullopt;
  if (received_first_) {
    return below_rate_ ? std::optional(settings.grace) : std::nullopt;
  }
  // Where nothing is known of the connection, the largest message has as long
  // as it may take.
  const absl::Duration most =
      settings.grace + absl::Seconds(static_cast<double>(settings.max_bytes) /
                                     settings.min_rate);
  return now - start_ > most ? std::optional(most) : std::nullopt;
}

}  // namespace attention::server
