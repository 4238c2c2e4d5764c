// ModelStreamInfer: one inference after another on a stream that stays open.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "grpcpp/client_context.h"
#include "inference/inference.grpc.pb.h"
#include "tests/support/infer_messages.h"
#include "tests/support/messages.h"
#include "tests/support/raw_call.h"
#include "tests/support/test_server.h"

namespace attention::testing {
namespace {

using inference::GRPCInferenceService;
using inference::ModelInferRequest;
using inference::ModelStreamInferResponse;
using ::testing::StartsWith;

constexpr char kModelStreamInfer[] =
    "/inference.GRPCInferenceService/ModelStreamInfer";

// An open stream.
class InferStream {
 public:
  explicit InferStream(const std::shared_ptr<grpc::Channel>& channel)
      : stub_(GRPCInferenceService::NewStub(channel)),
        stream_(stub_->ModelStreamInfer(&context_)) {}
  ~InferStream() { context_.TryCancel(); }

  bool Write(const ModelInferRequest& request) {
    return stream_->Write(request);
  }
  // Nothing if the stream has ended.
  std::optional<ModelStreamInferResponse> Read() {
    ModelStreamInferResponse response;
    return stream_->Read(&response) ? std::optional(response) : std::nullopt;
  }
  std::optional<ModelStreamInferResponse> Send(
      const ModelInferRequest& request) {
    return Write(request) ? Read() : std::nullopt;
  }
  // Blocks until the server ends it.
  grpc::Status End() {
    const auto more = Read();
    EXPECT_FALSE(more) << more->ShortDebugString();
    return stream_->Finish();
  }
  grpc::Status Close() {
    stream_->WritesDone();
    return End();
  }
  void Cancel() { context_.TryCancel(); }

 private:
  grpc::ClientContext context_;
  std::unique_ptr<GRPCInferenceService::Stub> stub_;
  std::unique_ptr<
      grpc::ClientReaderWriter<ModelInferRequest, ModelStreamInferResponse>>
      stream_;
};

class InferenceStreamTest : public ::testing::Test {
 protected:
  explicit InferenceStreamTest(
      const server::Options& options = TestServer::DefaultOptions())
      : server_(options), channel_(server_.Channel(Transport::kLoopback)) {}

  static ModelInferRequest Request(const std::string& id,
                                   const v1::ComputeAttentionRequest& own) {
    ModelInferRequest request = InferRequestOf(own);
    request.set_id(id);
    return request;
  }
  static ModelInferRequest Small(const std::string& id) {
    return Request(id, SmallRequest());
  }
  static v1::ComputeAttentionRequest Sized(int64_t queries, int64_t keys) {
    v1::ComputeAttentionRequest own;
    *own.mutable_query() =
        RandomTensor(v1::DATA_TYPE_FLOAT32, {1, 2, queries, 8}, 1);
    *own.mutable_key() =
        RandomTensor(v1::DATA_TYPE_FLOAT32, {1, 1, keys, 8}, 2);
    *own.mutable_value() =
        RandomTensor(v1::DATA_TYPE_FLOAT32, {1, 1, keys, 8}, 3);
    return own;
  }
  static void ExpectAnswer(const std::optional<ModelStreamInferResponse>& got,
                           const std::string& id,
                           const v1::ComputeAttentionRequest& own) {
    ASSERT_TRUE(got);
    EXPECT_EQ(got->error_message(), "");
    EXPECT_EQ(got->infer_response().id(), id);
    EXPECT_TRUE(got->infer_response()
                    .parameters()
                    .at("triton_final_response")
                    .bool_param());
    ExpectSameOutputs(got->infer_response(), KernelAnswer(own));
  }
  static void ExpectFailed(const std::optional<ModelStreamInferResponse>& got,
                           const std::string& id, const std::string& message) {
    ASSERT_TRUE(got);
    EXPECT_THAT(got->error_message(), StartsWith(message));
    EXPECT_EQ(got->infer_response().id(), id);
    EXPECT_EQ(got->infer_response().outputs_size(), 0);
    EXPECT_EQ(got->infer_response().raw_output_contents_size(), 0);
  }

