#include "attention/internal/target.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include "absl/strings/match.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"

namespace attention::internal {
namespace {

// "1.2.3.4", "1.2.3.4:5", "[::1]:5", "[::1]" or "::1" without its port.
std::string HostOf(absl::string_view address) {
  if (absl::ConsumePrefix(&address, "[")) {
    return std::string(address.substr(0, address.find(']')));
  }
  // More than one colon: IPv6 without a port.
  const size_t colon = address.find(':');
  if (colon == address.rfind(':')) address = address.substr(0, colon);
  return std::string(address);
}

// The addresses that stand for any do not count: a connection to them goes to
// this machine.
bool IsOtherThanLoopback(const std::string& host) {
  in_addr v4;
  if (inet_pton(AF_INET, host.c_str(), &v4) == 1) {
    const uint32_t address = ntohl(v4.s_addr);
    return address >> 24 != IN_LOOPBACKNET && address != INADDR_ANY;
  }
  in6_addr v6;
  if (inet_pton(AF_INET6, host.c_str(), &v6) != 1) return false;
  // One that holds an IPv4 address is left to the connection.
  return !IN6_IS_ADDR_LOOPBACK(&v6) && !IN6_IS_ADDR_UNSPECIFIED(&v6) &&
         !IN6_IS_ADDR_V4MAPPED(&v6);
}

}  // namespace

bool IsUnixSocket(const std::string& target) {
  return absl::StartsWith(target, "unix:") ||
         absl::StartsWith(target, "unix-abstract:");
}

bool IsBeyondLoopback(const std::string& target) {
  if (IsUnixSocket(target)) return false;
  absl::string_view addresses = target;
  if (absl::ConsumePrefix(&addresses, "dns:")) {
    // dns://NAMESERVER/host:port and dns:host:port.
    if (absl::ConsumePrefix(&addresses, "//")) {
      const size_t slash = addresses.find('/');
      if (slash == absl::string_view::npos) return false;
      addresses.remove_prefix(slash + 1);
    }
  } else if (!absl::ConsumePrefix(&addresses, "ipv4:")) {
    absl::ConsumePrefix(&addresses, "ipv6:");
  }
  for (const absl::string_view address : absl::StrSplit(addresses, ',')) {
    if (IsOtherThanLoopback(HostOf(address))) return true;
  }
  return false;
}

}  // namespace attention::internal
