// libmicrohttpd parses and writes HTTP. The loop around it is ours, because
// libmicrohttpd's own timeout counts from the last byte (a client that sends a
// byte per second holds its connection for ever), it stops accepting at the
// limit of connections, and it spins when descriptors run out.
#include "server/http/http_server.h"

#include <microhttpd.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <list>
#include <new>
#include <system_error>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/descriptor.h"
#include "server/http/listen_socket.h"

namespace attention::server {
namespace {

using Clock = std::chrono::steady_clock;

// How long accepting pauses where it cannot succeed.
constexpr auto kAcceptPause = std::chrono::milliseconds(50);
// Answers that wait in the system for their client; else it holds megabytes,
// and requests sent together are answered for nobody until it is full.
constexpr int kSendBufferBytes = 64 << 10;
// Room for the headers of an answer in a connection's memory.
constexpr int64_t kAnswerHeaderBytes = 1024;

// What is kept of a request from its headers until its answer is sent.
struct PendingRequest {
  std::string body;
};

HttpResponse PlainText(int status, absl::string_view text) {
  HttpResponse response;
  response.status = status;
  response.body = absl::StrCat(text, "\n");
  return response;
}

bool Serves(const HttpRoute& route, absl::string_view method) {
  return method == route.method || (method == "HEAD" && route.method == "GET");
}

// Whether the request says that its body is longer than `most` bytes.
bool TellsALongerBody(MHD_Connection* connection, int64_t most) {
  const char* length = MHD_lookup_connection_value(connection, MHD_HEADER_KIND,
                                                   "Content-Length");
  if (length == nullptr) return false;
  int64_t bytes;
  return !absl::SimpleAtoi(length, &bytes) || bytes > most;
}

MHD_Result Send(MHD_Connection* connection, HttpResponse response) {
  MHD_Response* const answer = MHD_create_response_from_buffer(
      response.body.size(), response.body.data(), MHD_RESPMEM_MUST_COPY);
  if (answer == nullptr) return MHD_NO;
  bool good = MHD_add_response_header(answer, "Content-Type",
                                      response.content_type.c_str()) == MHD_YES;
  for (const auto& [name, value] : response.headers) {
    good = good && MHD_add_response_header(answer, name.c_str(),
                                           value.c_str()) == MHD_YES;
  }
  const MHD_Result result =
      good ? MHD_queue_response(connection, response.status, answer) : MHD_NO;
  MHD_destroy_response(answer);
  return result;
}

}  // namespace

// Everything but Stop(), connections() and address() belongs to the thread that
// runs Run().
class HttpServer::Loop {
 public:
  Loop(const HttpServerOptions& options, std::vector<HttpRoute> routes,
       ListenSocket socket)
      : options_(options),
        timeout_(absl::ToChronoNanoseconds(options.timeout)),
        answer_patience_(absl::ToChronoNanoseconds(options.answer_patience)),
        routes_(std::move(routes)),
        socket_(std::move(socket)),
        wake_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {}

  ~Loop() {
    if (daemon_ != nullptr) MHD_stop_daemon(daemon_);
  }

  absl::Status Start();
  void Run();

  void Stop() {
    stopping_ = true;
    eventfd_write(wake_.get(), 1);
  }

  const std::string& address() const { return socket_.address; }
  int64_t connections() const { return count_; }

 private:
  struct Connection {
    int fd;
    Clock::time_point deadline;
    // An answer is on its way: it makes room for others only after a while.
    bool answering = false;
    std::list<Connection>::iterator self = {};
  };

  static Connection* ConnectionOf(MHD_Connection* connection);
  static MHD_Result OnRequest(void* loop, MHD_Connection* connection,
                              const char* path, const char* method,
                              const char* version, const char* data,
                              size_t* data_bytes, void** pending);
  static void OnCompleted(void* loop, MHD_Connection* connection,
                          void** pending, MHD_RequestTerminationCode code);
  static void OnConnection(void* loop, MHD_Connection* connection,
                           void** context, MHD_ConnectionNotificationCode code);

  // Blocks until there is something to do. Whether a connection waits to be
  // accepted.
  bool WaitForWork(Clock::time_point now);
  void Accept(Clock::time_point now);
  void AddConnection(int fd);
  // Makes libmicrohttpd close it when it runs next.
  void Cut(Connection& connection, Clock::time_point now);
  void CutExpired(Clock::time_point now);
  void CutLongestWaiting(Clock::time_point now);
  void Extend(Connection& connection, Clock::time_point now);
  HttpResponse Route(const HttpRequest& request) const;

