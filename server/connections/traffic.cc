#include "server/connections/traffic.h"

#include <algorithm>

namespace attention::server {
namespace {

constexpr int64_t kKiB = int64_t{1} << 10;
constexpr int64_t kMiB = int64_t{1} << 20;

// More than this is a fault at once: as many streams as gRPC lets a peer have,
// each with all that it may send unread, come to less.
constexpr int64_t kMostUnexplained = 24 * kMiB;
// Bytes that came so long ago and that no call has explained yet. gRPC tells of
// a call milliseconds after its headers came; later only where there are many,
// or others take the cores.
struct Stale {
  absl::Duration age;
  int64_t most_bytes;
};
constexpr Stale kStale[] = {{absl::Milliseconds(500), 8 * kMiB},
                            {absl::Seconds(1), 2 * kMiB},
                            {absl::Seconds(2), 512 * kKiB}};

// Pings, window updates, settings: bytes per second that need no call.
constexpr double kFreeBytesPerSecond = 64.0 * kKiB;
// Calls may have explained so much more than came, as those do that were
// refused before their bodies had come.
constexpr int64_t kMostAhead = kMiB;
// Fixed fields, frame headers, what closes the stream; and per metadata byte or
// byte of the message or answer: frames may be small, answers are taken by
// window updates.
constexpr int64_t kBesideHeaders = 256;
constexpr int64_t kMessagePart = 32;
// Each of a stream's messages has its own frames.
constexpr int64_t kBesideMessage = 64;
constexpr int64_t kResponsePart = 64;

// A message that the server cuts off goes on until its client hears of it.
constexpr int64_t kMostLate = 16 * kMiB;
constexpr absl::Duration kLate = absl::Seconds(2);

// A call that lived for longer cost its connection a place among its streams.
constexpr absl::Duration kGivenUpAtOnce = absl::Milliseconds(100);
constexpr double kMostCancelled = 2048;
constexpr double kForgivenPerSecond = 2000;
constexpr double kMostForgivenSeconds = 60;
// gRPC lets a peer have kMaxStreams (server.cc) at once, but only if it has
// acknowledged that, and forgets those of which the answer is on its way.
constexpr int64_t kMostOpenCalls = 4096;
// Streams that are reset before gRPC has told of their calls. It takes some
// 8 KiB for each meanwhile.
constexpr int64_t kMostUnfinishedStreams = 4096;

}  // namespace

Traffic::Traffic(absl::Time now) : looked_(now) {
  static_assert(std::size(kStale) == kPasts);
  for (Past& past : pasts_) past.time.fill(now);
}

Traffic::Call Traffic::Begin(int64_t header_bytes, absl::Time now) {
  Call call;
  call.begin = now;
  call.header_bytes = header_bytes + kBesideHeaders;
  call.allowed = call.header_bytes + kUnreadWindowBytes;
  open_ += call.allowed;
  ++open_calls_;
  return call;
}

void Traffic::Read(Call& call, int64_t message_limit) {
  call.message_limit = message_limit + message_limit / kMessagePart;
  call.received_before = received_;
  const int64_t more =
      std::max<int64_t>(0, call.message_limit - kUnreadWindowBytes);
  call.allowed += more;
  open_ += more;
}

void Traffic::Next(Call& call, int64_t message_bytes, int64_t response_bytes,
                   int64_t message_limit) {
  explained_ += message_bytes + message_bytes / kMessagePart + kBesideMessage +
                response_bytes / kResponsePart;
  open_ -= call.allowed;
  call.allowed = call.header_bytes + kUnreadWindowBytes;
  open_ += call.allowed;
  Read(call, message_limit);
}

void Traffic::End(const Call& call, const CallEnd& end, absl::Time now) {
  int64_t message = kUnreadWindowBytes;
  if (end.message_bytes) {
    message = *end.message_bytes + *end.message_bytes / kMessagePart;
  } else if (call.message_limit > kUnreadWindowBytes) {
    const int64_t came = end.received - call.received_before;
    message = std::clamp(came, kUnreadWindowBytes, call.message_limit);
    if (!end.cancelled) {
      late_ = std::min(kMostLate, late_ + call.message_limit - message);
      late_until_ = now + kLate;
    }
  }
  open_ -= call.allowed;
  --open_calls_;
  ++finished_;
  explained_ +=
      call.header_bytes + message + end.response_bytes / kResponsePart;
  if (end.cancelled && now - call.begin < kGivenUpAtOnce) ++cancelled_;
}

std::optional<Traffic::Fault> Traffic::Look(int64_t received, absl::Time now) {
  const double seconds = absl::ToDoubleSeconds(now - looked_);
  looked_ = now;
  came_ = received - received_;
  received_ = received;
  if (seconds > 0) {
    explained_ += static_cast<int64_t>(
        std::min(kFreeBytesPerSecond * seconds, double{kMostAhead}));
    const double forgiven =
        kForgivenPerSecond * std::min(seconds, kMostForgivenSeconds);
    cancelled_ = std::max(0.0, cancelled_ - forgiven);
    finished_ += static_cast<int64_t>(forgiven);
  }
  if (now > late_until_) late_ = 0;
  const int64_t late = std::clamp<int64_t>(received - explained_, 0, late_);
  late_ -= late;
  explained_ = std::min(explained_ + late, received + kMostAhead);
  if (unexplained() > kMostUnexplained) return Fault::kUnexplainedBytes;
  for (size_t i = 0; i < kPasts; ++i) {
    pasts_[i].Look(received, kStale[i].age, now);
    if (pasts_[i].received.front() - explained_ - open_ >
        kStale[i].most_bytes) {
      return Fault::kUnexplainedBytes;
    }
  }
  if (cancelled_ > kMostCancelled) return Fault::kCancelledCalls;
  if (open_calls_ > kMostOpenCalls) return Fault::kOpenCalls;
  return std::nullopt;
}

std::optional<Traffic::Fault> Traffic::LookAtStreams(int64_t started) {
  finished_ = std::min(finished_, started);
  if (started - finished_ <= kMostUnfinishedStreams) return std::nullopt;
  return Fault::kUnfinishedStreams;
}

void Traffic::Past::Look(int64_t now_received, absl::Duration age,
                         absl::Time now) {
  if (now - time.back() < age / 2) return;
  std::rotate(received.begin(), received.begin() + 1, received.end());
  std::rotate(time.begin(), time.begin() + 1, time.end());
  received.back() = now_received;
  time.back() = now;
}

}  // namespace attention::server
