#include "attention/internal/target.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include <algorithm>
#include <cstdint>

#include "absl/strings/match.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"

namespace attention::internal {
namespace {

// The part of "dns://authority/name:port" that says where the server is.
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
  // More than one colon: IPv6 without a port.
  return std::count(place.begin(), place.end(), ':') > 1
             ? place
             : place.substr(0, place.find(':'));
}

enum class Kind : uint8_t {
  kName,
  // On this machine; connections to addresses that stand for any go there too.
  kLocal,
  kOther,
  // IPv6 that holds an IPv4 address: left to the connection.
  kMapped
};

Kind KindOf(const std::string& host) {
  in_addr v4;
  if (inet_pton(AF_INET, host.c_str(), &v4) == 1) {
    const uint32_t address = ntohl(v4.s_addr);
    return address >> 24 == IN_LOOPBACKNET || address == INADDR_ANY
               ? Kind::kLocal
               : Kind::kOther;
  }
  in6_addr v6;
  if (inet_pton(AF_INET6, host.c_str(), &v6) != 1) return Kind::kName;
  if (IN6_IS_ADDR_V4MAPPED(&v6)) return Kind::kMapped;
  return IN6_IS_ADDR_LOOPBACK(&v6) || IN6_IS_ADDR_UNSPECIFIED(&v6)
             ? Kind::kLocal
             : Kind::kOther;
}

bool IsLocalhost(absl::string_view name) {
  absl::ConsumeSuffix(&name, ".");
  return absl::EqualsIgnoreCase(name, "localhost") ||
         absl::EndsWithIgnoreCase(name, ".localhost");
}

}  // namespace

bool IsUnixSocket(const std::string& target) {
  return absl::StartsWithIgnoreCase(target, "unix:") ||
         absl::StartsWithIgnoreCase(target, "unix-abstract:");
}

std::vector<std::string> HostsOf(const std::string& target) {
  std::vector<std::string> hosts;
  for (const absl::string_view place : absl::StrSplit(Place(target), ',')) {
    hosts.emplace_back(Host(place));
  }
  return hosts;
}

bool IsLocal(const std::string& target) {
  if (IsUnixSocket(target)) return true;
  const std::vector<std::string> hosts = HostsOf(target);
  return std::all_of(hosts.begin(), hosts.end(), [](const std::string& host) {
    return IsLocalhost(host) || KindOf(host) == Kind::kLocal;
  });
}

bool IsBeyondLoopback(const std::string& target) {
  if (IsUnixSocket(target)) return false;
  const std::vector<std::string> hosts = HostsOf(target);
  return std::any_of(hosts.begin(), hosts.end(), [](const std::string& host) {
    return KindOf(host) == Kind::kOther;
  });
}

}  // namespace attention::internal