  const HttpServerOptions options_;
  const Clock::duration timeout_;
  const Clock::duration answer_patience_;
  const std::vector<HttpRoute> routes_;
  const ListenSocket socket_;
  const Descriptor wake_;
  std::atomic<bool> stopping_{false};
  std::atomic<int64_t> count_{0};
  // Earliest deadline first: each new deadline is later than all others.
  std::list<Connection> connections_;
  Clock::time_point accept_after_ = Clock::time_point::min();
  MHD_Daemon* daemon_ = nullptr;
};

absl::Status HttpServer::Loop::Start() {
  if (wake_.valid()) {
    daemon_ = MHD_start_daemon(
        MHD_USE_EPOLL | MHD_USE_NO_LISTEN_SOCKET, 0, nullptr, nullptr,
        &Loop::OnRequest, this, MHD_OPTION_CONNECTION_LIMIT,
        static_cast<unsigned>(options_.max_connections),
        MHD_OPTION_CONNECTION_MEMORY_LIMIT,
        static_cast<size_t>(options_.max_header_bytes + kAnswerHeaderBytes),
        MHD_OPTION_SIGPIPE_HANDLED_BY_APP, 1, MHD_OPTION_NOTIFY_COMPLETED,
        &Loop::OnCompleted, this, MHD_OPTION_NOTIFY_CONNECTION,
        &Loop::OnConnection, this, MHD_OPTION_END);
  }
  if (daemon_ == nullptr) {
    return absl::UnavailableError(
        absl::StrCat("cannot serve on \"", address(),
                     "\": out of memory or of file descriptors"));
  }
  return absl::OkStatus();
}

void HttpServer::Loop::Run() {
  while (!stopping_) {
    const bool waits = WaitForWork(Clock::now());
    // First what has come on connections, so that none which has sent its
    // request is cut for it.
    MHD_run(daemon_);
    const Clock::time_point now = Clock::now();
    CutExpired(now);
    if (waits) Accept(now);
    MHD_run(daemon_);
    count_ = static_cast<int64_t>(connections_.size());
  }
}

bool HttpServer::Loop::WaitForWork(Clock::time_point now) {
  const MHD_DaemonInfo* const info =
      MHD_get_daemon_info(daemon_, MHD_DAEMON_INFO_EPOLL_FD);
  const bool paused = now < accept_after_;
  Clock::duration wait = std::chrono::hours(1);
  if (paused) wait = std::min(wait, accept_after_ - now);
  if (!connections_.empty()) {
    wait = std::min(wait, connections_.front().deadline - now);
  }
  if (MHD_UNSIGNED_LONG_LONG ms; MHD_get_timeout(daemon_, &ms) == MHD_YES) {
    wait = std::min<Clock::duration>(wait, std::chrono::milliseconds(ms));
  }
  wait = std::max(wait, Clock::duration::zero());
  pollfd events[] = {{wake_.get(), POLLIN, 0},
                     {info->epoll_fd, POLLIN, 0},
                     // poll() passes over what is negative.
                     {paused ? -1 : socket_.fd.get(), POLLIN, 0}};
  poll(events, std::size(events),
       static_cast<int>(
           std::chrono::ceil<std::chrono::milliseconds>(wait).count()));
  return events[2].revents != 0;
}

void HttpServer::Loop::Accept(Clock::time_point now) {
  const auto most = static_cast<size_t>(options_.max_connections);
  if (connections_.size() >= most) {
    CutLongestWaiting(now);
    MHD_run(daemon_);
  }
  const size_t room = most - std::min(most, connections_.size());
  if (room == 0) accept_after_ = now + kAcceptPause;
  for (size_t i = 0; i < room; ++i) {
    sockaddr_storage peer{};
    socklen_t length = sizeof(peer);
    const int fd = accept4(socket_.fd.get(), reinterpret_cast<sockaddr*>(&peer),
                           &length, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd >= 0) {
      setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &kSendBufferBytes,
                 sizeof(kSendBufferBytes));
      // Takes the descriptor, whatever comes of it.
      MHD_add_connection(daemon_, fd, reinterpret_cast<sockaddr*>(&peer),
                         length);
      continue;
    }
    if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS ||
        errno == ENOMEM) {
      accept_after_ = now + kAcceptPause;
    }
    return;
  }
}

void HttpServer::Loop::Extend(Connection& connection, Clock::time_point now) {
  connection.deadline = now + timeout_;
  connections_.splice(connections_.end(), connections_, connection.self);
}

void HttpServer::Loop::Cut(Connection& connection, Clock::time_point now) {
  shutdown(connection.fd, SHUT_RDWR);
  Extend(connection, now);
}

void HttpServer::Loop::CutExpired(Clock::time_point now) {
  while (!connections_.empty() && connections_.front().deadline <= now) {
    Cut(connections_.front(), now);
  }
}

void HttpServer::Loop::CutLongestWaiting(Clock::time_point now) {
  for (Connection& connection : connections_) {
    const Clock::duration unfinished = now - (connection.deadline - timeout_);
    if (!connection.answering || unfinished >= answer_patience_) {
      return Cut(connection, now);
    }
  }
}

