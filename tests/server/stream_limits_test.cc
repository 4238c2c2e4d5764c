// Who bounds a stream: what it may hold, how long it may take, and what is left
// of it when it ends.
#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>
#include <latch>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "attention/v1/attention.grpc.pb.h"
#include "tests/support/http_client.h"
#include "tests/support/long_call.h"
#include "tests/support/messages.h"
#include "tests/support/raw_call.h"
#include "tests/support/stream_client.h"
#include "tests/support/test_server.h"

namespace attention::testing {
namespace {

using std::chrono::milliseconds;

constexpr int64_t kMiB = int64_t{1} << 20;
constexpr char kComputeAttention[] =
    "/attention.v1.AttentionService/ComputeAttention";

// Tensors of a header, without elements.
v1::Tensor Declared(const std::vector<int64_t>& shape) {
  v1::Tensor tensor;
  tensor.set_data_type(v1::DATA_TYPE_FLOAT32);
  tensor.mutable_shape()->Add(shape.begin(), shape.end());
  return tensor;
}

// Rows of many heads over so many keys that a page set of 8 MiB takes seconds
// to compute on, while little else is held.
constexpr int64_t kHeavyKeys = int64_t{1} << 20;
constexpr int64_t kHeavyChunk = 15000;  // about 1 MB

std::string HeavyHeader() {
  v1::StreamAttentionRequest message;
  v1::ComputeAttentionRequest& header = *message.mutable_header();
  *header.mutable_query() = Declared({1, 32, 4096, 16});
  header.mutable_query()->mutable_data()->resize(32 * 4096 * 16 * 4);
  *header.mutable_key() = Declared({1, 1, kHeavyKeys, 16});
  *header.mutable_value() = Declared({1, 1, kHeavyKeys, 1});
  return message.SerializeAsString();
}

std::string HeavyChunk(int64_t tokens = kHeavyChunk) {
  v1::StreamAttentionRequest message;
  v1::KeyValueChunk& chunk = *message.mutable_chunk();
  *chunk.mutable_key() = Declared({1, 1, tokens, 16});
  chunk.mutable_key()->mutable_data()->resize(tokens * 16 * 4);
  *chunk.mutable_value() = Declared({1, 1, tokens, 1});
  chunk.mutable_value()->mutable_data()->resize(tokens * 4);
  return message.SerializeAsString();
}

// Holds all threads of an executor while it lives.
class BlockedExecutor {
 public:
  BlockedExecutor(Executor& executor, int64_t threads)
      : latches_(std::make_shared<Latches>(threads)) {
    executor.Submit(new Job(threads, latches_), {});
    latches_->begun.wait();
  }
  ~BlockedExecutor() { latches_->end.count_down(); }

 private:
  struct Latches {
    explicit Latches(int64_t threads) : begun(threads) {}
    std::latch begun, end{1};
  };
  // A task for each thread, which it does not leave.
  class Job final : public Executor::Job {
   public:
    Job(int64_t threads, std::shared_ptr<Latches> latches)
        : tasks_(threads), latches_(std::move(latches)) {}
    int64_t NextStage() override { return std::exchange(tasks_, 0); }
    bool RunTask(int64_t /*task*/, const Turn& /*turn*/) override {
      latches_->begun.count_down();
      latches_->end.wait();
      return true;
    }
    void Done(JobEnd /*end*/) override { delete this; }

   private:
    int64_t tasks_;
    const std::shared_ptr<Latches> latches_;
  };

  const std::shared_ptr<Latches> latches_;
};

server::Options Options() {
  server::Options options = TestServer::DefaultOptions();
  options.http_listen = "127.0.0.1:0";
  options.http_timeout = absl::Hours(1);
  options.max_request_bytes = options.max_response_bytes = 64 * kMiB;
  options.max_inflight_bytes = 512 * kMiB;
  options.default_deadline = options.max_queue = absl::Hours(24);
  return options;
}

class StreamLimitsTest : public ::testing::Test {
 protected:
  TestServer& Start(const server::Options& options) {
    server_.emplace(options);
    channel_ = server_->Channel(Transport::kLoopback);
    return *server_;
  }
  ~StreamLimitsTest() override { channel_.reset(); }

