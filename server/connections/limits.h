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

// How many of DescriptorReserve(limit) HTTP may have: 64 at most.
int64_t HttpReserve(int64_t limit);

// The largest --http-max-connections, at least 1: one descriptor is left for a
// connection of gRPC.
int64_t MostHttpConnections();

// The largest --max-connections, at least 1, beside so many connections of
// HTTP: those beyond the reserve take the place of gRPC's.
int64_t MostConnections(int64_t http_connections = 0);

}  // namespace attention::server

#endif  // ATTENTION_SERVER_CONNECTIONS_LIMITS_H_
