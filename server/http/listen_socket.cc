#include "server/http/listen_socket.h"

#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "server/connections/loopback.h"

namespace attention::server {
namespace {

// Connections that wait in the kernel to be accepted: a client beyond it tries
// again after a second.
constexpr int kBacklog = 1024;

absl::Status CannotListen(const std::string& address, const char* reason) {
  return absl::UnavailableError(
      absl::StrCat("cannot listen on \"", address, "\": ", reason));
}

// A socket that listens on `address`, or none with errno set.
Descriptor Listen(const addrinfo& address) {
  Descriptor fd(socket(address.ai_family,
                       SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC,
                       address.ai_protocol));
  if (!fd.valid()) return fd;
  // Connections of a server that has just ended do not keep the port. Another
  // server that listens on it does.
  const int on = 1;
  setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  if (address.ai_family == AF_INET6) {
    setsockopt(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof(on));
  }
  if (bind(fd.get(), address.ai_addr, address.ai_addrlen) != 0 ||
      listen(fd.get(), kBacklog) != 0) {
    return Descriptor();
  }
  return fd;
}

int PortOf(const Descriptor& fd) {
  sockaddr_storage bound{};
  socklen_t length = sizeof(bound);
  getsockname(fd.get(), reinterpret_cast<sockaddr*>(&bound), &length);
  return ntohs(bound.ss_family == AF_INET6
                   ? reinterpret_cast<const sockaddr_in6&>(bound).sin6_port
                   : reinterpret_cast<const sockaddr_in&>(bound).sin_port);
}

}  // namespace

absl::StatusOr<ListenSocket> ListenOn(const std::string& address,
                                      bool loopback_only) {
  const size_t colon = address.rfind(':');
  if (colon == std::string::npos) {
    return CannotListen(address, "it is not host:port");
  }
  const std::string given_host = address.substr(0, colon);
  std::string host = given_host;
  if (absl::StartsWith(host, "[") && absl::EndsWith(host, "]")) {
    host = host.substr(1, host.size() - 2);
  }
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int error =
      getaddrinfo(host.c_str(), address.c_str() + colon + 1, &hints, &found);
  if (error != 0) return CannotListen(address, gai_strerror(error));
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> owner(found,
                                                                 &freeaddrinfo);
  for (const addrinfo* one = found; one != nullptr; one = one->ai_next) {
    if (loopback_only && !IsLoopback(*one->ai_addr)) {
      return absl::FailedPreconditionError(absl::StrCat(
          "got \"", address,
          "\", which other machines may reach: HTTP here is without "
          "encryption; "
          "name a loopback address, or allow it with --allow-plaintext"));
    }
  }
  for (const addrinfo* one = found; one != nullptr; one = one->ai_next) {
    Descriptor fd = Listen(*one);
    if (!fd.valid()) continue;
    const int port = PortOf(fd);
    return ListenSocket{std::move(fd), absl::StrCat(given_host, ":", port)};
  }
  return CannotListen(address, std::strerror(errno));
}

}  // namespace attention::server
