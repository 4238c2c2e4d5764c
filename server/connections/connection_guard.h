// Cuts connections whose peers flood the server.
#ifndef ATTENTION_SERVER_CONNECTIONS_CONNECTION_GUARD_H_
#define ATTENTION_SERVER_CONNECTIONS_CONNECTION_GUARD_H_

#include <spdlog/logger.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/time/time.h"
#include "server/connections/connection_table.h"
#include "server/connections/stream_counts.h"
#include "server/log_limiter.h"

namespace attention::server {

// Looks at the account (traffic.h) of every TCP connection in turn, those that
// have much to explain each time. Unix sockets tell nothing of their bytes:
// whoever may open them is not looked at.
//
// It has a thread of its own: a peer that floods takes any other that gRPC can
// lay hands on, the acceptor's too, for as long as it has bytes to read.
class ConnectionGuard {
 public:
  // What is not owned must outlive it. Throws std::system_error if there is no
  // thread to be had.
  ConnectionGuard(ConnectionTable& connections, spdlog::logger& log,
                  LogLimiter& log_limiter);
  ~ConnectionGuard();
  ConnectionGuard(const ConnectionGuard&) = delete;
  ConnectionGuard& operator=(const ConnectionGuard&) = delete;

  // Connections cut so far. Thread-safe.
  int64_t cut() const { return cut_.load(std::memory_order_relaxed); }

 private:
  void Run();
  // At a few hundred connections at most, a microsecond or two each. May throw
  // std::bad_alloc.
  void Look(absl::Time now);
  void LookAt(const ConnectionId& connection, absl::Time now);
  void LookAtStreams(absl::Time now);
  void Cut(const ConnectionId& connection, Traffic::Fault fault);

  ConnectionTable& connections_;
  spdlog::logger& log_;
  LogLimiter& log_limiter_;
  StreamCounts stream_counts_;
  // Of the thread only, but for the last ones.
  int position_ = 0;  // where ConnectionTable::List() goes on
  // Those with much to explain at their last look, and those whose streams are
  // to be counted, the longest waiting first.
  std::vector<ConnectionId> suspects_;
  std::vector<ConnectionId> busy_;
  std::vector<ConnectionId> looked_at_;  // kept for its memory
  std::atomic<int64_t> cut_{0};
  std::mutex mutex_;
  std::condition_variable stop_wanted_;
  bool stop_ = false;  // guarded by mutex_
  std::thread thread_;
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_CONNECTIONS_CONNECTION_GUARD_H_
