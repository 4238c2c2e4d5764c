// Draining: what runs may finish, what is new is refused, what is late is cut.
#include <gtest/gtest.h>

#include <memory>
#include <thread>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "attention/v1/attention.grpc.pb.h"
#include "tests/support/long_call.h"
#include "tests/support/messages.h"
#include "tests/support/raw_call.h"
#include "tests/support/test_server.h"

namespace attention::testing {
namespace {

class ShutdownTest : public ::testing::TestWithParam<Transport> {
 protected:
  void WaitUntilRunning() {
    ASSERT_TRUE(
        WaitUntil([&] { return server_.server().running_calls() == 1; }));
  }

  TestServer server_;
};

TEST_P(ShutdownTest, NewCallsAreUnavailableWhileARunningOneGoesOn) {
  const auto channel = server_.Channel(GetParam());
  LongCall running(channel);
  WaitUntilRunning();
  server_.server().Shutdown(absl::InfiniteFuture());
  EXPECT_EQ(HealthOf(channel, ""), "NOT_SERVING");
  EXPECT_EQ(HealthOf(channel, "attention.v1.AttentionService"), "NOT_SERVING");
  grpc::ClientContext context;
  v1::ComputeAttentionResponse response;
  const grpc::Status status =
      v1::AttentionService::NewStub(channel)->ComputeAttention(
          &context, SmallRequest(), &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(status.error_message(), "the server is shutting down");
  EXPECT_EQ(server_.server().running_calls(), 1);
}

TEST_P(ShutdownTest, RunningCallsFinish) {
  const auto channel = server_.Channel(GetParam());
  // Short, but likely not done when draining begins.
  const v1::ComputeAttentionRequest request = LongRequest(3000);
  LongCall running(channel, request);
  ASSERT_TRUE(WaitUntil([&] {
    return server_.server().running_calls() == 1 || running.ended();
  }));
  server_.server().Shutdown(absl::InfiniteFuture());
  server_.server().Wait();
  EXPECT_TRUE(running.Wait().ok()) << running.Wait().error_message();
  EXPECT_EQ(running.response().output().data().size(), 3000 * sizeof(float));
}

TEST_P(ShutdownTest, TheDeadlineEndsRunningCalls) {
  LongCall running(server_.Channel(GetParam()));
  WaitUntilRunning();
  server_.server().Shutdown(absl::Now() + absl::Milliseconds(10));
  server_.server().Wait();
  EXPECT_EQ(server_.server().running_calls(), 0);
  EXPECT_FALSE(running.Wait().ok());
}

TEST_P(ShutdownTest, ASecondShutdownShortensTheFirst) {
  LongCall running(server_.Channel(GetParam()));
  WaitUntilRunning();
  server_.server().Shutdown(absl::InfiniteFuture());
  std::thread second([&] { server_.server().Shutdown(absl::InfinitePast()); });
  server_.server().Wait();
  second.join();
  EXPECT_FALSE(running.Wait().ok());
}

TEST_P(ShutdownTest, DestructionEndsRunningCalls) {
  auto server = std::make_unique<TestServer>();
  auto channel = server->Channel(GetParam());
  LongCall running(channel);
  ASSERT_TRUE(WaitUntil([&] { return server->server().running_calls() == 1; }));
  channel.reset();
  server.reset();
  EXPECT_FALSE(running.Wait().ok());
}

INSTANTIATE_TEST_SUITE_P(Transports, ShutdownTest,
                         ::testing::Values(Transport::kLoopback,
                                           Transport::kInProcess),
                         [](const auto& info) {
                           return TransportName(info.param);
                         });

}  // namespace
}  // namespace attention::testing
