#include "attention/internal/target.h"

#include <gtest/gtest.h>

#include <string>

namespace attention::internal {
namespace {

TEST(Target, NumericAddressesBeyondLoopback) {
  for (const char* target :
       {"192.0.2.1:50051", "192.0.2.1", "[2001:db8::1]:50051", "2001:db8::1",
        "[2001:db8::1]", "ipv4:192.0.2.1:50051", "ipv6:[2001:db8::1]:50051",
        "ipv4:127.0.0.1:1,192.0.2.1:2", "dns:192.0.2.1:50051",
        "dns:///192.0.2.1:50051", "dns://127.0.0.1/192.0.2.1:50051",
        "128.0.0.1:1", "10.0.0.1:1"}) {
    EXPECT_TRUE(IsBeyondLoopback(target)) << target;
  }
}

// Where there is no number, the connection tells; "localhost" is a name too.
TEST(Target, LoopbackAndWhatOnlyTheConnectionCanTell) {
  for (const char* target : {"127.0.0.1:50051",
                             "127.1.2.3:50051",
                             "127.0.0.1",
                             "[::1]:50051",
                             "::1",
                             "ipv4:127.0.0.1:1,127.0.0.2:2",
                             "ipv6:[::1]:50051",
                             "localhost:50051",
                             "localhost",
                             "dns:localhost:50051",
                             "dns:///localhost:50051",
                             "dns://192.0.2.1/name:50051",
                             "server.example:50051",
                             "0.0.0.0:50051",
                             "[::]:50051",
                             "[::ffff:192.0.2.1]:50051",
                             "unix:192.0.2.1",
                             "unix:///run/192.0.2.1",
                             "unix-abstract:192.0.2.1",
                             "xds:///name",
                             ""}) {
    EXPECT_FALSE(IsBeyondLoopback(target)) << target;
  }
}

TEST(Target, UnixSockets) {
  EXPECT_TRUE(IsUnixSocket("unix:relative"));
  EXPECT_TRUE(IsUnixSocket("unix:///absolute"));
  EXPECT_TRUE(IsUnixSocket("unix-abstract:name"));
  EXPECT_TRUE(IsUnixSocket("UNIX:/x"));
  EXPECT_FALSE(IsUnixSocket("unix.example:50051"));
  EXPECT_FALSE(IsUnixSocket("dns:///unix:50051"));
}

TEST(Target, ThisMachineAndOthers) {
  for (const std::string target :
       {"127.0.0.1:1", "127.1.2.3:1", "localhost:1", "LocalHost.:1",
        "a.localhost:1", "[::1]:1", "::1", "unix:/x", "unix:x",
        "unix-abstract:x", "dns:///localhost:1", "dns:localhost:1",
        "dns://8.8.8.8/localhost", "ipv4:127.0.0.1:1,127.0.0.2:1",
        "ipv6:[::1]:1", "0.0.0.0:1", "[::]:1"}) {
    EXPECT_TRUE(IsLocal(target)) << target;
  }
  for (const std::string target :
       {"10.0.0.1:1", "server:1", "127.server.example:1", "localhost.com:1",
        "mylocalhost:1", "[::2]:1", "dns:///server:1", "dns:1", "",
        "dns://127.0.0.1/server:1", "ipv4:127.0.0.1:1,10.0.0.1:1"}) {
    EXPECT_FALSE(IsLocal(target)) << target;
  }
}

}  // namespace
}  // namespace attention::internal
