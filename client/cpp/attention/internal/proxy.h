// HTTP proxies that stand between a client and its server.
//
// gRPC sends calls through the proxy that the environment variable grpc_proxy,
// https_proxy or http_proxy names (the first that is set), unless no_grpc_proxy
// or else no_proxy lists the end of the server's name. It would do so for
// loopback too, where no proxy can reach the server. Such settings are often
// made for other programs, so what they do to a call is told.
//
// All functions are thread-safe as long as nobody changes the environment.
#ifndef ATTENTION_INTERNAL_PROXY_H_
#define ATTENTION_INTERNAL_PROXY_H_

#include <string>

#include "absl/status/status.h"

namespace attention::internal {

// The proxy for calls to `target` as "http_proxy=host:port", without the user
// and password that may stand in it; empty if there is none.
std::string ProxyOf(const std::string& target);

// Names `proxy`, what ProxyOf() gave, in the text of a status that may come
// from it: UNAVAILABLE or DEADLINE_EXCEEDED without a reason of the server's.
// Others stay as they are, and all do if `proxy` is empty.
absl::Status WithProxy(absl::Status status, const std::string& proxy);

}  // namespace attention::internal

#endif  // ATTENTION_INTERNAL_PROXY_H_
