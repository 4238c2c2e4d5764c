#include "server/http/call_guard.h"

#include <initializer_list>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/string_view.h"
#include "server/rpc/call_headers.h"

namespace attention::server {
namespace {

// The headers of these names as gRPC has them.
CallHeaders HeadersOf(const HttpRequest& request,
                      std::initializer_list<const char*> names) {
  CallHeaders headers;
  for (const char* name : names) {
    for (const absl::string_view value : request.Headers(name)) {
      headers.emplace(name, grpc::string_ref(value.data(), value.size()));
    }
  }
  return headers;
}

}  // namespace

bool IsCompressed(const HttpRequest& request) {
  const absl::string_view coding = request.Header("Content-Encoding");
  return !coding.empty() && !absl::EqualsIgnoreCase(coding, "identity");
}

absl::Status DeadlineBeforeWork() {
  return absl::DeadlineExceededError(
      "the deadline passed while the call waited for others over HTTP");
}

CallGuard::CallGuard(const Origins& origins, const Authenticator& authenticator,
                     std::string refusal)
    : origins_(origins),
      authenticator_(authenticator),
      refusal_(std::move(refusal)) {}

absl::StatusOr<TenantPtr> CallGuard::Check(const HttpRequest& request) const {
  if (!origins_.Of(request).may_call()) {
    return absl::PermissionDeniedError(kOtherOrigin);
  }
  if (!refusal_.empty()) return absl::PermissionDeniedError(refusal_);
  absl::StatusOr<TenantPtr> tenant =
      authenticator_.Check(HeadersOf(request, {"authorization"}));
  if (tenant.ok()) {
    request.owner = {.id = (*tenant)->id, .max_bytes = (*tenant)->max_bytes};
  }
  return tenant;
}

absl::Status CallGuard::CheckHealth(const HttpRequest& request) const {
  return authenticator_.CheckHealth(HeadersOf(request, {"authorization"}));
}

CallGuard::Finisher CallGuard::FinisherOf(const HttpRequest& request) const {
  return [origin = origins_.Of(request),
          ids = CallerIds(HeadersOf(request, {"traceparent", "x-request-id"}))
                    .Trailers()](HttpResponse& response) {
    response.headers.emplace_back("Cache-Control", "no-store");
    origin.AddTo(response);
    for (const auto& [name, value] : ids) {
      response.headers.emplace_back(name, value);
    }
  };
}

}  // namespace attention::server
