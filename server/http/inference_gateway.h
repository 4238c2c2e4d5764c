// The Open Inference Protocol (KServe v2) over HTTP, as Triton's clients speak
// it: docs/kserve.md.
#ifndef ATTENTION_SERVER_HTTP_INFERENCE_GATEWAY_H_
#define ATTENTION_SERVER_HTTP_INFERENCE_GATEWAY_H_

#include <atomic>
#include <memory>
#include <optional>

#include "absl/strings/string_view.h"
#include "server/http/call_guard.h"
#include "server/http/grpc_caller.h"
#include "server/http/http_server.h"

namespace attention::server {

// Thread-safe.
class InferenceGateway {
 public:
  // What is not owned must outlive every exchange. `ready`: whether the server
  // takes calls.
  InferenceGateway(const CallGuard& guard, GrpcCaller& caller,
                   const std::atomic<bool>& ready);

  // Answers what asks for health, which must be told however many calls are
  // being worked on.
  HttpResponse Health(const HttpRequest& request) const;

  // Of other requests at /v2 or below: what is wrong with one that has no body
  // yet.
  std::optional<HttpResponse> Guard(const HttpRequest& request) const;
  // Begins what one asks for that Guard() has let pass.
  void Handle(const HttpRequest& request,
              const std::shared_ptr<HttpExchange>& exchange) const;

 private:
  const CallGuard& guard_;
  GrpcCaller& caller_;
  const std::atomic<bool>& ready_;
};

// Where Health() is served.
inline constexpr const char* kHealthPaths[] = {
    "/v2/health/live", "/v2/health/ready", "/v2/models/attention/ready",
    "/v2/models/attention/versions/1/ready"};

// An error as this protocol says it.
HttpResponse InferenceError(int http_status, absl::string_view message);

}  // namespace attention::server

#endif  // ATTENTION_SERVER_HTTP_INFERENCE_GATEWAY_H_
