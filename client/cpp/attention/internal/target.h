// What a target's text tells about where it leads. Asks no network.
#ifndef ATTENTION_INTERNAL_TARGET_H_
#define ATTENTION_INTERNAL_TARGET_H_

#include <string>
#include <vector>

namespace attention::internal {

// Whether gRPC connects to a Unix socket: "unix:path", "unix-abstract:name".
bool IsUnixSocket(const std::string& target);

// The hosts of a target that is no Unix socket, without ports and brackets:
// "dns://authority/name:port" has one, "ipv4:" and "ipv6:" may have several.
std::vector<std::string> HostsOf(const std::string& target);

// Whether it says that it leads to this machine: a Unix socket, localhost, a
// loopback address or one that stands for any.
bool IsLocal(const std::string& target);

// Whether `target` has a numeric address that is not of the loopback interface.
// Where it has a name instead, only the connection can tell.
bool IsBeyondLoopback(const std::string& target);

}  // namespace attention::internal

#endif  // ATTENTION_INTERNAL_TARGET_H_