  TestServer server_;
  std::shared_ptr<grpc::Channel> channel_;
};

TEST_F(InferenceStreamTest, AnswersInOrder) {
  InferStream stream(channel_);
  // Small ones are computed where they are read, others by the executor.
  const std::vector<std::pair<int64_t, int64_t>> sizes = {
      {3, 5}, {200, 3000}, {1, 20000}, {3, 5}, {1, 1}, {300, 300}};
  for (size_t i = 0; i < sizes.size(); ++i) {
    ASSERT_TRUE(stream.Write(
        Request(absl::StrCat(i), Sized(sizes[i].first, sizes[i].second))));
  }
  for (size_t i = 0; i < sizes.size(); ++i) {
    ExpectAnswer(stream.Read(), absl::StrCat(i),
                 Sized(sizes[i].first, sizes[i].second));
  }
  EXPECT_TRUE(stream.Close().ok());
}

TEST_F(InferenceStreamTest, NothingToAsk) {
  EXPECT_TRUE(InferStream(channel_).Close().ok());
}

// What one message leaves behind must not get into the next.
TEST_F(InferenceStreamTest, MessagesThatFailHarmNoOthers) {
  InferStream stream(channel_);
  ModelInferRequest unknown = Small("a");
  (*unknown.mutable_parameters())["casual"].set_int64_param(1);
  ModelInferRequest unfit = Request("b", Sized(200, 3000));
  unfit.mutable_inputs(1)->set_shape(3, 4);
  unfit.mutable_inputs(1)->set_shape(2, 400);
  ModelInferRequest scores = Small("d");
  scores.add_outputs()->set_name("scores");
  ModelInferRequest numbers =
      InferRequestOf(SmallRequest(), Elements::kNumbers);
  for (int round = 0; round < 3; ++round) {
    ExpectFailed(stream.Send(unknown), "a",
                 "INVALID_ARGUMENT: parameters.casual: unknown");
    ExpectAnswer(stream.Send(Small("")), "", SmallRequest());
    ExpectFailed(stream.Send(unfit), "b",
                 "INVALID_ARGUMENT: inputs.key.shape: got");
    const auto got = stream.Send(scores);
    ASSERT_TRUE(got);
    ASSERT_EQ(got->infer_response().outputs_size(), 1);
    EXPECT_EQ(got->infer_response().outputs(0).name(), "scores");
    ExpectAnswer(stream.Send(numbers), "", SmallRequest());
    ExpectFailed(stream.Send(ModelInferRequest()), "",
                 "NOT_FOUND: model name: got \"\"");
    ExpectAnswer(stream.Send(Small("e")), "e", SmallRequest());
  }
  EXPECT_TRUE(stream.Close().ok());
}

TEST_F(InferenceStreamTest, BytesThatAreNoMessage) {
  RawStream stream(channel_, kModelStreamInfer);
  ASSERT_TRUE(stream.Write("\x1a\x01x\xff"));
  ModelStreamInferResponse response;
  ASSERT_TRUE(response.ParseFromString(stream.Read().value_or("\xff")));
  EXPECT_EQ(response.error_message(),
            "INVALID_ARGUMENT: the request is not a valid "
            "inference.ModelInferRequest message");
  EXPECT_EQ(response.infer_response().id(), "x");
  ASSERT_TRUE(stream.Write(Small("y").SerializeAsString(), /*last=*/true));
  ASSERT_TRUE(response.ParseFromString(stream.Read().value_or("\xff")));
  EXPECT_EQ(response.error_message(), "");
  EXPECT_FALSE(stream.Read());
  EXPECT_TRUE(stream.Finish().ok());
}

TEST_F(InferenceStreamTest, EachMessageCountsAsACall) {
  InferStream stream(channel_);
  ExpectAnswer(stream.Send(Small("a")), "a", SmallRequest());
  stream.Send(ModelInferRequest());
  ExpectAnswer(stream.Send(Small("b")), "b", SmallRequest());
  EXPECT_TRUE(stream.Close().ok());
  const std::string metrics = server_.server().metrics().Text();
  const auto count = [](const char* code, int number) {
    return absl::StrCat("attention_calls_total{code=\"", code,
                        "\",method=\"ModelStreamInfer\"} ", number, "\n");
  };
  EXPECT_THAT(metrics, ::testing::HasSubstr(count("OK", 2)));
  EXPECT_THAT(metrics, ::testing::HasSubstr(count("NOT_FOUND", 1)));
  const auto stub = GRPCInferenceService::NewStub(channel_);
  grpc::ClientContext context;
  inference::ModelStatisticsResponse statistics;
  ASSERT_TRUE(stub->ModelStatistics(&context,
                                    inference::ModelStatisticsRequest(),
                                    &statistics)
                  .ok());
  EXPECT_EQ(statistics.model_stats(0).inference_count(), 2);
  EXPECT_EQ(statistics.model_stats(0).inference_stats().fail().count(), 1);
}

TEST_F(InferenceStreamTest, ACancelledStreamIsGivenUp) {
  {
    InferStream stream(channel_);
    ExpectAnswer(stream.Send(Small("a")), "a", SmallRequest());
    // Many seconds of work.
    ASSERT_TRUE(stream.Write(Request("b", Sized(30000, 30000))));
    ASSERT_TRUE(
        WaitUntil([&] { return server_.server().running_calls() == 1; }));
    stream.Cancel();
  }
  EXPECT_TRUE(WaitUntil([&] { return server_.server().running_calls() == 0; }));
}

TEST_F(InferenceStreamTest, DrainingEndsStreamsThatWait) {
  InferStream stream(channel_);
  ExpectAnswer(stream.Send(Small("a")), "a", SmallRequest());
  server_.server().Shutdown(absl::InfiniteFuture());
  std::thread waiting([&] { server_.server().Wait(); });
  const grpc::Status status = stream.End();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(DetailsOf(status).reason, "DRAINING");
  waiting.join();
}

TEST_F(InferenceStreamTest, DrainingLetsAMessageEnd) {
  InferStream stream(channel_);
  const v1::ComputeAttentionRequest own = Sized(8000, 4000);
  ASSERT_TRUE(stream.Write(Request("a", own)));
  // The message has come once it is worked on: its memory is charged.
  ASSERT_TRUE(WaitUntil([&] {
    return server_.server().metrics().Text().find(
               "attention_memory_bytes{kind=\"scratch\"} 0\n") ==
           std::string::npos;
  }));
  server_.server().Shutdown(absl::InfiniteFuture());
  std::thread waiting([&] { server_.server().Wait(); });
  ExpectAnswer(stream.Read(), "a", own);
  EXPECT_EQ(stream.End().error_code(), grpc::StatusCode::UNAVAILABLE);
  waiting.join();
}

class InferenceStreamIdleTest : public InferenceStreamTest {
 protected:
  static server::Options ShortDeadline() {
    server::Options options = TestServer::DefaultOptions();
    options.default_deadline = absl::Seconds(1);
    return options;
  }
  InferenceStreamIdleTest() : InferenceStreamTest(ShortDeadline()) {}
};

TEST_F(InferenceStreamIdleTest, EachMessageHasTheDefaultDeadline) {
  InferStream stream(channel_);
  const absl::Time start = absl::Now();
  while (absl::Now() - start < absl::Seconds(1.5)) {
    ExpectAnswer(stream.Send(Small("a")), "a", SmallRequest());
    absl::SleepFor(absl::Milliseconds(100));
  }
  const grpc::Status status = stream.End();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_EQ(DetailsOf(status).reason, "IDLE_TOO_LONG");
}

class InferenceStreamLimitsTest : public InferenceStreamTest {
 protected:
  static server::Options SmallLimits() {
    server::Options options = TestServer::DefaultOptions();
    options.max_request_bytes = int64_t{4} << 20;
    options.max_response_bytes = int64_t{1} << 20;
    options.max_inflight_bytes = int64_t{16} << 20;
    return options;
  }
  InferenceStreamLimitsTest() : InferenceStreamTest(SmallLimits()) {}
};

TEST_F(InferenceStreamLimitsTest, AnswersThatAreTooLargeFailAlone) {
  InferStream stream(channel_);
  ModelInferRequest request = Request("a", Sized(1000, 1000));
  request.add_outputs()->set_name("scores");
  ExpectFailed(stream.Send(request), "a", "RESOURCE_EXHAUSTED: the answer");
  request.clear_outputs();
  ExpectAnswer(stream.Send(request), "a", Sized(1000, 1000));
}

TEST_F(InferenceStreamLimitsTest, MessagesThatAreTooLargeEndTheStream) {
  InferStream stream(channel_);
  ModelInferRequest request = Small("a");
  request.set_raw_input_contents(0, std::string(5 << 20, 0));
  EXPECT_FALSE(stream.Send(request));
  const grpc::Status status = stream.End();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(DetailsOf(status).reason, "REQUEST_TOO_LARGE");
}

TEST_F(InferenceStreamTest, BetweenMessagesNothingIsCharged) {
  InferStream stream(channel_);
  const auto charged = [&](const char* kind) {
    return server_.server().metrics().Text().find(absl::StrCat(
               "attention_memory_bytes{kind=\"", kind, "\"} 0\n")) ==
           std::string::npos;
  };
  ModelInferRequest fails = Request("b", Sized(100, 20000));
  (*fails.mutable_parameters())["casual"].set_int64_param(1);
  for (const ModelInferRequest& request :
       {Request("a", Sized(100, 20000)), fails}) {
    ASSERT_TRUE(stream.Send(request));
    EXPECT_TRUE(WaitUntil([&] {
      return !charged("reading") && !charged("tensors") &&
             !charged("answers") && !charged("scratch");
    }));
    EXPECT_TRUE(charged("headers"));
  }
}

}  // namespace
}  // namespace attention::testing
