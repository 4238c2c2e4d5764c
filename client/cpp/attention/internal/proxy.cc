#include "attention/internal/proxy.h"

#include <algorithm>
#include <cstdlib>
#include <initializer_list>
#include <utility>
#include <vector>

#include "absl/strings/cord.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "attention/internal/target.h"
#include "attention/status.h"

namespace attention::internal {
namespace {

// The first of the variables that is set, as gRPC sees it: an empty one hides
// those after it.
std::pair<std::string, std::string> FirstSet(
    std::initializer_list<const char*> names) {
  for (const char* name : names) {
    const char* value = std::getenv(name);
    if (value != nullptr) return {name, value};
  }
  return {};
}

bool IsExcepted(absl::string_view host) {
  const std::string list = FirstSet({"no_grpc_proxy", "no_proxy"}).second;
  const std::vector<std::string> ends =
      absl::StrSplit(list, ',', absl::SkipEmpty());
  return std::any_of(ends.begin(), ends.end(), [&](const std::string& end) {
    return absl::EndsWithIgnoreCase(host, end);
  });
}

}  // namespace

std::string ProxyOf(const std::string& target) {
  const auto [name, value] =
      FirstSet({"grpc_proxy", "https_proxy", "http_proxy"});
  absl::string_view address = value;
  // Other schemes are none that gRPC can use.
  if (!absl::ConsumePrefix(&address, "http://") || IsLocal(target) ||
      IsExcepted(HostsOf(target).front())) {
    return "";
  }
  address = address.substr(0, address.find('/'));
  const size_t user = address.rfind('@');
  if (user != absl::string_view::npos) address = address.substr(user + 1);
  return absl::StrCat(name, "=", address);
}

absl::Status WithProxy(absl::Status status, const std::string& proxy) {
  const bool from_proxy =
      absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status);
  if (proxy.empty() || !from_proxy || !ErrorReason(status).empty()) {
    return status;
  }
  absl::Status result(
      status.code(),
      absl::StrCat(status.message(), "; the call went through the proxy of ",
                   proxy, ": if that is wrong, name the server in no_proxy"));
  status.ForEachPayload([&](absl::string_view url, const absl::Cord& payload) {
    result.SetPayload(url, payload);
  });
  return result;
}

}  // namespace attention::internal
