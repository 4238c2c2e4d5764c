#include "client/cpp/cli/server_address.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace attention::cli {
namespace {

constexpr char kForms[] = "host:port, [ip6]:port or unix:/path";
constexpr char kDefaultPort[] = "50051";

bool IsNumber(absl::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) {
    return absl::ascii_isdigit(c);
  });
}

bool IsPort(absl::string_view text) {
  int port;
  return IsNumber(text) && absl::SimpleAtoi(text, &port) && port > 0 &&
         port <= 65535;
}

// "dns:50051" is a host of that name.
bool HasGrpcScheme(absl::string_view address) {
  const size_t colon = address.find(':');
  if (colon == absl::string_view::npos) return false;
  const absl::string_view scheme = address.substr(0, colon);
  if (IsNumber(address.substr(colon + 1))) return false;
  for (const absl::string_view known :
       {"dns", "ipv4", "ipv6", "unix", "unix-abstract", "xds"}) {
    if (absl::EqualsIgnoreCase(scheme, known)) return true;
  }
  return false;
}

bool IsIp6(absl::string_view text) {
  in6_addr address;
  return inet_pton(AF_INET6, std::string(text).c_str(), &address) == 1;
}

// What was meant by an IPv6 address without brackets: one with a port, where it
// can be read in no other way.
std::string Bracketed(absl::string_view address) {
  const size_t colon = address.rfind(':');
  if (!IsIp6(address) && IsIp6(address.substr(0, colon)) &&
      IsPort(address.substr(colon + 1))) {
    return absl::StrCat("[", address.substr(0, colon), "]",
                        address.substr(colon));
  }
  return absl::StrCat("[", address, "]:", kDefaultPort);
}

// What is wrong with "host:port"; empty if nothing is.
std::string HostPortError(absl::string_view address) {
  const size_t colon = address.rfind(':');
  const size_t bracket = address.rfind(']');
  const bool bracketed = absl::StartsWith(address, "[");
  if (!bracketed && std::count(address.begin(), address.end(), ':') > 1) {
    return absl::StrCat("brackets around an IPv6 address, as in ",
                        Bracketed(address));
  }
  if (colon == absl::string_view::npos ||
      (bracketed && bracket != absl::string_view::npos && colon < bracket)) {
    return IsNumber(address)
               ? absl::StrCat("a host too, as in 127.0.0.1:", address)
               : absl::StrCat("a port too, as in ", address, ":", kDefaultPort);
  }
  const absl::string_view port = address.substr(colon + 1);
  if (!IsPort(port)) {
    return "a port of 1 to 65535 after the last colon";
  }
  if (colon == 0) return absl::StrCat("a host too, as in 127.0.0.1:", port);
  return "";
}

std::string Wanted(absl::string_view address) {
  if (address.empty()) return kForms;
  constexpr absl::string_view kUnixUrl = "unix://";
  if (absl::StartsWithIgnoreCase(address, kUnixUrl) &&
      !absl::StartsWith(address.substr(kUnixUrl.size()), "/")) {
    return absl::StrCat("a path that begins with a slash after unix://, as in ",
                        "unix:///", address.substr(kUnixUrl.size()));
  }
  const size_t scheme = address.find("://");
  if (HasGrpcScheme(address)) return "";
  if (scheme != absl::string_view::npos) {
    const absl::string_view rest = address.substr(scheme + 3);
    return absl::StrCat("no scheme: ", kForms, ", as in ",
                        rest.substr(0, rest.find('/')));
  }
  if (absl::StrContains(address, '/')) {
    return absl::StrCat("unix: before the path of a socket, as in unix:",
                        address);
  }
  if (absl::StrContains(address, ',')) {
    return absl::StrCat("one address, as in ",
                        address.substr(0, address.find(',')));
  }
  return HostPortError(address);
}

}  // namespace

std::string ServerAddressError(const std::string& address) {
  const std::string wanted = Wanted(address);
  if (wanted.empty()) return "";
  return absl::StrCat("got '", address, "', wanted ", wanted);
}

}  // namespace attention::cli
