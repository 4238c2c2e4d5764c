#include "tests/support/socket.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>

#include <cstddef>
#include <cstring>

#include "absl/strings/match.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"

namespace attention::testing {
namespace {

Descriptor Connect(const void* address, socklen_t length) {
  const auto* generic = static_cast<const sockaddr*>(address);
  Descriptor socket(
      ::socket(generic->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (connect(socket.get(), generic, length) != 0) return Descriptor();
  return socket;
}

Descriptor ConnectUnix(absl::string_view name, bool abstract) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path + (abstract ? 1 : 0), name.data(), name.size());
  return Connect(&address, offsetof(sockaddr_un, sun_path) + name.size() + 1);
}

}  // namespace

std::string Http2Start() {
  const std::string empty_settings("\0\0\0\4\0\0\0\0\0", 9);
  return "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + empty_settings;
}

Descriptor ConnectTo(const std::string& address) {
  absl::string_view rest = address;
  if (absl::ConsumePrefix(&rest, "unix-abstract:")) {
    return ConnectUnix(rest, /*abstract=*/true);
  }
  if (absl::ConsumePrefix(&rest, "unix:")) {
    return ConnectUnix(rest, /*abstract=*/false);
  }
  const in_port_t port =
      htons(std::stoi(address.substr(address.rfind(':') + 1)));
  if (absl::StartsWith(address, "[")) {
    sockaddr_in6 ipv6{};
    ipv6.sin6_family = AF_INET6;
    ipv6.sin6_port = port;
    ipv6.sin6_addr = in6addr_loopback;
    return Connect(&ipv6, sizeof(ipv6));
  }
  sockaddr_in ipv4{};
  ipv4.sin_family = AF_INET;
  ipv4.sin_port = port;
  ipv4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return Connect(&ipv4, sizeof(ipv4));
}

void Send(const Descriptor& socket, const std::string& bytes) {
  EXPECT_EQ(send(socket.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL),
            bytes.size());
}

std::string ReceiveAll(const Descriptor& socket) {
  const timeval limit = {.tv_sec = 30, .tv_usec = 0};
  setsockopt(socket.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
  std::string bytes;
  char buffer[4096];
  for (;;) {
    const ssize_t count = recv(socket.get(), buffer, sizeof(buffer), 0);
    if (count < 0 && errno != ECONNRESET) {
      ADD_FAILURE() << "the connection stays open: " << std::strerror(errno);
    }
    if (count <= 0) return bytes;
    bytes.append(buffer, count);
  }
}

bool HasGoaway(const std::string& bytes) {
  constexpr size_t kHeader = 9;
  constexpr char kGoaway = 7;
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(bytes[i]); };
  for (size_t at = 0; at + kHeader <= bytes.size();) {
    if (bytes[at + 3] == kGoaway) return true;
    at += kHeader + (byte(at) << 16 | byte(at + 1) << 8 | byte(at + 2));
  }
  return false;
}

std::string IPv4NameOf(const Descriptor& socket) {
  sockaddr_in address{};
  socklen_t length = sizeof(address);
  EXPECT_EQ(
      getsockname(socket.get(), reinterpret_cast<sockaddr*>(&address), &length),
      0);
  return "ipv4:127.0.0.1:" + std::to_string(ntohs(address.sin_port));
}

}  // namespace attention::testing
