// The value of --server.
#ifndef ATTENTION_CLIENT_CPP_CLI_SERVER_ADDRESS_H_
#define ATTENTION_CLIENT_CPP_CLI_SERVER_ADDRESS_H_

#include <string>

namespace attention::cli {

// What is wrong with the address of a server; empty if nothing is. What gRPC
// would take for a name, or for port 443, and then fail to reach is told here,
// where the cause is known: a URL's scheme, a missing port, an IPv6 address
// without brackets. Names in gRPC's own schemes, such as dns:///, are gRPC's to
// judge.
std::string ServerAddressError(const std::string& address);

}  // namespace attention::cli

#endif  // ATTENTION_CLIENT_CPP_CLI_SERVER_ADDRESS_H_
