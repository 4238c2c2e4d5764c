// What clients may do beside their calls: headers, pings, and names for calls.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <map>
#include <string>
#include <thread>

#include "absl/time/time.h"
#include "attention/v1/attention.grpc.pb.h"
#include "server/rpc/call_headers.h"
#include "tests/support/http2_client.h"
#include "tests/support/messages.h"
#include "tests/support/raw_call.h"
#include "tests/support/test_server.h"

namespace attention::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::Pair;

constexpr char kTraceparent[] =
    "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
constexpr char kWatch[] = "/grpc.health.v1.Health/Watch";
constexpr char kComputeAttention[] =
    "/attention.v1.AttentionService/ComputeAttention";

class HeadersTest : public ::testing::Test {
 protected:
  grpc::Status Compute(int headers, size_t bytes_each) {
    grpc::ClientContext context;
    for (int i = 0; i < headers; ++i) {
      context.AddMetadata("x-large", std::string(bytes_each, 'x'));
    }
    v1::ComputeAttentionResponse response;
    return v1::AttentionService::NewStub(channel_)->ComputeAttention(
        &context, SmallRequest(), &response);
  }
  grpc::Status Ask(size_t bytes) {
    grpc::ClientContext context;
    context.AddMetadata("x-large", std::string(bytes, 'x'));
    v1::GetCapabilitiesResponse response;
    return v1::AttentionService::NewStub(channel_)->GetCapabilities(
        &context, {}, &response);
  }

  TestServer server_;
  const std::shared_ptr<grpc::Channel> channel_ =
      server_.Channel(Transport::kLoopback);
};

TEST_F(HeadersTest, AreTakenUpToTheLimit) {
  // Beside it there are some small ones.
  EXPECT_TRUE(Compute(1, 65000).ok());
  EXPECT_TRUE(Compute(60, 1000).ok());
  EXPECT_TRUE(Ask(65000).ok());
}

TEST_F(HeadersTest, LargerOnesEndTheirOwnCall) {
  RawStream watch(channel_, kWatch);
  ASSERT_TRUE(watch.Write(HealthRequest(""), /*last=*/true));
  EXPECT_EQ(ServingStatus(watch.Read().value()), "SERVING");
  for (const grpc::Status& status :
       {Compute(1, 66000), Compute(1, 200000),
        Compute(server::kMaxHeaders + 1, 1), Ask(200000)}) {
    EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
    EXPECT_EQ(DetailsOf(status).reason, "HEADERS_TOO_LARGE");
    EXPECT_FALSE(DetailsOf(status).retry_delay.has_value());
  }
  EXPECT_TRUE(Compute(1, 1000).ok());
  // The same connection still serves the call that was there first.
  server_.server().Shutdown(absl::InfiniteFuture());
  EXPECT_EQ(ServingStatus(watch.Read().value()), "NOT_SERVING");
}

TEST_F(HeadersTest, AWatchDoesNotKeepLargeOnes) {
  Http2Client client(server_.server().addresses().front());
  HeaderList headers = GrpcHeaders(kWatch);
  headers.emplace_back("x-large", std::string(100000, 'x'));
  const uint32_t watch = client.Call(headers);
  client.SendData(watch, GrpcMessage(""), /*last=*/false);
  EXPECT_TRUE(HasHeader(client.ReadAnswer(watch), "grpc-status", "8"));
  EXPECT_TRUE(client.Ping());
}

class PingsTest : public ::testing::TestWithParam<bool> {
 protected:
  // A connection, with a call that says nothing or with none.
  void Connect(absl::Duration interval) {
    server::Options options = TestServer::DefaultOptions();
    options.min_ping_interval = interval;
    server_ = std::make_unique<TestServer>(options);
    client_ =
        std::make_unique<Http2Client>(server_->server().addresses().front());
    if (GetParam()) client_->Call(GrpcHeaders(kComputeAttention));
  }

  std::unique_ptr<TestServer> server_;
  std::unique_ptr<Http2Client> client_;
};

TEST_P(PingsTest, AreAnsweredAtTheLeastInterval) {
  constexpr std::chrono::milliseconds kInterval{50};
  Connect(absl::FromChrono(kInterval));
  // gRPC's own patience ends with the third. Each is sent so long after the
  // server has answered the one before, whatever the machine does meanwhile.
  for (int i = 0; i < 10; ++i) {
    EXPECT_TRUE(client_->Ping()) << i;
    std::this_thread::sleep_for(kInterval);
  }
}

TEST_P(PingsTest, FasterOnesEndTheConnection) {
  Connect(absl::Hours(1));
  int answered = 0;
  while (answered < 100 && client_->Ping()) ++answered;
  EXPECT_LT(answered, 10);
}

// The trailers of a call that says who it is.
std::multimap<std::string, std::string> TrailersOf(
    const std::function<void(grpc::ClientContext&)>& call) {
  grpc::ClientContext context;
  context.AddMetadata("traceparent", kTraceparent);
  context.AddMetadata("x-request-id", "order 17");
  call(context);
  std::multimap<std::string, std::string> trailers;
  for (const auto& [name, value] : context.GetServerTrailingMetadata()) {
    trailers.emplace(std::string(name.data(), name.size()),
                     std::string(value.data(), value.size()));
  }
  trailers.erase("grpc-status-details-bin");
  return trailers;
}

TEST(CallerIdsTest, ComeBackInTheTrailers) {
  TestServer server;
  for (Transport transport : {Transport::kLoopback, Transport::kInProcess}) {
    const auto stub = v1::AttentionService::NewStub(server.Channel(transport));
    const auto compute = [&](const v1::ComputeAttentionRequest& request,
                             grpc::StatusCode code) {
      return TrailersOf([&](grpc::ClientContext& context) {
        v1::ComputeAttentionResponse response;
        EXPECT_EQ(
            stub->ComputeAttention(&context, request, &response).error_code(),
            code);
      });
    };
    const auto both = ElementsAre(Pair("traceparent", kTraceparent),
                                  Pair("x-request-id", "order 17"));
    EXPECT_THAT(compute(SmallRequest(), grpc::StatusCode::OK), both);
    EXPECT_THAT(compute({}, grpc::StatusCode::INVALID_ARGUMENT), both);
    EXPECT_THAT(
        TrailersOf([&](grpc::ClientContext& context) {
          v1::GetCapabilitiesResponse response;
          EXPECT_TRUE(stub->GetCapabilities(&context, {}, &response).ok());
        }),
        both);
  }
}

INSTANTIATE_TEST_SUITE_P(Calls, PingsTest, ::testing::Bool(),
                         [](const auto& info) {
                           return info.param ? "SilentCall" : "NoCall";
                         });

}  // namespace
}  // namespace attention::testing
