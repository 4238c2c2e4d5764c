// Calls of the server's own gRPC methods for what comes over HTTP.
#ifndef ATTENTION_SERVER_HTTP_GRPC_CALLER_H_
#define ATTENTION_SERVER_HTTP_GRPC_CALLER_H_

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "grpcpp/channel.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/status.h"
#include "server/auth/tenant.h"
#include "server/http/http_server.h"
#include "server/http/work_lane.h"

namespace attention::server {

// Each call goes through a connection of its own to the server, so that all
// that holds for gRPC's clients holds for it: it is admitted before it is read,
// counted, logged and bounded in time, and ends well when the server drains.
//
// Work that may take long, as parsing JSON does, is done on two lanes: what is
// small never waits for what is large. Thread-safe.
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
    // Whose it is.
    TenantPtr tenant;
    grpc::ByteBuffer request;
  };
  struct Result {
    grpc::Status status;
    grpc::ByteBuffer response;
  };

  // Larger answers than `max_answer_bytes` are refused.
  //
  // Errors: Unavailable if there are no threads to be had.
  static absl::StatusOr<std::unique_ptr<GrpcCaller>> Create(
      Connect connect, int64_t max_answer_bytes);
  // Calls that run are waited for: they have been given up, for the HTTP server
  // stops first. Work that has not begun then is dropped.
  ~GrpcCaller();
  GrpcCaller(const GrpcCaller&) = delete;
  GrpcCaller& operator=(const GrpcCaller&) = delete;

  // Runs work on the lane for its size. May throw std::bad_alloc.
  void Post(WorkLane::Work work);

  // Makes a call, which is cancelled when the exchange's client goes. `done`,
  // which may take the answer out of the result so that its memory is free,
  // runs on a lane, and the exchange holds the answer's bytes while it waits
  // there, with UNAVAILABLE in the answer's place where it may not; at once,
  // with UNAVAILABLE, where the server takes no calls. From posted work only.
  void Start(const std::shared_ptr<HttpExchange>& exchange, const Call& call,
             std::function<void(Result&)> done);

 private:
  struct Running;

  GrpcCaller(Connect connect, int64_t max_answer_bytes);

  void Ended();

  const Connect connect_;
  const int64_t max_answer_bytes_;
  std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_.
  int64_t running_ = 0;
  bool stop_ = false;
  std::unique_ptr<WorkLane> small_lane_;
  std::unique_ptr<WorkLane> large_lane_;
};

// What a request's headers say of the call that it is: who calls, until when
// (Grpc-Timeout), and how the caller names it. Without method and message.
//
// Errors: a FieldError() of Grpc-Timeout.
absl::StatusOr<GrpcCaller::Call> CallOf(const HttpRequest& request);

}  // namespace attention::server

#endif  // ATTENTION_SERVER_HTTP_GRPC_CALLER_H_
