// Which addresses no other machine can reach.
#ifndef ATTENTION_SERVER_CONNECTIONS_LOOPBACK_H_
#define ATTENTION_SERVER_CONNECTIONS_LOOPBACK_H_

#include <netinet/in.h>
#include <sys/socket.h>

namespace attention::server {

// 127.0.0.0/8 as IPv4 or mapped into IPv6, and ::1. `address` is whole.
inline bool IsLoopback(const sockaddr& address) {
  constexpr unsigned char kFirst = 127;
  if (address.sa_family == AF_INET) {
    const auto& ip = reinterpret_cast<const sockaddr_in&>(address).sin_addr;
    return ntohl(ip.s_addr) >> 24 == kFirst;
  }
  if (address.sa_family != AF_INET6) return false;
  const auto& ip = reinterpret_cast<const sockaddr_in6&>(address).sin6_addr;
  return IN6_IS_ADDR_LOOPBACK(&ip) ||
         (IN6_IS_ADDR_V4MAPPED(&ip) && ip.s6_addr[12] == kFirst);
}

}  // namespace attention::server

#endif  // ATTENTION_SERVER_CONNECTIONS_LOOPBACK_H_
