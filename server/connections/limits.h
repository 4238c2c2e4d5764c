// How many connections the process has descriptors for.
#ifndef ATTENTION_SERVER_CONNECTIONS_LIMITS_H_
#define ATTENTION_SERVER_CONNECTIONS_LIMITS_H_

#include <cstdint>

namespace attention::server {

// Descriptors that the process may have open (RLIMIT_NOFILE).
int64_t DescriptorLimit();

// How many of `limit` are not for connections but for everything else: gRPC's
// own, listeners, files read now and then, HTTP. A quarter, 128 at most.
int64_t DescriptorReserve(int64_t limit);

// The largest --max-connections, at least 1.
int64_t MostConnections();

}  // namespace attention::server

#endif  // ATTENTION_SERVER_CONNECTIONS_LIMITS_H_
