// What calls over HTTP have in common before their body is read: who calls, and
// from where.
#ifndef ATTENTION_SERVER_HTTP_CALL_GUARD_H_
#define ATTENTION_SERVER_HTTP_CALL_GUARD_H_

#include <optional>
#include <string>

#include "grpcpp/support/status.h"
#include "server/auth/authenticator.h"
#include "server/http/http_server.h"
#include "server/http/origins.h"

namespace attention::server {

// Thread-safe.
class CallGuard {
 public:
  // `refusal`: why no call is taken; empty: they are. What is not owned must
  // outlive this.
  CallGuard(const Origins& origins, const Authenticator& authenticator,
            std::string refusal);

  // Why a request may not call; nothing: it may. gRPC looks at the token again.
  std::optional<grpc::Status> Check(const HttpRequest& request) const;
  // Of a request for health, which may need no token.
  absl::Status CheckHealth(const HttpRequest& request) const;

  // Adds what every answer says beside its body.
  static void Finish(const Origins::Check& origin, HttpResponse& response);

  const Origins& origins() const { return origins_; }

 private:
  const Origins& origins_;
  const Authenticator& authenticator_;
  const std::string refusal_;
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_HTTP_CALL_GUARD_H_
