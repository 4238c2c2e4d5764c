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
#include <map>
#include <mutex>
#include <new>
#include <optional>
#include <system_error>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "base/descriptor.h"
#include "server/connections/loopback.h"
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
// What is polled beside connections that wait: the loop's own.
constexpr size_t kPolledFirst = 3;
constexpr auto kAnsweredPoll = absl::Milliseconds(2);

// What exchanges share with the loop, and may outlive it.
struct Shared {
  explicit Shared(HttpHold its_hold)
      : wake(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)),
        hold(std::move(its_hold)) {}

  // As HttpServerOptions::hold.
  bool Hold(const HttpOwner& owner, int64_t before, int64_t bytes) const {
    return before == bytes || !hold || hold(owner, before, bytes);
  }

  void CountExchange(const HttpOwner& owner, int64_t more) {
    const std::lock_guard<std::mutex> lock(mutex);
    exchanges += more;
    int64_t& its = exchanges_of[owner.id];
    its += more;
    if (its == 0) exchanges_of.erase(owner.id);
  }
  // Of all owners, and of one.
  std::pair<int64_t, int64_t> CountOf(const HttpOwner& owner) {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto its = exchanges_of.find(owner.id);
    return {exchanges, its == exchanges_of.end() ? 0 : its->second};
  }

  // Wakes up the loop.
  const Descriptor wake;
  const HttpHold hold;
  std::mutex mutex;
  // Guarded by mutex.
  int64_t exchanges = 0;
  std::map<int, int64_t> exchanges_of;
};

class Exchange final : public HttpExchange {
 public:
  // `held` bytes are its own from here on.
  Exchange(std::shared_ptr<Shared> shared, const HttpOwner& owner, int64_t held)
      : shared_(std::move(shared)), owner_(owner), held_(held) {
    shared_->CountExchange(owner_, 1);
  }
  ~Exchange() override {
    shared_->Hold(owner_, held_, 0);
    shared_->CountExchange(owner_, -1);
  }

  void Answer(HttpResponse response) override {
    // Destroyed without the lock: it may own anything.
    std::function<void()> give_up;
    const std::lock_guard<std::mutex> lock(mutex_);
    if (gone_ || answered_) return;
    answered_ = true;
    answer_ = std::move(response);
    give_up.swap(give_up_);
    eventfd_write(shared_->wake.get(), 1);
  }

  void Abort() noexcept override {
    std::function<void()> give_up;
    const std::lock_guard<std::mutex> lock(mutex_);
    if (gone_ || answered_) return;
    answered_ = true;
    give_up.swap(give_up_);
    eventfd_write(shared_->wake.get(), 1);
  }

  bool gone() const override {
    const std::lock_guard<std::mutex> lock(mutex_);
    return gone_;
  }

  bool Hold(int64_t bytes) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!shared_->Hold(owner_, held_, bytes)) return false;
    held_ = bytes;
    return true;
  }

  void OnGone(std::function<void()> give_up) override {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (answered_) return;
      if (!gone_) {
        give_up_ = std::move(give_up);
        return;
      }
    }
    give_up();
  }

  // The loop's side.

  bool answered() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return answered_;
  }
  // Nothing: it was aborted.
  std::optional<HttpResponse> TakeAnswer() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return std::exchange(answer_, std::nullopt);
  }
  // The request is over, however it ended.
  void Leave() {
    std::function<void()> give_up;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      gone_ = true;
      give_up.swap(give_up_);
    }
    if (give_up) give_up();
  }

 private:
  const std::shared_ptr<Shared> shared_;
  const HttpOwner owner_;
  mutable std::mutex mutex_;
  // Guarded by mutex_.
  int64_t held_;
  bool gone_ = false;
  bool answered_ = false;
  std::optional<HttpResponse> answer_;
  std::function<void()> give_up_;
};

// What is kept of a request from its headers until its answer is sent.
struct PendingRequest {
  MHD_Connection* connection;
  std::string body = {};
  HttpOwner owner = {};
  // Bytes that count as held for `body`; none once an exchange counts them.
  int64_t held = 0;
  // What is answered when the body has come, which is not kept.
  std::optional<HttpResponse> refusal = {};
  std::shared_ptr<Exchange> exchange = {};
  // Where it stands among those that wait for an answer.
  std::optional<std::list<PendingRequest*>::iterator> waiting = {};
};

