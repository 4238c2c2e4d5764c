#include "client/cpp/cli/server_address.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>

namespace attention::cli {
namespace {

TEST(ServerAddressError, AddressesThatGrpcTakes) {
  for (const std::string address :
       {"127.0.0.1:50051", "localhost:1", "[::1]:65535", "server:50051",
        "dns:50051", "unix:/run/x", "unix:x", "unix:///run/x",
        "unix-abstract:x", "dns:///server", "dns:///server:50051",
        "dns://8.8.8.8/server:1", "dns:server:1", "ipv4:10.0.0.1:1,10.0.0.2:1",
        "ipv6:[::1]:1", "xds:///service", "DNS:///server:1"}) {
    EXPECT_EQ(ServerAddressError(address), "") << address;
  }
}

TEST(ServerAddressError, SaysWhatIsWrong) {
  const std::string forms = "host:port, [ip6]:port or unix:/path";
  const std::pair<std::string, std::string> cases[] = {
      {"", forms},
      {"http://127.0.0.1:50051/",
       "no scheme: " + forms + ", as in 127.0.0.1:50051"},
      {"grpc://server:50051", "no scheme: " + forms + ", as in server:50051"},
      {"https://server", "no scheme: " + forms + ", as in server"},
      {"localhost", "a port too, as in localhost:50051"},
      {"[::1]", "a port too, as in [::1]:50051"},
      {"50051", "a host too, as in 127.0.0.1:50051"},
      {":50051", "a host too, as in 127.0.0.1:50051"},
      {"::1", "brackets around an IPv6 address, as in [::1]:50051"},
      {"::1:50051", "brackets around an IPv6 address, as in [::1]:50051"},
      {"a:1,b:2", "one address, as in a:1"},
      {"unix://run/attention",
       "a path that begins with a slash after unix://, as in "
       "unix:///run/attention"},
      {"fe80::1:2", "brackets around an IPv6 address, as in [fe80::1:2]:50051"},
      {"server:", "a port of 1 to 65535 after the last colon"},
      {"server:0", "a port of 1 to 65535 after the last colon"},
      {"server:65536", "a port of 1 to 65535 after the last colon"},
      {"server:grpc", "a port of 1 to 65535 after the last colon"},
      {"server:50051x", "a port of 1 to 65535 after the last colon"},
      {"/run/attention",
       "unix: before the path of a socket, as in unix:/run/attention"},
  };
  for (const auto& [address, wanted] : cases) {
    EXPECT_EQ(ServerAddressError(address),
              "got '" + address + "', wanted " + wanted);
  }
}

}  // namespace
}  // namespace attention::cli
