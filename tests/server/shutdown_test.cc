// Draining: what runs may finish, what is new goes elsewhere, what is late is
// cut.
#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "attention/v1/attention.grpc.pb.h"
#include "attention/v1/session.grpc.pb.h"
#include "base/descriptor.h"
#include "grpcpp/client_context.h"
#include "server/options.h"
#include "server/server.h"
#include "tests/support/http2_client.h"
#include "tests/support/long_call.h"
#include "tests/support/messages.h"
#include "tests/support/raw_call.h"
#include "tests/support/socket.h"
#include "tests/support/test_server.h"

namespace attention::testing {
namespace {

// Runs Wait() of a server that has been asked to stop; its destructor lets
// nothing go on any longer.
class Draining {
 public:
  explicit Draining(server::Server& server)
      : server_(server), thread_([&server] { server.Wait(); }) {}
  ~Draining() {
    server_.Shutdown(absl::InfinitePast());
    thread_.join();
  }
  Draining(const Draining&) = delete;
  Draining& operator=(const Draining&) = delete;

 private:
  server::Server& server_;
  std::thread thread_;
};

grpc::Status Compute(const std::shared_ptr<grpc::Channel>& channel) {
  grpc::ClientContext context;
  v1::ComputeAttentionResponse response;
  return v1::AttentionService::NewStub(channel)->ComputeAttention(
      &context, SmallRequest(), &response);
}

class DrainTest : public ::testing::Test {
 protected:
  explicit DrainTest(
      const server::Options& options = TestServer::DefaultOptions())
      : server_(options) {}

  void WaitUntilRunning() {
    ASSERT_TRUE(
        WaitUntil([&] { return server_.server().running_calls() == 1; }));
  }
  std::string address() { return server_.server().addresses().front(); }

