// Calls of the server's own gRPC methods for what comes over HTTP.
#ifndef ATTENTION_SERVER_HTTP_GRPC_CALLER_H_
#define ATTENTION_SERVER_HTTP_GRPC_CALLER_H_

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "grpcpp/channel.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/status.h"
#include "server/http/http_server.h"

namespace attention::server {

// Each call goes through a connection of its own to the server, so that all
// that holds for gRPC's clients holds for it: it is admitted before it is read,
// counted, logged and bounded in time, and ends well when the server drains.
//
// Work that may take long, as parsing JSON does, is done by one thread, in the
// order in which it comes. HttpServerOptions::max_exchanges bounds how much
// waits, for what waits owns its exchange. Thread-safe.
class GrpcCaller {
 public:
  // A connected channel; null while the server takes no calls.
  using Connect = std::function<std::shared_ptr<grpc::Channel>()>;

  struct Call {
    // "/package.Service/Method"
    std::string method;
    // Names in lower case. What gRPC does not allow in a header is left out.
    std::vector<std::pair<std::string, std::string>> headers;
    // Infinite: the server's own default.
    absl::Time deadline = absl::InfiniteFuture();
    grpc::ByteBuffer request;
  };
  struct Result {
    grpc::Status status;
    grpc::ByteBuffer response;
    // What the server said in its trailers of how the caller named its call.
    std::vector<std::pair<std::string, std::string>> caller_ids;
  };

  // Larger answers than `max_answer_bytes` are refused.
  //
  // Errors: Unavailable if there is no thread to be had.
  static absl::StatusOr<std::unique_ptr<GrpcCaller>> Create(
      Connect connect, int64_t max_answer_bytes);
  // Work that has not begun is dropped, calls that run are waited for: they
  // have been given up, for the HTTP server stops first.
  ~GrpcCaller();
  GrpcCaller(const GrpcCaller&) = delete;
  GrpcCaller& operator=(const GrpcCaller&) = delete;

  // Runs `work` on the thread, unless the exchange's client has gone by then.
  // Where that throws std::bad_alloc the exchange is aborted. May throw
  // std::bad_alloc itself.
  void Post(std::shared_ptr<HttpExchange> exchange, std::function<void()> work);

  // Makes a call, which is cancelled when the exchange's client goes. `done`
  // runs on the thread; at once, with UNAVAILABLE, where the server takes no
  // calls. From work on the thread only.
  void Start(const std::shared_ptr<HttpExchange>& exchange, const Call& call,
             std::function<void(Result)> done);

 private:
  GrpcCaller(Connect connect, int64_t max_answer_bytes);

  struct Task {
    std::shared_ptr<HttpExchange> exchange;
    std::function<void()> work;
  };
  struct Running;

  void Run();
  void Ended();

  const Connect connect_;
  const int64_t max_answer_bytes_;
  std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_.
  std::deque<Task> tasks_;
  int64_t running_ = 0;
  bool stop_ = false;
  std::thread thread_;
};

// How calls over HTTP are told to try again in a moment.
HttpResponse TooMuchHeld();

// What an answer takes as text, with what it is made from, per byte of its
// message: a float of 4 bytes has up to 14 characters.
inline constexpr int64_t kAnswerFactor = 5;
// Answers of no more bytes are not counted: that a session was made must be
// told also where memory is short.
inline constexpr int64_t kSmallAnswer = int64_t{64} << 10;

// What a request's headers say of the call that it is: who calls, until when
// (Grpc-Timeout), and how the caller names it. Without method and message.
//
// Errors: a FieldError() of Grpc-Timeout.
absl::StatusOr<GrpcCaller::Call> CallOf(const HttpRequest& request);

}  // namespace attention::server

#endif  // ATTENTION_SERVER_HTTP_GRPC_CALLER_H_