  // The sum of all metrics whose lines begin so, but for what is pooled.
  int64_t Metric(absl::string_view prefix) {
    return static_cast<int64_t>(Sum(prefix));
  }
  double Sum(absl::string_view prefix) {
    HttpClient client(server_->server().http_address());
    double sum = 0;
    for (absl::string_view line :
         absl::StrSplit(client.Get("/metrics").body, '\n')) {
      if (!absl::StartsWith(line, prefix) ||
          absl::StrContains(line, "\"pooled\"")) {
        continue;
      }
      double value = 0;
      EXPECT_TRUE(absl::SimpleAtod(line.substr(line.rfind(' ') + 1), &value));
      sum += value;
    }
    return sum;
  }
  absl::Duration InPhase(absl::string_view phase) {
    return absl::Seconds(Sum(absl::StrCat(
        "attention_call_phase_duration_seconds_sum{phase=\"", phase, "\"}")));
  }
  // What all calls are charged for.
  int64_t Held() { return Metric("attention_memory_bytes{"); }
  bool IsIdle() {
    return WaitUntil(
        [&] { return server_->server().running_calls() == 0 && Held() == 0; });
  }
  std::unique_ptr<RawStream> Open(
      std::chrono::system_clock::time_point deadline =
          std::chrono::system_clock::time_point::max()) {
    return std::make_unique<RawStream>(channel_, kStreamAttention, deadline);
  }

