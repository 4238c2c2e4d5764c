#include "server/connections/acceptor.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <new>
#include <string>
#include <system_error>
#include <utility>

#include "server/connections/limits.h"
#include "server/logging.h"

namespace attention::server {
namespace {

using std::chrono::milliseconds;

// Accepted from one listener before others have their turn.
constexpr int kBatch = 64;
// How often closed connections are looked for: while others wait for a place,
// and else, when it is for open() alone.
constexpr milliseconds kPruneWaiting(50);
constexpr milliseconds kPruneIdle(1000);
// Of the time, one part in so many at most goes into looking for them.
constexpr int kPruneShare = 20;
// After the system refused a descriptor or memory.
constexpr milliseconds kRetry(50);
// Without an obstacle for so long, a stop is over.
constexpr milliseconds kCalm(1000);
constexpr std::chrono::minutes kLogInterval(1);

int LowDescriptors() {
  const int64_t limit = DescriptorLimit();
  return static_cast<int>(limit - DescriptorReserve(limit) / 4);
}

// Errors of the one connection that was to be accepted, not of the listener;
// accept(2) lists most of them.
bool IsOfTheConnection(int error) {
  switch (error) {
    case EINTR:
    case ECONNABORTED:
    case EPROTO:
    case ENETDOWN:
    case ENETUNREACH:
    case EHOSTDOWN:
    case EHOSTUNREACH:
    case ENONET:
    case ENOPROTOOPT:
    case EOPNOTSUPP:
      return true;
    default:
      return false;
  }
}

}  // namespace

Acceptor::Acceptor(std::vector<Listener> listeners, int64_t max_connections,
                   const Sinks& sinks, ConnectionTable& connections,
                   spdlog::logger& log)
    : listeners_(std::move(listeners)),
      max_connections_(max_connections),
      low_descriptors_(LowDescriptors()),
      sinks_(sinks),
      connections_(connections),
      log_(log),
      stop_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  if (!stop_.valid()) {
    throw std::system_error(errno, std::generic_category(), "eventfd");
  }
  thread_ = std::thread([this] { Run(); });
}

Acceptor::~Acceptor() {
  eventfd_write(stop_.get(), 1);
  thread_.join();
}

void Acceptor::Run() {
  std::vector<pollfd> polled = {{stop_.get(), POLLIN, 0}};
  std::vector<Sink*> sinks = {nullptr};  // of those polled
  for (const Listener& listener : listeners_) {
    for (const Descriptor& socket : listener.sockets()) {
      polled.push_back({socket.get(), POLLIN, 0});
      sinks.push_back(listener.is_unix() ? &sinks_.unix_sockets : &sinks_.tcp);
    }
  }
  for (;;) {
    const Obstacle obstacle = FindObstacle();
    Report(obstacle);
    const size_t count = obstacle == Obstacle::kNone ? polled.size() : 1;
    const bool idle = connections_.open() == 0 && !stopped_;
    const milliseconds timeout =
        obstacle == Obstacle::kNone ? kPruneIdle : kPruneWaiting;
    const int ready = poll(polled.data(), count,
                           idle ? -1 : static_cast<int>(timeout.count()));
    if (ready <= 0) continue;
    if (polled[0].revents != 0) return;
    for (size_t i = 1; i < count; ++i) {
      if (polled[i].revents != 0) Accept(polled[i].fd, *sinks[i]);
    }
  }
}

Acceptor::Obstacle Acceptor::FindObstacle() {
  if (error_ != 0) {
    if (Clock::now() < retry_) return Obstacle::kSystem;
    error_ = 0;
  }
  const auto full = [this] { return connections_.open() >= max_connections_; };
  PruneIfDue(full() ? kPruneWaiting : kPruneIdle);
  if (full()) return Obstacle::kMaxConnections;
  if (may_lack_descriptors_ && !DescriptorsLeft()) {
    return Obstacle::kDescriptors;
  }
  may_lack_descriptors_ = false;
  return Obstacle::kNone;
}

bool Acceptor::DescriptorsLeft() const {
  const Descriptor lowest(fcntl(stop_.get(), F_DUPFD_CLOEXEC, 0));
  return lowest.valid() && lowest.get() < low_descriptors_;
}

void Acceptor::PruneIfDue(Clock::duration interval) {
  const Clock::time_point begin = Clock::now();
  if (begin - last_prune_ < std::max(interval, kPruneShare * prune_cost_)) {
    return;
  }
  connections_.Prune();
  last_prune_ = Clock::now();
  prune_cost_ = last_prune_ - begin;
}

void Acceptor::Report(Obstacle obstacle) {
  const Clock::time_point now = Clock::now();
  if (obstacle != Obstacle::kNone) {
    last_obstacle_ = now;
    if (!stopped_ && now >= next_log_) {
      next_log_ = now + kLogInterval;
      stop_logged_ = true;
      LogStop(obstacle);
    }
    stopped_ = true;
  } else if (stopped_ && now - last_obstacle_ >= kCalm) {
    stopped_ = false;
    if (std::exchange(stop_logged_, false)) {
      log_.info("event=accept_resumed open_connections={}",
                connections_.open());
    }
  }
}

void Acceptor::LogStop(Obstacle obstacle) {
  std::string reason = "max_connections";
  if (obstacle == Obstacle::kDescriptors) reason = "few_descriptors_left";
  if (obstacle == Obstacle::kSystem) {
    reason = strerrordesc_np(error_);
  }
  log_.warn(
      "event=accept_stopped reason={} open_connections={} max_connections={} "
      "descriptor_limit={}",
      Quoted(reason), connections_.open(), max_connections_, DescriptorLimit());
}

void Acceptor::Accept(int listener, Sink& sink) {
  for (int i = 0; i < kBatch && error_ == 0 && !may_lack_descriptors_ &&
                  connections_.open() < max_connections_;
       ++i) {
    Descriptor connection(
        accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (connection.valid()) {
      HandOver(listener, std::move(connection), sink);
    } else if (errno == EAGAIN) {
      return;
    } else if (!IsOfTheConnection(errno)) {
      PauseAfter(errno);
    }
  }
}

void Acceptor::HandOver(int listener, Descriptor connection, Sink& sink) {
  may_lack_descriptors_ = connection.get() >= low_descriptors_;
  try {
    if (!connections_.Add(connection.get())) return;
  } catch (const std::bad_alloc&) {
    PauseAfter(ENOMEM);
    return;
  }
  Sink::NewConnectionParameters parameters;
  parameters.listener_fd = listener;
  parameters.fd = connection.Release();
  sink.HandleNewConnection(&parameters);
}

void Acceptor::PauseAfter(int error) {
  error_ = error;
  retry_ = Clock::now() + kRetry;
}

}  // namespace attention::server
