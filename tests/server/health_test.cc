// Health and reflection.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "absl/time/time.h"
#include "attention/v1/attention.grpc.pb.h"
#include "tests/support/messages.h"
#include "tests/support/raw_call.h"
#include "tests/support/test_server.h"

namespace attention::testing {
namespace {

using ::testing::HasSubstr;

constexpr char kService[] = "attention.v1.AttentionService";
constexpr char kWatch[] = "/grpc.health.v1.Health/Watch";
constexpr char kReflection[] =
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo";

class HealthTest : public ::testing::TestWithParam<Transport> {
 protected:
  TestServer server_;
};

TEST_P(HealthTest, ServesAsAWholeAndByService) {
  const auto channel = server_.Channel(GetParam());
  EXPECT_EQ(HealthOf(channel, ""), "SERVING");
  EXPECT_EQ(HealthOf(channel, kService), "SERVING");
  EXPECT_EQ(HealthOf(channel, "no.such.Service"), "NOT_FOUND");
}

TEST_P(HealthTest, WatchersSeeTheDrain) {
  const auto channel = server_.Channel(GetParam());
  RawStream whole(channel, kWatch), service(channel, kWatch);
  ASSERT_TRUE(whole.Write(HealthRequest(""), /*last=*/true));
  ASSERT_TRUE(service.Write(HealthRequest(kService), /*last=*/true));
  EXPECT_EQ(ServingStatus(whole.Read().value_or("")), "SERVING");
  EXPECT_EQ(ServingStatus(service.Read().value_or("")), "SERVING");
  server_.server().Shutdown(absl::InfiniteFuture());
  EXPECT_EQ(ServingStatus(whole.Read().value_or("")), "NOT_SERVING");
  EXPECT_EQ(ServingStatus(service.Read().value_or("")), "NOT_SERVING");
  // Watchers do not keep the server from stopping.
  server_.server().Wait();
  EXPECT_EQ(whole.Read(), std::nullopt);
  EXPECT_FALSE(whole.Finish().ok());
}

TEST_P(HealthTest, ReflectionListsTheServices) {
  RawStream stream(server_.Channel(GetParam()), kReflection);
  // ServerReflectionRequest { list_services: "" }
  ASSERT_TRUE(stream.Write(std::string("\x3a\x00", 2)));
  const std::string answer = stream.Read().value_or("");
  EXPECT_THAT(answer, HasSubstr(kService));
  EXPECT_THAT(answer, HasSubstr("grpc.health.v1.Health"));
  // ServerReflectionRequest { file_containing_symbol: kService }
  const std::string symbol = kService;
  ASSERT_TRUE(stream.Write(
      "\x22" + std::string(1, static_cast<char>(symbol.size())) + symbol));
  EXPECT_THAT(stream.Read().value_or(""), HasSubstr("ComputeAttention"));
}

TEST_P(HealthTest, SilentReflectionStreamsHoldUpNobody) {
  // More streams than reflection may have threads.
  std::vector<std::unique_ptr<RawStream>> silent;
  const auto channel = server_.Channel(GetParam());
  for (int i = 0; i < 40; ++i) {
    silent.push_back(std::make_unique<RawStream>(channel, kReflection));
  }
  const auto stub = v1::AttentionService::NewStub(channel);
  grpc::ClientContext context;
  v1::ComputeAttentionResponse response;
  EXPECT_TRUE(stub->ComputeAttention(&context, SmallRequest(), &response).ok());
  EXPECT_EQ(HealthOf(channel, ""), "SERVING");
}

INSTANTIATE_TEST_SUITE_P(Transports, HealthTest,
                         ::testing::Values(Transport::kLoopback,
                                           Transport::kInProcess),
                         [](const auto& info) {
                           return TransportName(info.param);
                         });

}  // namespace
}  // namespace attention::testing
