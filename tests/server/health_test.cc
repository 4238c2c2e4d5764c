// grpc.health.v1.Health.
#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>

#include "absl/time/time.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "server/rpc/health_service.h"
#include "tests/support/raw_call.h"
#include "tests/support/streamed_server.h"
#include "tests/support/test_server.h"

namespace attention::testing {
namespace {

using ::grpc::health::v1::HealthCheckResponse;

constexpr char kService[] = "attention.v1.AttentionService";
constexpr char kWatch[] = "/grpc.health.v1.Health/Watch";

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

TEST_P(HealthTest, ListsBoth) {
  const auto stub =
      grpc::health::v1::Health::NewStub(server_.Channel(GetParam()));
  for (const auto status :
       {HealthCheckResponse::SERVING, HealthCheckResponse::NOT_SERVING}) {
    grpc::ClientContext context;
    grpc::health::v1::HealthListResponse response;
    ASSERT_TRUE(stub->List(&context, {}, &response).ok());
    EXPECT_EQ(response.statuses_size(), 2);
    EXPECT_EQ(response.statuses().at("").status(), status);
    EXPECT_EQ(response.statuses().at(kService).status(), status);
    server_.server().Shutdown(absl::InfiniteFuture());
  }
}

TEST_P(HealthTest, WatchersOfAnUnknownServiceAreToldSo) {
  RawStream watch(server_.Channel(GetParam()), kWatch);
  ASSERT_TRUE(watch.Write(HealthRequest("no.such.Service"), /*last=*/true));
  EXPECT_EQ(ServingStatus(watch.Read().value_or("")), "SERVICE_UNKNOWN");
  server_.server().Shutdown(absl::InfiniteFuture());
  server_.server().Wait();
  // Not that it stopped serving: it never did.
  EXPECT_EQ(watch.Read(), std::nullopt);
}

// The service alone, with room for two watchers.
class HealthServiceTest : public ::testing::Test {
 protected:
  std::unique_ptr<RawStream> Watch() {
    auto watch = std::make_unique<RawStream>(channel_, kWatch);
    // Where there are too many already it is not read.
    static_cast<void>(watch->Write(HealthRequest(""), /*last=*/true));
    return watch;
  }

  server::HealthService health_{kService, /*max_watchers=*/2};
  StreamedServer server_{
      [this](server::StreamedService& service) { health_.AddTo(service); }};
  const std::shared_ptr<grpc::Channel> channel_ = server_.Channel();
};

TEST_F(HealthServiceTest, DoesNotServeUntilTold) {
  EXPECT_EQ(HealthOf(channel_, ""), "NOT_SERVING");
  health_.SetServing(true);
  EXPECT_EQ(HealthOf(channel_, ""), "SERVING");
}

TEST_F(HealthServiceTest, AnUnknownServiceIsNamed) {
  const RawAnswer answer =
      RawUnaryCall(channel_, "/grpc.health.v1.Health/Check",
                   HealthRequest("no.such.Service"));
  EXPECT_EQ(answer.status.error_message(),
            "service: got \"no.such.Service\", wanted \"\" or "
            "\"attention.v1.AttentionService\"");
}

TEST_F(HealthServiceTest, OneWatcherTooManyIsRefusedUntilAnotherGoes) {
  const auto first = Watch();
  auto second = Watch();
  EXPECT_EQ(ServingStatus(first->Read().value_or("")), "NOT_SERVING");
  EXPECT_EQ(ServingStatus(second->Read().value_or("")), "NOT_SERVING");
  // Unread, so that silent ones count as well.
  RawStream third(channel_, kWatch);
  ASSERT_EQ(third.Read(), std::nullopt);
  const grpc::Status refused = third.Finish();
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(refused.error_message(),
            "the server has 2 health watchers, as many as it takes; use Check "
            "instead");
  EXPECT_EQ(third.Trailer("grpc-retry-pushback-ms"), "1000");
  second.reset();
  EXPECT_TRUE(WaitUntil([&] { return Watch()->Read().has_value(); }));
  health_.SetServing(true);
  EXPECT_EQ(ServingStatus(first->Read().value_or("")), "SERVING");
}

TEST_F(HealthServiceTest, AWatcherThatDoesNotReadLearnsTheLastStatus) {
  const auto watch = Watch();
  // The last message that it has not read yet is on its way; no queue grows.
  for (int i = 0; i < 10'001; ++i) health_.SetServing(i % 2 == 0);
  int messages = 0;
  std::string status;
  while (status != "SERVING" && messages < 10) {
    status = ServingStatus(watch->Read().value_or(""));
    ++messages;
  }
  EXPECT_EQ(status, "SERVING");
  EXPECT_EQ(HealthOf(channel_, ""), "SERVING");
}

INSTANTIATE_TEST_SUITE_P(Transports, HealthTest,
                         ::testing::Values(Transport::kLoopback,
                                           Transport::kInProcess),
                         [](const auto& info) {
                           return TransportName(info.param);
                         });

}  // namespace
}  // namespace attention::testing
