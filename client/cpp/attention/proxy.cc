#include "attention/proxy.h"

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
#include "attention/status.h"

namespace attention {
namespace {

bool IsUnixSocket(absl::string_view target) {
  return absl::StartsWithIgnoreCase(target, "unix:") ||
         absl::StartsWithIgnoreCase(target, "unix-abstract:");
}

// The part of "dns://authority/name:port" that says where the server is;
// several of it, separated by commas, after "ipv4:" and "ipv6:".
absl::string_view Place(absl::string_view target) {
  for (const absl::string_view scheme : {"dns:", "ipv4:", "ipv6:"}) {
    if (!absl::StartsWithIgnoreCase(target, scheme)) continue;
    const absl::string_view rest = target.substr(scheme.size());
    // "dns:50051" is a host of that name.
    if (rest.find_first_not_of("0123456789") == absl::string_view::npos) break;
    if (!absl::StartsWith(rest, "//")) return rest;
    const size_t path = rest.find('/', 2);
    return path == absl::string_view::npos ? "" : rest.substr(path + 1);
  }
  return target;
}

// Without port and brackets.
absl::string_view Host(absl::string_view place) {
  if (absl::ConsumePrefix(&place, "[")) {
    return place.substr(0, place.find(']'));
  }
  const bool ip6 = std::count(place.begin(), place.end(), ':') > 1;
  return ip6 ? place : place.substr(0, place.find(':'));
}

bool IsLoopback(absl::string_view host) {
  absl::ConsumeSuffix(&host, ".");
  return absl::EqualsIgnoreCase(host, "localhost") ||
         absl::EndsWithIgnoreCase(host, ".localhost") ||
         // No name ends with a number.
         (absl::StartsWith(host, "127.") &&
          host.find_first_not_of("0123456789.") == absl::string_view::npos) ||
         host == "::1" ||
         // Addresses that stand for any lead to this machine.
         host == "0.0.0.0" || host == "::";
}

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

bool IsLocalTarget(const std::string& target) {
  if (IsUnixSocket(target)) return true;
  const std::vector<absl::string_view> places =
      absl::StrSplit(Place(target), ',');
  return std::all_of(places.begin(), places.end(), [](absl::string_view place) {
    return IsLoopback(Host(place));
  });
}

std::string ProxyOf(const std::string& target) {
  const auto [name, value] =
      FirstSet({"grpc_proxy", "https_proxy", "http_proxy"});
  absl::string_view address = value;
  // Other schemes are none that gRPC can use.
  if (!absl::ConsumePrefix(&address, "http://") || IsLocalTarget(target) ||
      IsExcepted(Host(Place(target)))) {
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

}  // namespace attention
