// Accepts connections and hands them to gRPC, within a limit.
//
// gRPC has listeners of its own; those of 1.51 stop for ever, without a word,
// the first time that descriptors run out.
#ifndef ATTENTION_SERVER_CONNECTIONS_ACCEPTOR_H_
#define ATTENTION_SERVER_CONNECTIONS_ACCEPTOR_H_

#include <spdlog/logger.h>

#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

#include "base/descriptor.h"
#include "grpcpp/server_builder.h"
#include "server/connections/connection_table.h"
#include "server/connections/listener.h"

namespace attention::server {

// One thread accepts from all listeners. It stops for as long as
// - `max_connections` are open,
// - or few descriptors are left: DescriptorReserve() / 4,
// - or the system has neither memory nor descriptors for another connection.
// New connections then wait in the kernel's queue. It looks again every 50 ms.
// It logs a warning when it stops, at most once a minute, and a line when it
// has gone on for a second.
//
// Not thread-safe.
class Acceptor {
 public:
  using Sink = grpc::experimental::ExternalConnectionAcceptor;

  // Where connections go: those of TCP, which may be encrypted, and those of
  // Unix sockets.
  struct Sinks {
    Sink& tcp;
    Sink& unix_sockets;
  };

  // What is not owned must outlive it. The server that the sinks belong to must
  // have started, and must not be shut down before this is destroyed.
  // Throws std::system_error if there is no thread or descriptor to be had.
  Acceptor(std::vector<Listener> listeners, int64_t max_connections,
           const Sinks& sinks, ConnectionTable& connections,
           spdlog::logger& log);

  // Closes the listeners; connections that wait in their queues are reset.
  // Those handed over go on.
  ~Acceptor();
  Acceptor(const Acceptor&) = delete;
  Acceptor& operator=(const Acceptor&) = delete;

 private:
  using Clock = std::chrono::steady_clock;
  // Why nothing is accepted.
  enum class Obstacle { kNone, kMaxConnections, kDescriptors, kSystem };

  void Run();
  Obstacle FindObstacle();
  bool DescriptorsLeft() const;
  void PruneIfDue(Clock::duration interval);
  void Report(Obstacle obstacle);
  void LogStop(Obstacle obstacle);
  // Takes some of those that wait at `listener`, a descriptor.
  void Accept(int listener, Sink& sink);
  void HandOver(int listener, Descriptor connection, Sink& sink);
  void PauseAfter(int error);

  const std::vector<Listener> listeners_;
  const int64_t max_connections_;
  // A descriptor from this number on means that few are left: the system gives
  // the lowest that is free.
  const int low_descriptors_;
  const Sinks sinks_;
  ConnectionTable& connections_;
  spdlog::logger& log_;
  // An eventfd, readable once the destructor has begun.
  const Descriptor stop_;

  // Of the thread only.
  Clock::time_point last_prune_ = Clock::now();
  Clock::duration prune_cost_{};
  bool may_lack_descriptors_ = false;
  // What accept() failed with, and when to try again.
  int error_ = 0;
  Clock::time_point retry_;
  // What was logged of stops.
  bool stopped_ = false;
  bool stop_logged_ = false;
  Clock::time_point last_obstacle_;
  Clock::time_point next_log_;

  std::thread thread_;
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_CONNECTIONS_ACCEPTOR_H_
