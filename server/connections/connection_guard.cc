#include "server/connections/connection_guard.h"

#include <algorithm>
#include <new>
#include <optional>
#include <string>

#include "absl/time/clock.h"
#include "server/logging.h"

namespace attention::server {
namespace {

constexpr absl::Duration kInterval = absl::Milliseconds(50);
// While there are none.
constexpr absl::Duration kIdleInterval = absl::Milliseconds(200);
// In turn and suspects, at each look.
constexpr int kInTurn = 128;
constexpr size_t kMostSuspects = 128;
constexpr int64_t kSuspectBytes = int64_t{64} << 10;
// So much came since the last look: streams are to be counted, of so many
// connections at each look.
constexpr int64_t kBusyBytes = int64_t{16} << 10;
constexpr size_t kMostCounted = 16;

const char* NameOf(Traffic::Fault fault) {
  switch (fault) {
    case Traffic::Fault::kUnexplainedBytes:
      return "unexplained_bytes";
    case Traffic::Fault::kCancelledCalls:
      return "cancelled_calls";
    case Traffic::Fault::kOpenCalls:
      return "open_calls";
    case Traffic::Fault::kUnfinishedStreams:
      return "unfinished_streams";
  }
  return "";
}

}  // namespace

ConnectionGuard::ConnectionGuard(ConnectionTable& connections,
                                 spdlog::logger& log, LogLimiter& log_limiter)
    : connections_(connections),
      log_(log),
      log_limiter_(log_limiter),
      thread_([this] { Run(); }) {}

ConnectionGuard::~ConnectionGuard() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  stop_wanted_.notify_one();
  thread_.join();
}

void ConnectionGuard::Run() {
  std::unique_lock<std::mutex> lock(mutex_);
  const auto stop = [this] { return stop_; };
  for (;;) {
    const absl::Duration pause =
        connections_.open() > 0 ? kInterval : kIdleInterval;
    if (stop_wanted_.wait_for(lock, absl::ToChronoNanoseconds(pause), stop)) {
      return;
    }
    try {
      Look(absl::Now());
    } catch (const std::bad_alloc&) {  // NOLINT(bugprone-empty-catch)
      // At the next look there may be memory.
    }
  }
}

void ConnectionGuard::Look(absl::Time now) {
  looked_at_.clear();
  looked_at_.swap(suspects_);
  position_ = connections_.List(position_, kInTurn, looked_at_);
  for (const ConnectionId& connection : looked_at_) LookAt(connection, now);
  LookAtStreams(now);
}

void ConnectionGuard::LookAt(const ConnectionId& connection, absl::Time now) {
  const std::optional<int64_t> received =
      ConnectionTable::BytesReceived(connection);
  if (!received) return;
  // What waits in the system's buffer costs nobody anything.
  const int64_t read = *received - ConnectionTable::BytesUnread(connection);
  std::optional<Traffic::Fault> fault;
  bool suspect = false, busy = false;
  connections_.VisitTraffic(connection, [&](Traffic& traffic) {
    // A suspect's turn may have come.
    if (traffic.looked() == now) return;
    fault = traffic.Look(read, now);
    busy = traffic.came() > kBusyBytes;
    suspect = busy || traffic.unexplained() > kSuspectBytes;
  });
  if (fault) return Cut(connection, *fault);
  if (suspect && suspects_.size() < kMostSuspects) {
    suspects_.push_back(connection);
  }
  if (busy && busy_.size() < kMostSuspects &&
      std::find(busy_.begin(), busy_.end(), connection) == busy_.end()) {
    busy_.push_back(connection);
  }
}

void ConnectionGuard::LookAtStreams(absl::Time now) {
  const size_t count = std::min(kMostCounted, busy_.size());
  for (size_t i = 0; i < count; ++i) {
    const ConnectionId& connection = busy_[i];
    const std::optional<int64_t> started =
        stream_counts_.Started(connections_.PeerOf(connection), now);
    if (!started) continue;
    std::optional<Traffic::Fault> fault;
    connections_.VisitTraffic(connection, [&](Traffic& traffic) {
      fault = traffic.LookAtStreams(*started);
    });
    if (fault) Cut(connection, *fault);
  }
  busy_.erase(busy_.begin(), busy_.begin() + static_cast<ptrdiff_t>(count));
}

void ConnectionGuard::Cut(const ConnectionId& connection,
                          Traffic::Fault fault) {
  const std::string peer = connections_.PeerOf(connection);
  if (!connections_.Cut(connection)) return;
  ++cut_;
  const char* const reason = NameOf(fault);
  if (!log_limiter_.Allow({.event = "connection_cut", .reason = reason},
                          spdlog::level::info)) {
    return;
  }
  log_.info("event=connection_cut reason={} peer={}", reason, Quoted(peer));
}

}  // namespace attention::server
