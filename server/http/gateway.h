// The gRPC methods over HTTP, in proto3 JSON: docs/http.md.
#ifndef ATTENTION_SERVER_HTTP_GATEWAY_H_
#define ATTENTION_SERVER_HTTP_GATEWAY_H_

#include <memory>
#include <optional>

#include "server/http/call_guard.h"
#include "server/http/grpc_caller.h"
#include "server/http/http_server.h"

namespace attention::server {

// Thread-safe.
class Gateway {
 public:
  // What is not owned must outlive every exchange.
  Gateway(const CallGuard& guard, GrpcCaller& caller);

  // Of requests at /v1/: what is wrong with one that has no body yet.
  std::optional<HttpResponse> Guard(const HttpRequest& request) const;
  // Begins what one asks for that Guard() has let pass.
  void Handle(const HttpRequest& request,
              const std::shared_ptr<HttpExchange>& exchange) const;

 private:
  const CallGuard& guard_;
  GrpcCaller& caller_;
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_HTTP_GATEWAY_H_
