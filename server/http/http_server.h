// An HTTP/1.1 listener for a few paths, bounded in all that a client can make
// it spend.
//
//   auto server = HttpServer::Start({.address = "127.0.0.1:0"},
//                                   {{"GET", "/livez", [](const HttpRequest&) {
//                                      return HttpResponse{.body = "ok\n"};
//                                    }}});
//   if (!server.ok()) ...
//   ... (*server)->address() ...
#ifndef ATTENTION_SERVER_HTTP_HTTP_SERVER_H_
#define ATTENTION_SERVER_HTTP_HTTP_SERVER_H_

#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

struct MHD_Connection;

namespace attention::server {

// Whom a request's memory and its place among exchanges count for.
struct HttpOwner {
  // 0: all who have no other one.
  int id = 0;
  // Most bytes that its requests may hold together.
  int64_t max_bytes = std::numeric_limits<int64_t>::max();
};

// Valid during the handler's call only.
class HttpRequest {
 public:
  // As it was sent: "GET", "HEAD", "POST".
  absl::string_view method;
  // Without the query, percent-decoded.
  absl::string_view path;
  // Whole, at most HttpServerOptions::max_body_bytes. May be moved from.
  std::string& body;
  // For a guard to set.
  HttpOwner& owner;

  // The value of a header, whatever the case of its name; of a parameter of the
  // query, percent-decoded. Empty if it is not there; the first of several.
  absl::string_view Header(const char* name) const;
  // All values of a header that may come more than once.
  std::vector<absl::string_view> Headers(const char* name) const;
  absl::string_view Parameter(const char* name) const;
  // Whether the client is on this machine.
  bool IsOnThisMachine() const;

  // The library's.
  MHD_Connection* connection;
};

struct HttpResponse {
  int status = 200;
  std::string body = {};
  std::string content_type = "text/plain; charset=utf-8";
  // More headers: names and values.
  std::vector<std::pair<std::string, std::string>> headers = {};
};

// Runs on the listener's only thread, so it must be short and must not block.
// May throw std::bad_alloc alone: that request's connection is closed.
using HttpHandler = std::function<HttpResponse(const HttpRequest&)>;

// A request that is answered later, from any thread. Thread-safe; may outlive
// the server.
class HttpExchange {
 public:
  virtual ~HttpExchange() = default;

  // The answer. What comes after the first, or after the client has gone, is
  // dropped.
  virtual void Answer(HttpResponse response) = 0;

  // Closes the connection without an answer, for which there is no memory. Like
  // Answer() otherwise.
  virtual void Abort() noexcept = 0;

  // Whether nobody waits for the answer any more.
  virtual bool gone() const = 0;

  // From here on so many bytes are held for it, in place of those before (at
  // first: its body's). False, and nothing changes, where
  // HttpServerOptions::hold refuses. They are given back when
  // nobody owns the exchange any more: neither the server, which waits for its
  // client to take the answer or go, nor who works on it.
  virtual bool Hold(int64_t bytes) = 0;

  // To be called once when the client goes, or the server stops, before
  // Answer(): at once if that has happened. Must not block.
  virtual void OnGone(std::function<void()> give_up) = 0;
};

// Begins the work for a request, and sees to it that Answer() is called, also
// where the client has gone. As for HttpHandler otherwise.
using HttpTask =
    std::function<void(const HttpRequest&, std::shared_ptr<HttpExchange>)>;

// Looks at a request of which only the headers have come. What it returns is
// the answer, and the body is not read. As for HttpHandler otherwise.
using HttpGuard =
    std::function<std::optional<HttpResponse>(const HttpRequest&)>;

struct HttpRoute {
  // One that answers GET answers HEAD too; the body is left out. Empty: all.
  std::string method;
  // Compared whole; with "*" at its end, what stands before must begin the
  // path. The first route that fits is taken.
  std::string path;
  std::variant<HttpHandler, HttpTask> handler;
  // Before the body is read; may be empty.
  HttpGuard guard = {};
};

using HttpHold =
    std::function<bool(const HttpOwner& owner, int64_t before, int64_t bytes)>;

struct HttpServerOptions {
  // "host:port" or "[ip6]:port"; port 0 takes a free one. Default: a free one
  // of loopback.
  std::string address = "127.0.0.1:0";
  // Whether to refuse other addresses: what is said can be read on its way.
  bool loopback_only = false;
  // Connections at once, at least 1. When one more comes, the connection that
  // has gone longest without finishing a request makes room for it, so that
  // idle and slow clients cannot keep out others. Costs a descriptor each, and
  // max_header_bytes, max_body_bytes and an answer at most.
  int64_t max_connections = 64;
  // A connection whose request is being answered need not make room until it
  // has gone so long without finishing one: an honest client takes its answer
  // in less.
  absl::Duration answer_patience = absl::Seconds(1);
  // A connection is closed when it has not finished a request within this time
  // of being accepted, or of finishing the request before. To finish means that
  // all of the answer was taken. Greater than 0.
  absl::Duration timeout = absl::Seconds(10);
  // A request's line and headers, with what is made of them when parsed: some
  // 100 bytes per header. Beyond it: 431 or 414.
  int64_t max_header_bytes = int64_t{16} << 10;
  // Beyond it: 413, or the connection is closed where a body does not tell its
  // length beforehand.
  int64_t max_body_bytes = 0;
  // Asked before memory is taken for the bodies of requests and for what
  // HttpExchange::Hold() is told: whether `bytes` may be held for an owner in
  // place of `before`, which were held so far. Less always may. Refused to a
  // body: 503. Called from any thread; must outlive every exchange. Empty: all
  // may be.
  HttpHold hold = {};
  // Exchanges at once that somebody owns: one more request is answered 503.
  // Never as many as max_connections, unless that is 1, so that there is always
  // a connection that can make room for the next one.
  int64_t max_exchanges = 16;
  // The same of an owner whose id is not 0, so that one leaves room for others.
  int64_t max_owner_exchanges = 8;
  // What the server itself says of a request, with a status of 4xx or 5xx. The
  // default is plain text.
  std::function<HttpResponse(int status, absl::string_view text,
                             const HttpRequest& request)>
      error_response = {};
  // Told of each answer, on the listener's thread. Must not block.
  std::function<void(int status)> on_answer = {};
};

// Has one thread of its own, which all handlers run on. Memory is bounded as
// the options say; a request whose memory cannot be had loses its connection.
// When descriptors run out, new connections wait in the kernel until there are
// some again. Thread-safe.
//
// A path without a route gives 404, a method without one 405. The client of an
// exchange that closes its side of the connection, be it half, is taken to have
// gone.
class HttpServer {
 public:
  // Serves as soon as it returns.
  //
  // Errors: Unavailable with the address and the reason; FailedPrecondition if
  // `loopback_only` and it is another address.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(
      const HttpServerOptions& options, std::vector<HttpRoute> routes);

  // Closes every connection at once; waits for no client, only for a handler
  // that runs.
  ~HttpServer();
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  // "host:port" with the host as it was given and the real port.
  const std::string& address() const;

  // Connections that are open.
  int64_t connections() const;

  // Waits until no client waits for an HttpExchange: its answer was taken, or
  // it has gone. False at the deadline.
  bool WaitUntilAnswered(absl::Time deadline) const;

 private:
  class Loop;

  explicit HttpServer(std::unique_ptr<Loop> loop);

  const std::unique_ptr<Loop> loop_;
  std::thread thread_;
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_HTTP_HTTP_SERVER_H_