  TestServer server_;
};

class ShutdownTest : public DrainTest,
                     public ::testing::WithParamInterface<Transport> {};

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

class GoawayTest : public DrainTest {};

TEST_F(GoawayTest, ClientsAreSentAwayWhileARunningCallGoesOn) {
  const auto channel = server_.Channel(Transport::kLoopback);
  LongCall running(channel);
  WaitUntilRunning();
  server_.server().Shutdown(absl::InfiniteFuture());
  const Draining draining(server_.server());
  // The channel leaves READY when it has been told.
  EXPECT_TRUE(channel->WaitForStateChange(
      GRPC_CHANNEL_READY,
      std::chrono::system_clock::now() + std::chrono::seconds(30)));
  // There is nothing to connect to any more.
  EXPECT_FALSE(ConnectTo(address()).valid());
  EXPECT_EQ(Compute(channel).error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(server_.server().running_calls(), 1);
  EXPECT_FALSE(running.ended());
}

TEST_F(GoawayTest, ACallOnItsWayIsServed) {
  LongCall running(server_.Channel(Transport::kLoopback));
  Http2Client peer(address());
  WaitUntilRunning();
  server_.server().Shutdown(absl::InfiniteFuture());
  const Draining draining(server_.server());
  const auto goaway = peer.ReadFrameOf(FrameType::kGoaway);
  const auto ping = peer.ReadFrameOf(FrameType::kPing);
  ASSERT_TRUE(goaway && ping);
  EXPECT_EQ(LastStreamOf(*goaway), 0x7FFFFFFF);
  // As far as the server knows, this call crossed with what it sent.
  peer.Compute(SmallRequest().SerializeAsString());
  const auto answer = peer.ReadFrameOf(FrameType::kData);
  ASSERT_TRUE(answer.has_value());
  v1::ComputeAttentionResponse response;
  // Behind five bytes of gRPC's own.
  EXPECT_TRUE(response.ParseFromString(answer->payload.substr(5)));
  EXPECT_TRUE(response.has_output());
  const auto trailers = peer.ReadFrame();
  ASSERT_TRUE(trailers.has_value());
  EXPECT_EQ(trailers->type, FrameType::kHeaders);
  EXPECT_EQ(trailers->flags & kEndStream, kEndStream);
  // Only now it knows that none will come, and closes the connection.
  peer.AnswerPing(*ping);
  const auto last = peer.ReadFrameOf(FrameType::kGoaway);
  ASSERT_TRUE(last.has_value());
  EXPECT_EQ(LastStreamOf(*last), 1);
  EXPECT_FALSE(peer.ReadFrame().has_value());
  EXPECT_FALSE(running.ended());
}

// As many rows of 1024 numbers as queries, from few bytes.
v1::ComputeAttentionRequest RequestOfLargeAnswer(int64_t queries) {
  v1::ComputeAttentionRequest request;
  const auto set = [](int64_t rows, int64_t columns, v1::Tensor* tensor) {
    tensor->set_data_type(v1::DATA_TYPE_FLOAT32);
    tensor->add_shape(rows);
    tensor->add_shape(columns);
    tensor->set_data(std::string(4 * rows * columns, '\0'));
  };
  set(queries, 1, request.mutable_query());
  set(1, 1, request.mutable_key());
  set(1, 1024, request.mutable_value());
  request.mutable_options()->set_layout(v1::LAYOUT_MATRIX);
  return request;
}

TEST_F(GoawayTest, AClientThatReadsSlowlyGetsTheWholeAnswer) {
  LongCall running(server_.Channel(Transport::kLoopback));
  Http2Client peer(address());
  peer.TakeMuch();
  WaitUntilRunning();
  server_.server().Shutdown(absl::InfiniteFuture());
  const Draining draining(server_.server());
  const auto ping = peer.ReadFrameOf(FrameType::kPing);
  ASSERT_TRUE(ping.has_value());
  constexpr int64_t kQueries = 512;
  peer.Compute(RequestOfLargeAnswer(kQueries).SerializeAsString());
  // The connection is to be closed with this call.
  peer.AnswerPing(*ping);
  size_t bytes = 0;
  for (;;) {
    const auto frame = peer.ReadFrame();
    ASSERT_TRUE(frame.has_value()) << "closed after " << bytes << " bytes";
    if (frame->type == FrameType::kData) {
      bytes += frame->payload.size();
      peer.TakeOneMore();
    }
    if (frame->stream == 1 && (frame->flags & kEndStream)) break;
  }
  EXPECT_GT(bytes, kQueries * 1024 * sizeof(float));
  EXPECT_FALSE(running.ended());
}

TEST_F(GoawayTest, CallsThatWaitAreServed) {
  const auto channel = server_.Channel(Transport::kLoopback);
  // More than are let in at once.
  const v1::ComputeAttentionRequest request = LongRequest(6000);
  std::vector<std::unique_ptr<LongCall>> calls(16);
  for (auto& call : calls) {
    call = std::make_unique<LongCall>(channel, Announced(), request);
  }
  // Answered in order behind their headers.
  EXPECT_EQ(HealthOf(channel, ""), "SERVING");
  server_.server().Shutdown(absl::InfiniteFuture());
  server_.server().Wait();
  for (const auto& call : calls) {
    EXPECT_TRUE(call->Wait().ok()) << call->Wait().error_message();
  }
}

TEST_F(GoawayTest, NeitherSilentPeersNorWatchersHoldItUp) {
  const Descriptor silent = ConnectTo(address());
  const Descriptor half = ConnectTo(address());
  Send(half, Http2Start().substr(0, 12));
  Http2Client idle(address());
  const auto channel = server_.Channel(Transport::kLoopback);
  RawStream watch(channel, "/grpc.health.v1.Health/Watch");
  ASSERT_TRUE(watch.Write(HealthRequest(""), /*last=*/true));
  EXPECT_EQ(ServingStatus(watch.Read().value_or("")), "SERVING");
  server_.server().Shutdown(absl::InfiniteFuture());
  server_.server().Wait();
  EXPECT_EQ(ServingStatus(watch.Read().value_or("")), "NOT_SERVING");
  EXPECT_EQ(watch.Read(), std::nullopt);
}

TEST_F(GoawayTest, StreamsOfSessionsThatAreIdleDoNotHoldItUp) {
  const auto stub =
      v1::SessionService::NewStub(server_.Channel(Transport::kLoopback));
  grpc::ClientContext context;
  const auto stream = stub->Step(&context);
  v1::StepRequest request;
  request.add_items()->set_id("none");
  v1::StepResponse response;
  ASSERT_TRUE(stream->Write(request));
  ASSERT_TRUE(stream->Read(&response));
  server_.server().Shutdown(absl::InfiniteFuture());
  server_.server().Wait();
  EXPECT_FALSE(stream->Read(&response));
  const grpc::Status status = stream->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(DetailsOf(status).reason, "DRAINING");
}

class DrainDelayTest : public DrainTest,
                       public ::testing::WithParamInterface<Transport> {
 protected:
  DrainDelayTest() : DrainTest(Delayed()) {}

  static server::Options Delayed() {
    server::Options options = TestServer::DefaultOptions();
    options.drain_delay = absl::Hours(1);
    return options;
  }
};

TEST_P(DrainDelayTest, OnlyHealthTellsOfIt) {
  const auto before = server_.Channel(GetParam());
  EXPECT_TRUE(Compute(before).ok());
  server_.server().Shutdown(absl::InfiniteFuture());
  const Draining draining(server_.server());
  const auto after = server_.Channel(GetParam());
  for (const auto& channel : {before, after}) {
    EXPECT_EQ(HealthOf(channel, ""), "NOT_SERVING");
    EXPECT_EQ(HealthOf(channel, "attention.v1.AttentionService"),
              "NOT_SERVING");
    EXPECT_TRUE(Compute(channel).ok());
  }
  // A deadline that has passed ends the delay too.
}

class InProcessShutdownTest : public DrainTest {};

TEST_F(InProcessShutdownTest, NewCallsAreUnavailableWhileARunningOneGoesOn) {
  const auto channel = server_.Channel(Transport::kInProcess);
  LongCall running(channel);
  WaitUntilRunning();
  server_.server().Shutdown(absl::InfiniteFuture());
  const Draining draining(server_.server());
  grpc::Status status;
  EXPECT_TRUE(WaitUntil([&] {
    status = Compute(channel);
    return !status.ok();
  }));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(status.error_message(), "the server is shutting down");
  // The refused call may still be ending.
  EXPECT_TRUE(WaitUntil([&] { return server_.server().running_calls() == 1; }));
  EXPECT_FALSE(running.ended());
}

INSTANTIATE_TEST_SUITE_P(Transports, ShutdownTest,
                         ::testing::Values(Transport::kLoopback,
                                           Transport::kInProcess),
                         [](const auto& info) {
                           return TransportName(info.param);
                         });
INSTANTIATE_TEST_SUITE_P(Transports, DrainDelayTest,
                         ::testing::Values(Transport::kLoopback,
                                           Transport::kInProcess),
                         [](const auto& info) {
                           return TransportName(info.param);
                         });

}  // namespace
}  // namespace attention::testing
