#include "server/http/origins.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"

namespace attention::server {

Origins::Origins(std::vector<std::string> allowed, std::string own_host)
    : allowed_(std::move(allowed)), own_host_(std::move(own_host)) {}

// A page of any name can make that name point to this server, once the browser
// has loaded it (DNS rebinding): so only names that cannot be made to are own.
bool Origins::IsOwn(absl::string_view host) const {
  if (absl::StartsWith(host, "[")) return true;  // IPv6
  const absl::string_view name = host.substr(0, host.find(':'));
  const bool is_ipv4 = std::all_of(name.begin(), name.end(), [](char c) {
    return c == '.' || absl::ascii_isdigit(c);
  });
  return is_ipv4 || absl::EqualsIgnoreCase(name, "localhost") ||
         absl::EqualsIgnoreCase(name, own_host_);
}

Origins::Check Origins::Of(const HttpRequest& request) const {
  Check check;
  check.origin_ = std::string(request.Header("Origin"));
  if (check.origin_.empty()) return check;
  check.named_ = std::any_of(allowed_.begin(), allowed_.end(),
                             [&](const std::string& one) {
                               return one == "*" || one == check.origin_;
                             });
  // "http://127.0.0.1:9464", of a page that came from "Host: 127.0.0.1:9464".
  const absl::string_view host = request.Header("Host");
  const size_t scheme = check.origin_.find("://");
  const bool own =
      absl::StartsWith(check.origin_, "http") && scheme != std::string::npos &&
      !host.empty() && IsOwn(host) &&
      absl::EqualsIgnoreCase(
          absl::string_view(check.origin_).substr(scheme + 3), host);
  check.may_call_ = check.named_ || own;
  return check;
}

void Origins::Check::AddTo(HttpResponse& response) const {
  if (!named_) return;
  response.headers.emplace_back("Access-Control-Allow-Origin", origin_);
  response.headers.emplace_back("Vary", "Origin");
  response.headers.emplace_back(
      "Access-Control-Expose-Headers",
      "Retry-After, x-request-id, Inference-Header-Content-Length");
}

HttpResponse Origins::Check::Preflight(absl::string_view methods) const {
  HttpResponse response;
  response.status = 204;
  response.headers.emplace_back("Access-Control-Allow-Methods", methods);
  response.headers.emplace_back(
      "Access-Control-Allow-Headers",
      "authorization, content-type, grpc-timeout, "
      "inference-header-content-length, traceparent, x-request-id");
  response.headers.emplace_back("Access-Control-Max-Age", "600");
  return response;
}

}  // namespace attention::server