HttpServer::Loop::Connection* HttpServer::Loop::ConnectionOf(
    MHD_Connection* connection) {
  const MHD_ConnectionInfo* const info =
      MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
  return static_cast<Connection*>(info->socket_context);
}

void HttpServer::Loop::AddConnection(int fd) {
  connections_.push_back({.fd = fd, .deadline = Clock::now() + timeout_});
  connections_.back().self = std::prev(connections_.end());
}

void HttpServer::Loop::OnConnection(void* loop, MHD_Connection* connection,
                                    void** context,
                                    MHD_ConnectionNotificationCode code) {
  Loop& self = *static_cast<Loop*>(loop);
  if (code == MHD_CONNECTION_NOTIFY_CLOSED) {
    // Its descriptor is closed after this, never before.
    auto* const closed = static_cast<Connection*>(*context);
    if (closed != nullptr) self.connections_.erase(closed->self);
    return;
  }
  const int fd =
      MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD)
          ->connect_fd;
  try {
    self.AddConnection(fd);
    *context = &self.connections_.back();
  } catch (const std::bad_alloc&) {
    shutdown(fd, SHUT_RDWR);
  }
}

void HttpServer::Loop::OnCompleted(void* loop, MHD_Connection* connection,
                                   void** pending, MHD_RequestTerminationCode) {
  delete static_cast<PendingRequest*>(*pending);
  *pending = nullptr;
  if (Connection* const done = ConnectionOf(connection); done != nullptr) {
    done->answering = false;
    static_cast<Loop*>(loop)->Extend(*done, Clock::now());
  }
}

// Called once when a request's headers have come, then with each piece of its
// body, then without one at its end.
MHD_Result HttpServer::Loop::OnRequest(void* loop, MHD_Connection* connection,
                                       const char* path, const char* method,
                                       const char*, const char* data,
                                       size_t* data_bytes, void** pending) {
  const Loop& self = *static_cast<Loop*>(loop);
  const int64_t most = self.options_.max_body_bytes;
  try {
    auto* const request = static_cast<PendingRequest*>(*pending);
    if (request == nullptr) {
      *pending = new PendingRequest;
      if (!TellsALongerBody(connection, most)) return MHD_YES;
      // An answer before the body makes libmicrohttpd close the connection.
      return Send(connection,
                  PlainText(413, absl::StrCat("the body is longer than ", most,
                                              " bytes")));
    }
    if (*data_bytes > 0) {
      if (request->body.size() + *data_bytes > most) return MHD_NO;
      request->body.append(data, *data_bytes);
      *data_bytes = 0;
      return MHD_YES;
    }
    if (Connection* const its = ConnectionOf(connection); its != nullptr) {
      its->answering = true;
    }
    return Send(connection, self.Route({method, path, request->body}));
  } catch (const std::bad_alloc&) {
    return MHD_NO;
  }
}

HttpResponse HttpServer::Loop::Route(const HttpRequest& request) const {
  std::string allowed;
  for (const HttpRoute& route : routes_) {
    if (route.path != request.path) continue;
    if (Serves(route, request.method)) return route.handler(request);
    absl::StrAppend(&allowed, allowed.empty() ? "" : ", ", route.method,
                    route.method == "GET" ? ", HEAD" : "");
  }
  if (allowed.empty()) return PlainText(404, "there is nothing at this path");
  HttpResponse response =
      PlainText(405, absl::StrCat("this path takes ", allowed));
  response.headers.emplace_back("Allow", allowed);
  return response;
}

HttpServer::HttpServer(std::unique_ptr<Loop> loop) : loop_(std::move(loop)) {}

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(
    const HttpServerOptions& options, std::vector<HttpRoute> routes) {
  auto socket = ListenOn(options.address, options.loopback_only);
  if (!socket.ok()) return socket.status();
  auto loop =
      std::make_unique<Loop>(options, std::move(routes), *std::move(socket));
  if (absl::Status status = loop->Start(); !status.ok()) return status;
  std::unique_ptr<HttpServer> server(new HttpServer(std::move(loop)));
  // Inherited by the thread: signals are the business of others, and writing to
  // a closed connection must not raise SIGPIPE.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  absl::Status status;
  try {
    server->thread_ = std::thread([&loop = *server->loop_] { loop.Run(); });
  } catch (const std::system_error& error) {
    status = absl::UnavailableError(absl::StrCat(
        "cannot start the thread that serves HTTP: ", error.what()));
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (!status.ok()) return status;
  return server;
}

HttpServer::~HttpServer() {
  if (!thread_.joinable()) return;
  loop_->Stop();
  thread_.join();
}

const std::string& HttpServer::address() const { return loop_->address(); }

int64_t HttpServer::connections() const { return loop_->connections(); }

}  // namespace attention::server
