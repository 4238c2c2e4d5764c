// What a target's text tells about where it leads.
#ifndef ATTENTION_INTERNAL_TARGET_H_
#define ATTENTION_INTERNAL_TARGET_H_

#include <string>

namespace attention::internal {

// Whether gRPC connects to a Unix socket: "unix:path", "unix-abstract:name".
bool IsUnixSocket(const std::string& target);

// Whether `target` has a numeric address that is not of the loopback interface.
// Where it has a name instead, only the connection can tell.
bool IsBeyondLoopback(const std::string& target);

}  // namespace attention::internal

#endif  // ATTENTION_INTERNAL_TARGET_H_
