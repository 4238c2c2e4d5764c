// A TCP socket that listens on an address given as text.
#ifndef ATTENTION_SERVER_HTTP_LISTEN_SOCKET_H_
#define ATTENTION_SERVER_HTTP_LISTEN_SOCKET_H_

#include <string>

#include "absl/status/statusor.h"
#include "base/descriptor.h"

namespace attention::server {

struct ListenSocket {
  // Does not block.
  Descriptor fd;
  // "host:port" with the host as it was given and the real port.
  std::string address;
};

// Listens on "host:port" or "[ip6]:port"; port 0 takes a free one. Of several
// addresses of a host, the first that works is taken. Looks names up, so it may
// block.
//
// Errors: Unavailable with the address and the reason; FailedPrecondition if
// `loopback_only` and it is another address.
absl::StatusOr<ListenSocket> ListenOn(const std::string& address,
                                      bool loopback_only);

}  // namespace attention::server

#endif  // ATTENTION_SERVER_HTTP_LISTEN_SOCKET_H_
