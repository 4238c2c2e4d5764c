#include "server/http/call_guard.h"

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "server/status.h"

namespace attention::server {
namespace {

constexpr char kAuthorization[] = "authorization";

// The only header that says who calls.
Authenticator::Metadata MetadataOf(absl::string_view authorization) {
  Authenticator::Metadata metadata;
  if (!authorization.empty()) {
    metadata.emplace(
        grpc::string_ref(kAuthorization),
        grpc::string_ref(authorization.data(), authorization.size()));
  }
  return metadata;
}

}  // namespace

CallGuard::CallGuard(const Origins& origins, const Authenticator& authenticator,
                     std::string refusal)
    : origins_(origins),
      authenticator_(authenticator),
      refusal_(std::move(refusal)) {}

std::optional<grpc::Status> CallGuard::Check(const HttpRequest& request) const {
  if (!origins_.Of(request).may_call()) {
    return grpc::Status(grpc::StatusCode::PERMISSION_DENIED, kOtherOrigin);
  }
  if (!refusal_.empty()) {
    return grpc::Status(grpc::StatusCode::PERMISSION_DENIED, refusal_);
  }
  const auto tenant =
      authenticator_.Check(MetadataOf(request.Header(kAuthorization)));
  if (!tenant.ok()) return ToGrpcStatus(tenant.status());
  return std::nullopt;
}

absl::Status CallGuard::CheckHealth(const HttpRequest& request) const {
  return authenticator_.CheckHealth(MetadataOf(request.Header(kAuthorization)));
}

void CallGuard::Finish(const Origins::Check& origin, HttpResponse& response) {
  response.headers.emplace_back("Cache-Control", "no-store");
  origin.AddTo(response);
}

}  // namespace attention::server
