// Sockets by hand, for peers that do not behave as gRPC's clients do.
#ifndef ATTENTION_TESTS_SUPPORT_SOCKET_H_
#define ATTENTION_TESTS_SUPPORT_SOCKET_H_

#include <string>

#include "base/descriptor.h"

namespace attention::testing {

// What begins an HTTP/2 connection: the preface and empty SETTINGS.
std::string Http2Start();

// A connection to "127.0.0.1:port", "[::1]:port", "unix:path" or
// "unix-abstract:name"; invalid if there is none to be had.
Descriptor ConnectTo(const std::string& address);

void Send(const Descriptor& socket, const std::string& bytes);

// All that comes until the other side closes. Fails the test if it does not
// within 30 s, less than any time limit that a server has by default.
std::string ReceiveAll(const Descriptor& socket);

// Whether `bytes`, HTTP/2 frames, have a GOAWAY among them.
bool HasGoaway(const std::string& bytes);

// "ipv4:127.0.0.1:port" of the socket's own end.
std::string IPv4NameOf(const Descriptor& socket);

}  // namespace attention::testing

#endif  // ATTENTION_TESTS_SUPPORT_SOCKET_H_
