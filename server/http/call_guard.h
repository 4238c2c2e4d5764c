// What calls over HTTP have in common before their body is read: who calls, and
// from where.
#ifndef ATTENTION_SERVER_HTTP_CALL_GUARD_H_
#define ATTENTION_SERVER_HTTP_CALL_GUARD_H_

#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/auth/authenticator.h"
#include "server/auth/tenant.h"
#include "server/http/http_server.h"
#include "server/http/origins.h"

namespace attention::server {

// Whether a body is compressed, which none may be (415).
bool IsCompressed(const HttpRequest& request);
inline constexpr char kCompressed[] =
    "Content-Encoding: got a compressed body, wanted one that is not";

// Why a call ends whose deadline passed before its body was read.
absl::Status DeadlineBeforeWork();

// Thread-safe.
class CallGuard {
 public:
  // `refusal`: why no call is taken; empty: they are. What is not owned must
  // outlive this.
  CallGuard(const Origins& origins, const Authenticator& authenticator,
            std::string refusal);

  // Whose call a request is, which counts for that tenant from here on; or why
  // it may not call. gRPC looks at the token again.
  absl::StatusOr<TenantPtr> Check(const HttpRequest& request) const;
  // Of a request for health, which may need no token.
  absl::Status CheckHealth(const HttpRequest& request) const;

  // What every answer to a request says beside its body: whether the page may
  // read it, and how the caller named the call. A function, for the request may
  // be gone by then.
  using Finisher = std::function<void(HttpResponse& response)>;
  Finisher FinisherOf(const HttpRequest& request) const;

  const Origins& origins() const { return origins_; }

 private:
  const Origins& origins_;
  const Authenticator& authenticator_;
  const std::string refusal_;
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_HTTP_CALL_GUARD_H_
