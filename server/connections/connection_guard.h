// Cuts connections whose peers flood the server.
#ifndef ATTENTION_SERVER_CONNECTIONS_CONNECTION_GUARD_H_
#define ATTENTION_SERVER_CONNECTIONS_CONNECTION_GUARD_H_

#include <spdlog/logger.h>

#include <atomic>
#include <cstdint>
#include <vector>

#include "absl/time/time.h"
#include "server/connections/connection_table.h"
#include "server/connections/stream_counts.h"
#include "server/log_limiter.h"

namespace attention::server {

// Looks at the account (traffic.h) of every TCP connection in turn, those that
// have much to explain each time. Unix sockets tell nothing of their bytes:
// whoever may open them is not looked at.
class ConnectionGuard {
 public:
  // What is not owned must outlive it.
  ConnectionGuard(ConnectionTable& connections, spdlog::logger& log,
                  LogLimiter& log_limiter)
      : connections_(connections), log_(log), log_limiter_(log_limiter) {}

  // To be called often, by one thread: does nothing more often than every 50
  // ms, and then for a few hundred connections at most, a microsecond or two
  // each. May throw std::bad_alloc.
  void Look(absl::Time now);

  // Connections cut so far. Thread-safe.
  int64_t cut() const { return cut_.load(std::memory_order_relaxed); }

 private:
  void LookAt(const ConnectionId& connection, absl::Time now);
  void LookAtStreams(absl::Time now);
  void Cut(const ConnectionId& connection, Traffic::Fault fault);

  ConnectionTable& connections_;
  spdlog::logger& log_;
  LogLimiter& log_limiter_;
  StreamCounts stream_counts_;
  absl::Time next_look_;
  int position_ = 0;  // where ConnectionTable::List() goes on
  // Those with much to explain at their last look, and those whose streams are
  // to be counted, the longest waiting first.
  std::vector<ConnectionId> suspects_;
  std::vector<ConnectionId> busy_;
  std::vector<ConnectionId> looked_at_;  // kept for its memory
  std::atomic<int64_t> cut_{0};
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_CONNECTIONS_CONNECTION_GUARD_H_
