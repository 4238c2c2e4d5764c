// Start and addresses.
#include "server/server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <string>

#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "tests/support/raw_call.h"
#include "tests/support/test_server.h"

namespace attention::server {
namespace {

using ::attention::testing::HealthOf;
using ::attention::testing::TestServer;
using ::testing::MatchesRegex;

std::string HealthAt(const std::string& address) {
  return HealthOf(
      grpc::CreateChannel(address, grpc::InsecureChannelCredentials()), "");
}

// Unique to this process; short, as socket paths must be.
std::string SocketPath(const std::string& name) {
  return ::testing::TempDir() + "attention_" + std::to_string(getpid()) + "_" +
         name;
}

TEST(ServerTest, ServesOnEveryAddress) {
  Options options = TestServer::DefaultOptions();
  const std::string path = "unix:" + SocketPath("every");
  const std::string abstract =
      "unix-abstract:attention_" + std::to_string(getpid());
  options.listen = {"127.0.0.1:0", "127.0.0.1:0", path, abstract};
  const auto server = Server::Start(options);
  ASSERT_TRUE(server.ok()) << server.status();
  const std::vector<std::string>& addresses = (*server)->addresses();
  ASSERT_EQ(addresses.size(), 4u);
  EXPECT_THAT(addresses[0], MatchesRegex("127\\.0\\.0\\.1:[1-9][0-9]*"));
  EXPECT_THAT(addresses[1], MatchesRegex("127\\.0\\.0\\.1:[1-9][0-9]*"));
  EXPECT_NE(addresses[0], addresses[1]);
  EXPECT_EQ(addresses[2], path);
  EXPECT_EQ(addresses[3], abstract);
  for (const std::string& address : addresses) {
    EXPECT_EQ(HealthAt(address), "SERVING") << address;
  }
}

TEST(ServerTest, ServesOnIPv6) {
  Options options = TestServer::DefaultOptions();
  options.listen = {"[::1]:0"};
  const auto server = Server::Start(options);
  if (!server.ok()) GTEST_SKIP() << "no IPv6 here: " << server.status();
  EXPECT_THAT((*server)->addresses()[0], MatchesRegex("\\[::1\\]:[1-9][0-9]*"));
  EXPECT_EQ(HealthAt((*server)->addresses()[0]), "SERVING");
}

TEST(ServerTest, TakesNoPortInUse) {
  TestServer first;
  Options options = TestServer::DefaultOptions();
  options.listen = {"127.0.0.1:0", first.server().addresses()[0]};
  const auto second = Server::Start(options);
  EXPECT_EQ(second.status(),
            absl::UnavailableError("--listen: cannot listen on \"" +
                                   options.listen[1] + "\": in use"));
  EXPECT_EQ(HealthAt(first.server().addresses()[0]), "SERVING");
}

TEST(ServerTest, TakesNoUnixSocketInUse) {
  Options options = TestServer::DefaultOptions();
  options.listen = {"unix:" + SocketPath("used")};
  const auto first = Server::Start(options);
  ASSERT_TRUE(first.ok()) << first.status();
  const auto second = Server::Start(options);
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(HealthAt(options.listen[0]), "SERVING");
}

TEST(ServerTest, TakesAUnixSocketThatNobodyServes) {
  Options options = TestServer::DefaultOptions();
  options.listen = {"unix:" + SocketPath("stale")};
  for (int i = 0; i < 2; ++i) {
    const auto server = Server::Start(options);
    ASSERT_TRUE(server.ok()) << server.status();
    EXPECT_EQ(HealthAt(options.listen[0]), "SERVING");
  }
}

TEST(ServerTest, RefusesBadOptions) {
  Options options = TestServer::DefaultOptions();
  options.threads = 0;
  options.log_level = "loud";
  const auto server = Server::Start(options);
  EXPECT_EQ(server.status(),
            absl::InvalidArgumentError(
                "--threads: got 0, wanted 1 to 1024\n--log-level: got "
                "\"loud\", wanted trace, debug, info, warning, error or off"));
}

TEST(ServerTest, MayBeDestroyedWithoutShutdown) {
  TestServer server;
  EXPECT_EQ(HealthAt(server.server().addresses()[0]), "SERVING");
}

}  // namespace
}  // namespace attention::server
