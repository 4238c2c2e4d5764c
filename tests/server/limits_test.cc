// Sizes, budget, deadlines, cancellation.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "attention/v1/attention.grpc.pb.h"
#include "tests/support/long_call.h"
#include "tests/support/messages.h"
#include "tests/support/raw_call.h"
#include "tests/support/test_server.h"

namespace attention::testing {
namespace {

using v1::ComputeAttentionRequest;
using v1::ComputeAttentionResponse;

constexpr char kComputeAttention[] =
    "/attention.v1.AttentionService/ComputeAttention";

grpc::Status Compute(const std::shared_ptr<grpc::Channel>& channel,
                     const ComputeAttentionRequest& request,
                     ComputeAttentionResponse* response = nullptr) {
  grpc::ClientContext context;
  ComputeAttentionResponse ignored;
  return v1::AttentionService::NewStub(channel)->ComputeAttention(
      &context, request, response == nullptr ? &ignored : response);
}

class LimitsTest : public ::testing::TestWithParam<Transport> {};

TEST_P(LimitsTest, RequestsAreTakenUpToTheLimit) {
  server::Options options = TestServer::DefaultOptions();
  const ComputeAttentionRequest request = LongRequest(1000);
  options.max_request_bytes = static_cast<int64_t>(request.ByteSizeLong());
  {
    TestServer server(options);
    EXPECT_TRUE(Compute(server.Channel(GetParam()), request).ok());
  }
  --options.max_request_bytes;
  TestServer server(options);
  const grpc::Status status = Compute(server.Channel(GetParam()), request);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(status.error_message(),
            absl::StrCat("the request has ", request.ByteSizeLong(),
                         " bytes, more than the ", options.max_request_bytes,
                         " that this server takes (max_request_bytes)"));
  // Trying again cannot help.
  EXPECT_FALSE(DetailsOf(status).retry_delay.has_value());
}

TEST_P(LimitsTest, RequestsOfOtherMethodsAreTakenUpTo64KiB) {
  TestServer server;
  const auto channel = server.Channel(GetParam());
  // A field that no message has, of 65532 bytes.
  const std::string largest =
      "\x7a\xfc\xff\x03" + std::string((64 << 10) - 4, 'x');
  for (const char* method :
       {"/attention.v1.AttentionService/GetCapabilities",
        "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/List"}) {
    EXPECT_TRUE(RawUnaryCall(channel, method, largest).status.ok()) << method;
  }
  for (const char* method :
       {"/attention.v1.AttentionService/GetCapabilities",
        "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/List",
        "/grpc.health.v1.Health/Watch",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"}) {
    RawStream call(channel, method);
    EXPECT_TRUE(call.Write(largest + "x", /*last=*/true)) << method;
    EXPECT_EQ(call.Read(), std::nullopt) << method;
    const grpc::Status status = call.Finish();
    EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED)
        << method;
    EXPECT_EQ(status.error_message(),
              "the request has 65537 bytes, wanted at most 65536");
    EXPECT_EQ(DetailsOf(status).reason, "REQUEST_TOO_LARGE");
  }
}

TEST_P(LimitsTest, AnswersAreGivenUpToTheLimit) {
  server::Options options = TestServer::DefaultOptions();
  options.max_response_bytes = 5000;
  TestServer server(options);
  const auto channel = server.Channel(GetParam());
  EXPECT_TRUE(Compute(channel, LongRequest(1000)).ok());
  const grpc::Status status = Compute(channel, LongRequest(1250));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(status.error_message(),
            "the answer would have 5192 bytes, more than the 5000 that this "
            "server sends (max_response_bytes)");
}

// Of shape (batch, heads, rows, size), with the bytes of its elements.
void SetEmptyOrZero(int64_t batch, int64_t heads, int64_t rows, int64_t size,
                    v1::Tensor* tensor) {
  tensor->Clear();
  tensor->set_data_type(v1::DATA_TYPE_FLOAT32);
  for (int64_t dim : {batch, heads, rows, size}) tensor->add_shape(dim);
  tensor->set_data(std::string(4 * batch * heads * rows * size, 0));
}

TEST_P(LimitsTest, AnswersThatNobodyCouldHoldAreRefused) {
  TestServer server;
  ComputeAttentionRequest request;
  // No keys, so that nothing need be sent for the values.
  SetEmptyOrZero(1, 1, 1 << 20, 1, request.mutable_query());
  SetEmptyOrZero(1, 1, 0, 1, request.mutable_key());
  SetEmptyOrZero(1, 1, 0, 4096, request.mutable_value());
  const grpc::Status status = Compute(server.Channel(GetParam()), request);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
}

// Whose size is only a number must not cost time or memory.
TEST_P(LimitsTest, ShapesBeyondTheLimitsAreRefused) {
  server::Options options = TestServer::DefaultOptions();
  options.max_head_size = 3;
  options.max_heads = 4;
  options.max_batch = 5;
  options.max_batch_heads = 8;
  options.max_work = 1000000;
  TestServer server(options);
  const auto violation = [&](int64_t batch, int64_t query_heads,
                             int64_t kv_heads, int64_t rows, int64_t size) {
    ComputeAttentionRequest request;
    SetEmptyOrZero(batch, query_heads, rows, size, request.mutable_query());
    SetEmptyOrZero(batch, kv_heads, rows, size, request.mutable_key());
    SetEmptyOrZero(batch, kv_heads, rows, size, request.mutable_value());
    const grpc::Status status = Compute(server.Channel(GetParam()), request);
    if (status.ok()) return std::string();
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    const Details details = DetailsOf(status);
    EXPECT_EQ(details.reason, "LIMIT_EXCEEDED");
    return absl::StrCat(details.field, ": ", details.description);
  };
  EXPECT_EQ(violation(2, 4, 4, 1, 3), "");
  EXPECT_EQ(violation(5, 1, 1, 0, 3), "");
  EXPECT_EQ(violation(1, 1, 1, 0, 4),
            "query.shape: got (1, 1, 0, 4), wanted a head size of at most 3");
  EXPECT_EQ(violation(1, 5, 1, 0, 3),
            "query.shape: got (1, 5, 0, 3), wanted at most 4 heads");
  EXPECT_EQ(
      violation(int64_t{1} << 50, 1, 1, 0, 3),
      "query.shape: got (1125899906842624, 1, 0, 3), wanted a batch size of "
      "at most 5");
  EXPECT_EQ(violation(3, 4, 4, 0, 3),
            "key.shape: got (3, 4, 0, 3), wanted batch size times heads of at "
            "most 8, not 3 * 4");
  // A row costs 4000.
  EXPECT_THAT(violation(1, 1, 1, 300, 3),
              ::testing::StartsWith(
                  "query.shape: got (1, 1, 300, 3), wanted work of at most "
                  "1e+06 multiply-adds, not "));
}

TEST_P(LimitsTest, CancelledCallsEnd) {
  TestServer server;
  LongCall call(server.Channel(GetParam()));
  ASSERT_TRUE(WaitUntil([&] { return server.server().running_calls() == 1; }));
  call.Cancel();
  EXPECT_EQ(call.Wait().error_code(), grpc::StatusCode::CANCELLED);
  // The work ends too, long before it would be done.
  EXPECT_TRUE(WaitUntil([&] { return server.server().running_calls() == 0; }));
}

// Only foretold to end in time, as nothing is known of a call whose message is
// still to come.
TEST_P(LimitsTest, CallsPastTheirDeadlineEnd) {
  TestServer server;
  RawStream silent(
      server.Channel(GetParam()), kComputeAttention,
      std::chrono::system_clock::now() + std::chrono::milliseconds(300));
  EXPECT_EQ(silent.Finish().error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_TRUE(WaitUntil([&] { return server.server().running_calls() == 0; }));
}

// The server's own deadline, for those who bring none.
TEST_P(LimitsTest, TheDefaultDeadlineEndsCalls) {
  server::Options options = TestServer::DefaultOptions();
  options.default_deadline = absl::Seconds(1);
  TestServer server(options);
  RawStream silent(server.Channel(GetParam()), kComputeAttention);
  EXPECT_EQ(silent.Finish().error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
}

TEST_P(LimitsTest, UploadsThatStandStillEnd) {
  server::Options options = TestServer::DefaultOptions();
  options.stall_grace = absl::Milliseconds(200);
  options.min_upload_rate = int64_t{1} << 30;
  TestServer server(options);
  RawStream silent(server.Channel(GetParam()), kComputeAttention);
  const grpc::Status status = silent.Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_EQ(DetailsOf(status).reason, "SLOW_UPLOAD");
}

// Of many that stand still none keeps a small call from being answered.
TEST_P(LimitsTest, UnfinishedUploadsHoldUpNobody) {
  TestServer server;
  std::vector<std::unique_ptr<RawStream>> silent;
  const auto channel = server.Channel(GetParam());
  for (int i = 0; i < 200; ++i) {
    silent.push_back(std::make_unique<RawStream>(channel, kComputeAttention));
  }
  EXPECT_TRUE(Compute(server.Channel(GetParam()), SmallRequest()).ok());
}

TEST_P(LimitsTest, LongCallsDoNotHoldUpShortOnes) {
  server::Options options = TestServer::DefaultOptions();
  options.max_queue = options.default_deadline = absl::Hours(24);
  TestServer server(options);
  std::vector<std::unique_ptr<LongCall>> calls;
  // More than there are threads.
  for (int i = 0; i < 12; ++i) {
    calls.push_back(std::make_unique<LongCall>(server.Channel(GetParam())));
  }
  ASSERT_TRUE(WaitUntil([&] { return server.server().running_calls() == 12; }));
  EXPECT_TRUE(Compute(server.Channel(GetParam()), SmallRequest()).ok());
  for (const auto& call : calls) EXPECT_FALSE(call->ended());
}

TEST_P(LimitsTest, ACallWaitsForMemoryAndIsAnsweredWhenThereIsSome) {
  server::Options options = TestServer::DefaultOptions();
  const auto long_bytes =
      static_cast<int64_t>(LongCall::Request().ByteSizeLong());
  options.max_request_bytes = long_bytes;
  options.max_response_bytes = long_bytes;
  options.max_inflight_bytes = 3 * long_bytes;
  options.max_queue = options.default_deadline = absl::Hours(24);
  TestServer server(options);
  const auto channel = server.Channel(GetParam());
  // Announced, so that it is not read before there is memory for it.
  auto first = std::make_unique<LongCall>(channel, Announced{});
  ASSERT_TRUE(WaitUntil([&] { return server.server().running_calls() == 1; }));
  auto second = std::make_unique<LongCall>(channel, Announced{});
  ASSERT_TRUE(WaitUntil([&] { return server.server().running_calls() == 2; }));
  EXPECT_FALSE(second->ended());
  // A small one is answered meanwhile, and the memory that the long ones held
  // is free when they are gone.
  EXPECT_TRUE(Compute(channel, SmallRequest()).ok());
  first.reset();
  second.reset();
  ASSERT_TRUE(WaitUntil([&] { return server.server().running_calls() == 0; }));
  EXPECT_TRUE(Compute(channel, LongRequest(1000)).ok());
}

// Its message stays with the client meanwhile.
TEST_P(LimitsTest, ACallThatWaitsIsNotRead) {
  server::Options options = TestServer::DefaultOptions();
  const std::string message = LongCall::Request().SerializeAsString();
  const auto bytes = static_cast<int64_t>(message.size());
  options.max_request_bytes = options.max_response_bytes = bytes;
  options.max_inflight_bytes = 3 * bytes;
  options.max_queue = options.default_deadline = absl::Hours(24);
  TestServer server(options);
  auto first =
      std::make_unique<LongCall>(server.Channel(GetParam()), Announced{});
  ASSERT_TRUE(WaitUntil([&] { return server.server().running_calls() == 1; }));
  RawStream second(server.Channel(GetParam()), kComputeAttention,
                   std::chrono::system_clock::time_point::max(), bytes);
  second.StartWrite(message);
  ASSERT_TRUE(WaitUntil([&] { return server.server().running_calls() == 2; }));
  ASSERT_FALSE(second.WrittenWithin(std::chrono::milliseconds(300)));
  first.reset();
  EXPECT_TRUE(second.WrittenWithin(std::chrono::minutes(1)));
}

TEST_P(LimitsTest, WhatNeedsMoreThanTheBudgetAloneIsRefused) {
  server::Options options = TestServer::DefaultOptions();
  options.max_request_bytes = 1 << 20;
  options.max_response_bytes = 1 << 20;
  options.max_inflight_bytes = 3 << 20;
  TestServer server(options);
  // Little to send, much to compute in: one key of 4096 columns.
  ComputeAttentionRequest request;
  for (v1::Tensor* tensor : {request.mutable_query(), request.mutable_key()}) {
    *tensor = RandomTensor(v1::DATA_TYPE_FLOAT16, {1, 4096}, 1);
  }
  *request.mutable_value() = RandomTensor(v1::DATA_TYPE_FLOAT16, {1, 1}, 1);
  const grpc::Status status = Compute(server.Channel(GetParam()), request);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(DetailsOf(status).reason, "MEMORY_TOO_LARGE");
  EXPECT_FALSE(DetailsOf(status).retry_delay.has_value());
}

TEST_P(LimitsTest, WhatWouldMissItsDeadlineIsRefusedAtOnce) {
  TestServer server;
  LongCall call(server.Channel(GetParam()),
                std::chrono::system_clock::now() + std::chrono::minutes(1));
  const grpc::Status status = call.Wait();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(DetailsOf(status).reason, "DEADLINE_TOO_CLOSE");
  EXPECT_TRUE(DetailsOf(status).retry_delay.has_value());
}

TEST_P(LimitsTest, CallsThatWouldQueueTooLongAreRefusedUnread) {
  server::Options options = TestServer::DefaultOptions();
  options.max_queue = absl::ZeroDuration();
  TestServer server(options);
  const auto channel = server.Channel(GetParam());
  LongCall first(channel);
  ASSERT_TRUE(WaitUntil([&] { return server.server().running_calls() == 1; }));
  // As large as the first, so that it would have to wait; until the first has
  // been read nobody knows how long.
  std::optional<grpc::Status> status;
  ASSERT_TRUE(WaitUntil([&] {
    LongCall next(channel, LongRequest(200000));
    next.Cancel();
    status = next.Wait();
    return status->error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED;
  }));
  EXPECT_EQ(DetailsOf(*status).reason, "QUEUE_FULL");
}

// Over the network only: inside a process nothing is compressed.
TEST(CompressionTest, CompressedRequestsAreRefused) {
  TestServer server;
  grpc::ClientContext context;
  context.set_compression_algorithm(GRPC_COMPRESS_GZIP);
  ComputeAttentionResponse response;
  // Zeros, for gRPC sends what does not shrink as it is.
  ComputeAttentionRequest request = LongRequest(1000);
  request.mutable_query()->mutable_data()->assign(4000, '\0');
  const grpc::Status status =
      v1::AttentionService::NewStub(server.Channel(Transport::kLoopback))
          ->ComputeAttention(&context, request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNIMPLEMENTED);
}

INSTANTIATE_TEST_SUITE_P(Transports, LimitsTest,
                         ::testing::Values(Transport::kLoopback,
                                           Transport::kInProcess),
                         [](const auto& info) {
                           return TransportName(info.param);
                         });

}  // namespace
}  // namespace attention::testing