// Percent-decoding in place, but for %00: what stands behind it would be cut
// off.
size_t Unescape(void*, MHD_Connection*, char* text) {
  const auto digit = [](char c) {
    return absl::ascii_isdigit(c)    ? c - '0'
           : absl::ascii_isxdigit(c) ? absl::ascii_tolower(c) - 'a' + 10
                                     : -1;
  };
  char* to = text;
  for (const char* from = text; *from != '\0'; ++from) {
    const int high = *from == '%' ? digit(from[1]) : -1;
    const int low = high >= 0 ? digit(from[2]) : -1;
    if (low < 0 || (high == 0 && low == 0)) {
      *to++ = *from;
    } else {
      *to++ = static_cast<char>(16 * high + low);
      from += 2;
    }
  }
  *to = '\0';
  return static_cast<size_t>(to - text);
}

HttpResponse PlainText(int status, absl::string_view text) {
  HttpResponse response;
  response.status = status;
  response.body = absl::StrCat(text, "\n");
  return response;
}

bool IsAt(const HttpRoute& route, absl::string_view path) {
  absl::string_view begin = route.path;
  if (absl::ConsumeSuffix(&begin, "*")) return absl::StartsWith(path, begin);
  return path == route.path;
}

bool Serves(const HttpRoute& route, absl::string_view method) {
  return route.method.empty() || method == route.method ||
         (method == "HEAD" && route.method == "GET");
}

