#include "server/rpc/call_traffic.h"

#include <algorithm>
#include <new>
#include <utility>

#include "absl/time/clock.h"

namespace attention::server {
namespace {

// More than any call may have explains nothing.
constexpr int64_t kMostHeaderBytes = int64_t{1} << 20;

}  // namespace

CallTraffic::CallTraffic(ConnectionTable& connections, absl::string_view peer,
                         int64_t header_bytes) noexcept
    : connections_(connections) {
  try {
    connection_ = connections.Find(peer);
  } catch (const std::bad_alloc&) {
    return;
  }
  if (!connection_) return;
  connections_.VisitTraffic(*connection_, [&](Traffic& traffic) {
    call_ =
        traffic.Begin(std::min(header_bytes, kMostHeaderBytes), absl::Now());
  });
}

void CallTraffic::Read(int64_t limit) noexcept {
  if (!connection_) return;
  connections_.VisitTraffic(
      *connection_, [&](Traffic& traffic) { traffic.Read(call_, limit); });
}

void CallTraffic::Next(int64_t message_bytes, int64_t response_bytes,
                       int64_t limit) noexcept {
  if (!connection_) return;
  connections_.VisitTraffic(*connection_, [&](Traffic& traffic) {
    traffic.Next(call_, message_bytes, response_bytes, limit);
  });
}

void CallTraffic::End(Traffic::CallEnd end) noexcept {
  const auto connection = std::exchange(connection_, std::nullopt);
  if (!connection) return;
  if (!end.message_bytes && call_.message_limit > 0) {
    end.received = ConnectionTable::BytesReceived(*connection).value_or(0);
  }
  connections_.VisitTraffic(*connection, [&](Traffic& traffic) {
    traffic.End(call_, end, absl::Now());
  });
}

}  // namespace attention::server