  std::optional<TestServer> server_;
  std::shared_ptr<grpc::Channel> channel_;
};

// What its client sends waits in the client while the kernel is busy; and as it
// is not the client who is slow, that takes as long as it takes.
TEST_F(StreamLimitsTest, AClientThatSendsFasterThanIsComputedWaits) {
  server::Options options = Options();
  options.stall_grace = absl::Milliseconds(100);
  TestServer& server = Start(options);
  const auto stream = Open();
  ASSERT_TRUE(stream->Write(HeavyHeader()));
  // Small enough to be copied without the executor; the first is read once the
  // header is accepted.
  constexpr int64_t kTokens = 900;
  const std::string chunk = HeavyChunk(kTokens);
  ASSERT_TRUE(stream->Write(chunk));
  ASSERT_TRUE(WaitUntil(
      [&] { return Metric("attention_memory_bytes{kind=\"scratch\"}") > 0; }));
  const BlockedExecutor blocked(server.server().executor(), options.threads);
  // Two page sets of 8 MiB, that is of whole blocks of 68 bytes a token.
  const int64_t room = 2 * (8 * kMiB / (68 * 256) * 256);
  int64_t written = 1;
  for (; (written + 1) * kTokens <= room; ++written) {
    ASSERT_TRUE(stream->Write(chunk)) << written;
  }
  // A chunk that has no room, and what the connection holds: what the client
  // has begun to write, and gRPC's and the system's buffers. More can never be
  // written, whenever one looks.
  const int64_t most = written + 1 + 8 * kMiB / (kTokens * 68);
  bool under_way = false;
  // As long as another client's silence is borne.
  RawStream silent(server.Channel(Transport::kLoopback), kStreamAttention);
  const auto is_over = [&] { return server.server().running_calls() < 2; };
  ASSERT_TRUE(WaitUntil([&] { return !is_over(); }));
  ASSERT_TRUE(WaitUntil([&] {
    if (!under_way) stream->StartWrite(chunk);
    under_way = !stream->WrittenWithin(milliseconds(0));
    written += !under_way;
    return is_over();
  }));
  EXPECT_EQ(DetailsOf(silent.Finish()).reason, "SLOW_UPLOAD");
  EXPECT_LE(written, most);
  EXPECT_EQ(server.server().running_calls(), 1);
  // Page sets and messages, the query, the output, and the state of its rows:
  // a partial of 18 numbers for each node of the tree of blocks.
  EXPECT_LE(Held(), (2 * 8 + 3 * 8) * kMiB + 8 * kMiB + 8 * kMiB +
                        32 * 4096 * 18 * 4 * 15 + 32 * kMiB);
  stream->Cancel();
}

// Nothing of a stream is read, header included, before there is room for it.
TEST_F(StreamLimitsTest, AStreamThatWaitsIsNotRead) {
  server::Options options = Options();
  const auto bytes = static_cast<int64_t>(LongCall::Request().ByteSizeLong());
  options.max_request_bytes = options.max_response_bytes = bytes;
  options.max_inflight_bytes = 3 * bytes;
  Start(options);
  // Announced, so that it is charged for all of its message.
  auto first = std::make_unique<LongCall>(channel_, Announced{});
  ASSERT_TRUE(
      WaitUntil([&] { return server_->server().running_calls() == 1; }));
  RawStream second(server_->Channel(Transport::kLoopback), kStreamAttention,
                   std::chrono::system_clock::time_point::max(), bytes);
  second.StartWrite(StreamOf(LongCall::Request()).Header().SerializeAsString());
  ASSERT_TRUE(
      WaitUntil([&] { return server_->server().running_calls() == 2; }));
  EXPECT_FALSE(second.WrittenWithin(milliseconds(300)));
  first.reset();
  EXPECT_TRUE(second.WrittenWithin(std::chrono::minutes(1)));
}

// Nothing is asked for once the header is accepted, whatever the chunks look
// like.
TEST_F(StreamLimitsTest, AStreamHasAllItsMemoryFromItsHeaderOn) {
  v1::ComputeAttentionRequest request;
  *request.mutable_query() = RandomTensor(v1::DATA_TYPE_FLOAT32, {4, 64}, 1);
  *request.mutable_key() = RandomTensor(v1::DATA_TYPE_FLOAT32, {40000, 64}, 2);
  *request.mutable_value() =
      RandomTensor(v1::DATA_TYPE_FLOAT32, {40000, 64}, 3);
  const StreamOf streamed(request);
  const std::string header = streamed.Header().SerializeAsString();
  v1::StreamAttentionRequest message = streamed.Chunk(0, 15000);
  for (v1::Tensor* tensor : {message.mutable_chunk()->mutable_key(),
                             message.mutable_chunk()->mutable_value()}) {
    const auto* const data =
        reinterpret_cast<const float*>(tensor->data().data());
    tensor->mutable_float_values()->Add(
        data, data + tensor->data().size() / sizeof(float));
    tensor->clear_data();
  }
  const std::string chunk = message.SerializeAsString();
  server::Options options = Options();
  options.max_request_bytes = options.max_response_bytes = 1 << 20;
  Start(options);
  // What it is charged for, once it is accepted and its first chunk is read.
  auto stream = Open();
  ASSERT_TRUE(stream->Write(header));
  ASSERT_TRUE(stream->Write(chunk));
  ASSERT_TRUE(WaitUntil(
      [&] { return Metric("attention_memory_bytes{kind=\"scratch\"}") > 0; }));
  const int64_t held = Held();
  stream->Cancel();
  stream.reset();
  ASSERT_TRUE(IsIdle());
  channel_.reset();
  options.max_inflight_bytes = held;
  Start(options);
  stream = Open();
  ASSERT_TRUE(stream->Write(header));
  for (int i = 0; i < 2; ++i) ASSERT_TRUE(stream->Write(chunk));
  stream->Write(streamed.Chunk(30000, 40000).SerializeAsString(), true);
  while (stream->Read()) {
  }
  const grpc::Status status = stream->Finish();
  EXPECT_TRUE(status.ok()) << status.error_message();
}

// No chunk is read before the header is accepted, though this one has to be
// copied before all of what is wrong with it is found.
TEST_F(StreamLimitsTest, ChunksOfARefusedHeaderAreNotRead) {
  Start(Options());
  const auto stream = Open();
  v1::StreamAttentionRequest message;
  v1::ComputeAttentionRequest& header = *message.mutable_header();
  *header.mutable_query() = Declared({1 << 17, 64});
  header.mutable_query()->mutable_data()->resize(32 * kMiB);
  *header.mutable_key() = Declared({1 << 18, 65});
  *header.mutable_value() = Declared({1 << 18, 64});
  const std::string bytes = message.SerializeAsString();
  ASSERT_TRUE(stream->Write(bytes));
  stream->StartWrite(HeavyChunk());
  // Once it has failed.
  stream->WrittenWithin(std::chrono::minutes(1));
  EXPECT_EQ(DetailsOf(stream->Finish()).field, "header.key.shape");
  EXPECT_TRUE(IsIdle());
  EXPECT_EQ(Metric("attention_request_bytes_total "), bytes.size());
}

// Silent before the header, in the middle, and before the end of the stream.
TEST_F(StreamLimitsTest, ClientsThatStandStillLoseTheirStream) {
  server::Options options = Options();
  options.stall_grace = absl::Milliseconds(200);
  Start(options);
  const StreamOf streamed(SmallRequest());
  const auto messages = MessagesOf(streamed, [](int64_t) { return 3; });
  for (size_t sent = 0; sent <= messages.size(); ++sent) {
    const auto stream = Open();
    for (size_t i = 0; i < sent; ++i) {
      ASSERT_TRUE(stream->Write(messages[i].SerializeAsString()));
    }
    while (stream->Read()) {
    }
    const grpc::Status status = stream->Finish();
    EXPECT_EQ(status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED) << sent;
    EXPECT_EQ(DetailsOf(status).reason, "SLOW_UPLOAD") << sent;
  }
  EXPECT_TRUE(IsIdle());
}

// Also where it was the server that ended it, while it waited for the client.
TEST_F(StreamLimitsTest, ClientsThatStandStillAreToldOfInFull) {
  server::Options options = Options();
  options.stall_grace = absl::Seconds(1);
  const StreamOf streamed(SmallRequest());
  const std::string header = streamed.Header().SerializeAsString();
  const std::string chunk = streamed.Chunk(0, 3).SerializeAsString();
  for (const bool streams : {true, false}) {
    const std::string method = streams ? kStreamAttention : kComputeAttention;
    channel_.reset();
    Start(options);
    const absl::Time start = absl::Now();
    RawStream stream(channel_, method);
    if (streams) {
      ASSERT_TRUE(stream.Write(header));
      ASSERT_TRUE(stream.Write(chunk));
    }
    while (stream.Read()) {
    }
    EXPECT_EQ(DetailsOf(stream.Finish()).reason, "SLOW_UPLOAD") << method;
    ASSERT_TRUE(IsIdle());
    const absl::Duration took = absl::Now() - start;
    EXPECT_EQ(Metric("attention_request_bytes_total "),
              streams ? header.size() + chunk.size() : 0);
    EXPECT_GE(InPhase("receive"), options.stall_grace) << method;
    // The one came before the other.
    EXPECT_LE(InPhase("wait") + InPhase("receive"), took) << method;
    EXPECT_EQ(InPhase("decode") > absl::ZeroDuration(), streams);
  }
}

// Two keys, and so many rows of 256 bytes.
v1::ComputeAttentionRequest ManyRows(int64_t rows) {
  v1::ComputeAttentionRequest request;
  *request.mutable_query() = RandomTensor(v1::DATA_TYPE_FLOAT32, {rows, 64}, 1);
  *request.mutable_key() = RandomTensor(v1::DATA_TYPE_FLOAT32, {2, 64}, 2);
  *request.mutable_value() = RandomTensor(v1::DATA_TYPE_FLOAT32, {2, 64}, 3);
  return request;
}

TEST_F(StreamLimitsTest, ClientsThatDoNotReadLoseTheirStream) {
  server::Options options = Options();
  options.stall_grace = absl::Milliseconds(200);
  options.min_answer_rate = int64_t{1} << 30;
  Start(options);
  // 16 MiB of answer for as many bytes.
  const StreamOf streamed(ManyRows(1 << 16));
  const auto stream = Open();
  ASSERT_TRUE(stream->Write(streamed.Header().SerializeAsString()));
  ASSERT_TRUE(stream->Write(streamed.Chunk(0, 2).SerializeAsString(), true));
  EXPECT_TRUE(IsIdle());
  while (stream->Read()) {
  }
  EXPECT_FALSE(stream->Finish().ok());
}

// An error while nobody reads what was answered before.
TEST_F(StreamLimitsTest, ErrorsNeedNobodyWhoReads) {
  server::Options options = Options();
  options.stall_grace = absl::Milliseconds(200);
  options.min_answer_rate = int64_t{1} << 30;
  Start(options);
  const StreamOf streamed(ManyRows(1 << 16));
  const auto stream = Open();
  ASSERT_TRUE(stream->Write(streamed.Header().SerializeAsString()));
  ASSERT_TRUE(stream->Write(streamed.Chunk(0, 2).SerializeAsString()));
  stream->Write(streamed.Header().SerializeAsString());
  EXPECT_TRUE(IsIdle());
}

TEST_F(StreamLimitsTest, DeadlinesEndStreams) {
  Start(Options());
  const auto stream =
      Open(std::chrono::system_clock::now() + milliseconds(300));
  const StreamOf streamed(SmallRequest());
  ASSERT_TRUE(stream->Write(streamed.Header().SerializeAsString()));
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_TRUE(IsIdle());
}

TEST_F(StreamLimitsTest, TheDefaultDeadlineEndsStreams) {
  server::Options options = Options();
  options.default_deadline = absl::Seconds(1);
  options.stall_grace = absl::Hours(1);
  Start(options);
  const auto stream = Open();
  const StreamOf streamed(SmallRequest());
  ASSERT_TRUE(stream->Write(streamed.Header().SerializeAsString()));
  const grpc::Status status = stream->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_EQ(DetailsOf(status).reason, "DEADLINE_EXCEEDED");
  EXPECT_TRUE(IsIdle());
}

// Though rows are on their way: whoever takes them learns how it ended.
TEST_F(StreamLimitsTest, StatusesFollowTheRowsThatAreOnTheirWay) {
  server::Options options = Options();
  options.default_deadline = absl::Seconds(2);
  options.stall_grace = absl::Hours(1);
  Start(options);
  // 4 MiB of answer.
  const StreamOf streamed(ManyRows(1 << 14));
  const auto stream = Open();
  ASSERT_TRUE(stream->Write(streamed.Header().SerializeAsString()));
  ASSERT_TRUE(stream->Write(streamed.Chunk(0, 2).SerializeAsString()));
  ASSERT_TRUE(WaitUntil([&] {
    return Metric("attention_calls_total{code=\"DEADLINE_EXCEEDED\",") > 0;
  }));
  while (stream->Read()) {
  }
  const grpc::Status status = stream->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_EQ(DetailsOf(status).reason, "DEADLINE_EXCEEDED");
  EXPECT_TRUE(IsIdle());
}

TEST_F(StreamLimitsTest, WhatWouldMissItsDeadlineIsRefusedWithItsHeader) {
  server::Options options = Options();
  options.default_deadline = absl::Seconds(1);
  Start(options);
  const auto stream = Open();
  ASSERT_TRUE(stream->Write(HeavyHeader()));
  const grpc::Status status = stream->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(DetailsOf(status).reason, "DEADLINE_TOO_CLOSE");
}

// However early, late or often.
TEST_F(StreamLimitsTest, CancelledStreamsLeaveNothing) {
  Start(Options());
  v1::ComputeAttentionRequest request = LongRequest(20000);
  request.mutable_options()->set_causal(v1::CAUSAL_TOP_LEFT);
  const StreamOf streamed(request);
  const auto messages = MessagesOf(streamed, [](int64_t) { return 3000; });
  std::mt19937 random(1);
  for (int i = 0; i < 150; ++i) {
    const auto stream = Open();
    const size_t sent = random() % (messages.size() + 2);
    for (size_t m = 0; m < sent && m < messages.size(); ++m) {
      stream->Write(
          messages[m].SerializeAsString(),
          /*last=*/sent == messages.size() + 1 && m + 1 == messages.size());
    }
    // Some time passes, or none.
    for (size_t n = random() % 2 * (random() % 1000); n > 0; --n) {
      static_cast<void>(server_->server().running_calls());
    }
    stream->Cancel();
  }
  EXPECT_TRUE(IsIdle());
  EXPECT_TRUE(SendStream(channel_, messages).status.ok());
}

// While a job runs that would take minutes: 2^20 rows over 2^18 keys, an eighth
// of all.
TEST_F(StreamLimitsTest, CancellingEndsTheWork) {
  server::Options options = Options();
  options.max_work = int64_t{1} << 47;
  options.max_inflight_bytes = 4096 * kMiB;
  Start(options);
  const auto stream = Open();
  constexpr int64_t kRows = int64_t{1} << 20, kKeys = int64_t{1} << 21;
  v1::StreamAttentionRequest message;
  v1::ComputeAttentionRequest& header = *message.mutable_header();
  *header.mutable_query() = Declared({kRows, 1});
  header.mutable_query()->mutable_data()->resize(kRows * 4);
  *header.mutable_key() = *header.mutable_value() = Declared({kKeys, 1});
  ASSERT_TRUE(stream->Write(message.SerializeAsString()));
  constexpr int64_t kChunk = kKeys / 8;
  v1::KeyValueChunk& chunk = *message.mutable_chunk();
  *chunk.mutable_key() = Declared({kChunk, 1});
  chunk.mutable_key()->mutable_data()->resize(kChunk * 4);
  *chunk.mutable_value() = chunk.key();
  for (int i = 0; i < 2; ++i) {
    ASSERT_TRUE(stream->Write(message.SerializeAsString()))
        << stream->Finish().error_message();
  }
  // Once the first set is full.
  ASSERT_TRUE(
      WaitUntil([&] { return Metric("attention_queued_work_seconds ") > 0; }));
  stream->Cancel();
  EXPECT_TRUE(IsIdle());
}

// A vanished connection is a cancellation.
TEST_F(StreamLimitsTest, LostConnectionsLeaveNothing) {
  Start(Options());
  auto lost = server_->Channel(Transport::kLoopback);
  auto stream = std::make_unique<RawStream>(lost, kStreamAttention);
  ASSERT_TRUE(stream->Write(HeavyHeader()));
  ASSERT_TRUE(stream->Write(HeavyChunk()));
  stream.reset();
  lost.reset();
  EXPECT_TRUE(IsIdle());
}

TEST_F(StreamLimitsTest, StreamsFinishWhileTheServerDrains) {
  Start(Options());
  const StreamOf streamed(LongRequest(3000));
  const auto messages = MessagesOf(streamed, [](int64_t) { return 1000; });
  const auto stream = Open();
  ASSERT_TRUE(stream->Write(messages[0].SerializeAsString()));
  ASSERT_TRUE(
      WaitUntil([&] { return server_->server().running_calls() == 1; }));
  server_->server().Shutdown(absl::InfiniteFuture());
  std::thread wait([&] { server_->server().Wait(); });
  for (size_t i = 1; i < messages.size(); ++i) {
    EXPECT_TRUE(stream->Write(messages[i].SerializeAsString(),
                              i + 1 == messages.size()));
  }
  while (stream->Read()) {
  }
  EXPECT_TRUE(stream->Finish().ok());
  wait.join();
}

TEST_F(StreamLimitsTest, TheEndOfDrainingEndsStreams) {
  Start(Options());
  const auto stream = Open();
  ASSERT_TRUE(stream->Write(HeavyHeader()));
  ASSERT_TRUE(stream->Write(HeavyChunk()));
  server_->server().Shutdown(absl::Now() + absl::Milliseconds(10));
  server_->server().Wait();
  EXPECT_EQ(server_->server().running_calls(), 0);
  EXPECT_FALSE(stream->Finish().ok());
}

// What its client has still to send is no work that others wait for.
TEST_F(StreamLimitsTest, StreamsThatWaitForTheirClientsHoldUpNobody) {
  server::Options options = Options();
  options.max_inflight_bytes = 1024 * kMiB;
  options.max_queue = absl::Milliseconds(100);
  Start(options);
  std::vector<std::unique_ptr<RawStream>> streams;
  for (int i = 0; i < 3; ++i) {
    streams.push_back(Open());
    ASSERT_TRUE(streams.back()->Write(HeavyHeader()));
    // It is read once the header is accepted.
    ASSERT_TRUE(streams.back()->Write(HeavyChunk())) << i;
  }
  LongCall unary(channel_, LongRequest(10000));
  EXPECT_TRUE(unary.Wait().ok()) << unary.Wait().error_message();
  EXPECT_TRUE(
      WaitUntil([&] { return server_->server().running_calls() == 3; }));
}

}  // namespace
}  // namespace attention::testing