// Whether the request says that its body is longer than `most` bytes.
bool TellsALongerBody(MHD_Connection* connection, int64_t most) {
  const char* length = MHD_lookup_connection_value(connection, MHD_HEADER_KIND,
                                                   "Content-Length");
  if (length == nullptr) return false;
  int64_t bytes;
  return !absl::SimpleAtoi(length, &bytes) || bytes > most;
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
        shared_(std::make_shared<Shared>(options.hold)) {
    polled_.reserve(kPolledFirst);
  }

  ~Loop() {
    if (daemon_ == nullptr) return;
    // libmicrohttpd dies of suspended connections.
    while (!waiting_.empty()) Abandon(*waiting_.front());
    MHD_run(daemon_);
    MHD_stop_daemon(daemon_);
  }

  absl::Status Start();
  void Run();

  void Stop() {
    stopping_ = true;
    eventfd_write(shared_->wake.get(), 1);
  }

  const std::string& address() const { return socket_.address; }
  int64_t connections() const { return count_; }
  int64_t unanswered() const { return unanswered_; }

 private:
  struct Connection {
    int fd;
    Clock::time_point deadline;
    // An answer is on its way: it makes room for others only after a while.
    bool answering = false;
    // An exchange is: the connection stays, for as long as that takes.
    bool waiting = false;
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
  MHD_Result Send(MHD_Connection* connection, HttpResponse response) const;
  HttpResponse ErrorResponse(int status, absl::string_view text,
                             const HttpRequest& request) const;
  HttpResponse Busy(absl::string_view text, const HttpRequest& request) const;
  const HttpRoute* RouteOf(const HttpRequest& request) const;
  MHD_Result Headers(const HttpRequest& request, PendingRequest& pending);
  void TakeBody(absl::string_view data, const HttpRequest& request,
                PendingRequest& pending);
  void DropBody(PendingRequest& pending);
  MHD_Result Route(const HttpRequest& request, PendingRequest& pending);
  MHD_Result Begin(const HttpTask& task, const HttpRequest& request,
                   PendingRequest& pending);
  // One that waits for its answer goes on: to send it, or to be closed.
  void Resume(PendingRequest& pending);
  void Abandon(PendingRequest& pending);
  void ResumeAnswered();

  const HttpServerOptions options_;
  const Clock::duration timeout_;
  const Clock::duration answer_patience_;
  const std::vector<HttpRoute> routes_;
  const ListenSocket socket_;
  const std::shared_ptr<Shared> shared_;
  std::atomic<bool> stopping_{false};
  std::atomic<int64_t> count_{0};
  // Requests with an exchange, until their answer was taken.
  std::atomic<int64_t> unanswered_{0};
  // Requests whose exchange has not answered; their connections are suspended.
  std::list<PendingRequest*> waiting_;
  std::vector<pollfd> polled_;
  // Earliest deadline first: each new deadline is later than all others.
  std::list<Connection> connections_;
  Clock::time_point accept_after_ = Clock::time_point::min();
  MHD_Daemon* daemon_ = nullptr;
};

absl::Status HttpServer::Loop::Start() {
  if (shared_->wake.valid()) {
    daemon_ = MHD_start_daemon(
        MHD_USE_EPOLL | MHD_USE_NO_LISTEN_SOCKET | MHD_ALLOW_SUSPEND_RESUME, 0,
        nullptr, nullptr, &Loop::OnRequest, this, MHD_OPTION_CONNECTION_LIMIT,
        static_cast<unsigned>(options_.max_connections),
        MHD_OPTION_CONNECTION_MEMORY_LIMIT,
        static_cast<size_t>(options_.max_header_bytes + kAnswerHeaderBytes),
        MHD_OPTION_SIGPIPE_HANDLED_BY_APP, 1, MHD_OPTION_NOTIFY_COMPLETED,
        &Loop::OnCompleted, this, MHD_OPTION_NOTIFY_CONNECTION,
        &Loop::OnConnection, this, MHD_OPTION_UNESCAPE_CALLBACK, &Unescape,
        nullptr, MHD_OPTION_END);
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
    ResumeAnswered();
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
  // Room for all was made when they began to wait.
  polled_.clear();
  polled_.push_back({shared_->wake.get(), POLLIN, 0});
  polled_.push_back({info->epoll_fd, POLLIN, 0});
  // poll() passes over what is negative.
  polled_.push_back({paused ? -1 : socket_.fd.get(), POLLIN, 0});
  for (const PendingRequest* pending : waiting_) {
    polled_.push_back({ConnectionOf(pending->connection)->fd, POLLRDHUP, 0});
  }
  poll(polled_.data(), polled_.size(),
       static_cast<int>(
           std::chrono::ceil<std::chrono::milliseconds>(wait).count()));
  if (polled_[0].revents != 0) {
    eventfd_t count;
    eventfd_read(shared_->wake.get(), &count);
  }
  auto next = waiting_.begin();
  for (size_t i = kPolledFirst; i < polled_.size(); ++i) {
    PendingRequest& pending = **next++;
    if (polled_[i].revents != 0) Abandon(pending);
  }
  return polled_[2].revents != 0;
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
    Connection& connection = connections_.front();
    if (connection.waiting) {
      Extend(connection, now);
    } else {
      Cut(connection, now);
    }
  }
}

void HttpServer::Loop::CutLongestWaiting(Clock::time_point now) {
  for (Connection& connection : connections_) {
    if (connection.waiting) continue;
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
  Loop& self = *static_cast<Loop*>(loop);
  auto* const request = static_cast<PendingRequest*>(*pending);
  if (request != nullptr) {
    if (request->exchange != nullptr) {
      request->exchange->Leave();
      --self.unanswered_;
    }
    self.DropBody(*request);
    delete request;
  }
  *pending = nullptr;
  if (Connection* const done = ConnectionOf(connection); done != nullptr) {
    done->answering = false;
    self.Extend(*done, Clock::now());
  }
}

// Called once when a request's headers have come, then with each piece of its
// body, then without one at its end, and again when an exchange has answered.
MHD_Result HttpServer::Loop::OnRequest(void* loop, MHD_Connection* connection,
                                       const char* path, const char* method,
                                       const char*, const char* data,
                                       size_t* data_bytes, void** pending) {
  Loop& self = *static_cast<Loop*>(loop);
  try {
    auto* request = static_cast<PendingRequest*>(*pending);
    const bool began = request == nullptr;
    if (began) {
      request = new PendingRequest{.connection = connection};
      *pending = request;
    }
    const HttpRequest asked{method, path, request->body, request->owner,
                            connection};
    if (began) return self.Headers(asked, *request);
    if (request->exchange != nullptr) {
      // Without an answer its client has gone, or there is none to be had.
      std::optional<HttpResponse> answer;
      if (request->exchange->answered()) {
        answer = request->exchange->TakeAnswer();
      }
      return answer ? self.Send(connection, *std::move(answer)) : MHD_NO;
    }
    if (*data_bytes > 0) {
      const auto most = static_cast<size_t>(self.options_.max_body_bytes);
      if (request->body.size() + *data_bytes > most) return MHD_NO;
      self.TakeBody(absl::string_view(data, *data_bytes), asked, *request);
      *data_bytes = 0;
      return MHD_YES;
    }
    if (request->refusal) {
      return self.Send(connection, *std::move(request->refusal));
    }
    if (Connection* const its = ConnectionOf(connection); its != nullptr) {
      its->answering = true;
    }
    return self.Route(asked, *request);
  } catch (const std::bad_alloc&) {
    return MHD_NO;
  }
}

const HttpRoute* HttpServer::Loop::RouteOf(const HttpRequest& request) const {
  for (const HttpRoute& route : routes_) {
    if (IsAt(route, request.path) && Serves(route, request.method)) {
      return &route;
    }
  }
  return nullptr;
}

MHD_Result HttpServer::Loop::Send(MHD_Connection* connection,
                                  HttpResponse response) const {
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
  if (result == MHD_YES && options_.on_answer) {
    options_.on_answer(response.status);
  }
  return result;
}

// An answer before the body makes libmicrohttpd close the connection.
MHD_Result HttpServer::Loop::Headers(const HttpRequest& request,
                                     PendingRequest& pending) {
  const int64_t most = options_.max_body_bytes;
  if (TellsALongerBody(pending.connection, most)) {
    return Send(
        pending.connection,
        ErrorResponse(413,
                      absl::StrCat("the body is longer than ", most, " bytes"),
                      request));
  }
  const HttpRoute* const route = RouteOf(request);
  if (route == nullptr || !route->guard) return MHD_YES;
  std::optional<HttpResponse> refusal = route->guard(request);
  if (!refusal) return MHD_YES;
  // With no body to come the connection may stay.
  const char* const length = MHD_lookup_connection_value(
      pending.connection, MHD_HEADER_KIND, "Content-Length");
  const bool chunked =
      MHD_lookup_connection_value(pending.connection, MHD_HEADER_KIND,
                                  "Transfer-Encoding") != nullptr;
  if (!chunked && (length == nullptr || absl::string_view(length) == "0")) {
    pending.refusal = std::move(refusal);
    return MHD_YES;
  }
  return Send(pending.connection, *std::move(refusal));
}

void HttpServer::Loop::TakeBody(absl::string_view data,
                                const HttpRequest& request,
                                PendingRequest& pending) {
  // libmicrohttpd takes no answer in the middle of a body.
  if (pending.refusal) return;
  const size_t needed = pending.body.size() + data.size();
  if (needed > pending.body.capacity()) {
    const size_t room = std::max(
        needed, std::min(2 * pending.body.capacity(),
                         static_cast<size_t>(options_.max_body_bytes)));
    if (!shared_->Hold(pending.owner, pending.held,
                       static_cast<int64_t>(room))) {
      DropBody(pending);
      pending.refusal =
          Busy("requests over HTTP hold too much memory: try again", request);
      return;
    }
    pending.held = static_cast<int64_t>(room);
    pending.body.reserve(room);
  }
  pending.body.append(data.data(), data.size());
}

void HttpServer::Loop::DropBody(PendingRequest& pending) {
  shared_->Hold(pending.owner, std::exchange(pending.held, 0), 0);
  std::string().swap(pending.body);
}

// Of what may work in a moment.
HttpResponse HttpServer::Loop::Busy(absl::string_view text,
                                    const HttpRequest& request) const {
  HttpResponse response = ErrorResponse(503, text, request);
  response.headers.emplace_back("Retry-After", "1");
  return response;
}

HttpResponse HttpServer::Loop::ErrorResponse(int status, absl::string_view text,
                                             const HttpRequest& request) const {
  if (!options_.error_response) return PlainText(status, text);
  return options_.error_response(status, text, request);
}

MHD_Result HttpServer::Loop::Route(const HttpRequest& request,
                                   PendingRequest& pending) {
  if (const HttpRoute* const route = RouteOf(request); route != nullptr) {
    if (const auto* handler = std::get_if<HttpHandler>(&route->handler)) {
      return Send(request.connection, (*handler)(request));
    }
    return Begin(std::get<HttpTask>(route->handler), request, pending);
  }
  std::string allowed;
  for (const HttpRoute& route : routes_) {
    if (!IsAt(route, request.path)) continue;
    absl::StrAppend(&allowed, allowed.empty() ? "" : ", ", route.method,
                    route.method == "GET" ? ", HEAD" : "");
  }
  if (allowed.empty()) {
    return Send(request.connection,
                ErrorResponse(404, "there is nothing at this path", request));
  }
  HttpResponse response =
      ErrorResponse(405, absl::StrCat("this path takes ", allowed), request);
  response.headers.emplace_back("Allow", allowed);
  return Send(request.connection, std::move(response));
}

MHD_Result HttpServer::Loop::Begin(const HttpTask& task,
                                   const HttpRequest& request,
                                   PendingRequest& pending) {
  const int64_t most =
      std::min(options_.max_exchanges,
               std::max<int64_t>(1, options_.max_connections - 1));
  const auto [all, its] = shared_->CountOf(request.owner);
  if (all >= most || (request.owner.id != 0 &&
                      its >= std::min(most, options_.max_owner_exchanges))) {
    return Send(
        request.connection,
        Busy("too many requests over HTTP are being worked on: try again",
             request));
  }
  Connection* const connection = ConnectionOf(request.connection);
  if (connection == nullptr) return MHD_NO;
  // All that can fail comes first.
  polled_.reserve(kPolledFirst + waiting_.size() + 1);
  std::list<PendingRequest*> waiting = {&pending};
  pending.exchange =
      std::make_shared<Exchange>(shared_, pending.owner, pending.held);
  pending.held = 0;
  ++unanswered_;
  task(request, pending.exchange);
  pending.waiting = waiting.begin();
  waiting_.splice(waiting_.end(), waiting);
  connection->waiting = true;
  MHD_suspend_connection(request.connection);
  return MHD_YES;
}

void HttpServer::Loop::Resume(PendingRequest& pending) {
  waiting_.erase(*pending.waiting);
  pending.waiting.reset();
  Connection* const connection = ConnectionOf(pending.connection);
  connection->waiting = false;
  // The answer has as long as any other.
  Extend(*connection, Clock::now());
  MHD_resume_connection(pending.connection);
}

void HttpServer::Loop::Abandon(PendingRequest& pending) {
  pending.exchange->Leave();
  shutdown(ConnectionOf(pending.connection)->fd, SHUT_RDWR);
  Resume(pending);
}

void HttpServer::Loop::ResumeAnswered() {
  for (auto next = waiting_.begin(); next != waiting_.end();) {
    PendingRequest& pending = **next++;
    if (pending.exchange->answered()) Resume(pending);
  }
}

absl::string_view HttpRequest::Header(const char* name) const {
  const char* const value =
      MHD_lookup_connection_value(connection, MHD_HEADER_KIND, name);
  return value == nullptr ? absl::string_view() : value;
}

std::vector<absl::string_view> HttpRequest::Headers(const char* name) const {
  struct Wanted {
    absl::string_view name;
    std::vector<absl::string_view> values;
  } wanted{name, {}};
  MHD_get_connection_values(
      connection, MHD_HEADER_KIND,
      [](void* to, MHD_ValueKind, const char* key, const char* value) {
        auto& all = *static_cast<Wanted*>(to);
        if (absl::EqualsIgnoreCase(key, all.name)) {
          all.values.emplace_back(value == nullptr ? "" : value);
        }
        return MHD_YES;
      },
      &wanted);
  return std::move(wanted.values);
}

bool HttpRequest::IsOnThisMachine() const {
  const MHD_ConnectionInfo* const info =
      MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CLIENT_ADDRESS);
  return info != nullptr && info->client_addr != nullptr &&
         IsLoopback(*info->client_addr);
}

absl::string_view HttpRequest::Parameter(const char* name) const {
  const char* const value =
      MHD_lookup_connection_value(connection, MHD_GET_ARGUMENT_KIND, name);
  return value == nullptr ? absl::string_view() : value;
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

bool HttpServer::WaitUntilAnswered(absl::Time deadline) const {
  while (loop_->unanswered() > 0) {
    if (absl::Now() >= deadline) return false;
    absl::SleepFor(kAnsweredPoll);
  }
  return true;
}

}  // namespace attention::server
