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

int64_t HeaderBytes(
    const std::multimap<grpc::string_ref, grpc::string_ref>& headers) {
  // Of each header beside its text (RFC 7540, 6.5.2).
  constexpr int64_t kOverhead = 32;
  int64_t bytes = 0;
  for (const auto& [name, value] : headers) {
    bytes += static_cast<int64_t>(name.size() + value.size()) + kOverhead;
  }
  return bytes;
}

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
