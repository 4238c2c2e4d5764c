// Step: batches of appends and attends over sessions, each item with its own
// status and the bits of ComputeAttention.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
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
#include "attention/v1/session.grpc.pb.h"
#include "grpcpp/client_context.h"
#include "tests/support/messages.h"
#include "tests/support/raw_call.h"
#include "tests/support/session_fixture.h"
#include "tests/support/test_server.h"

namespace attention::testing {
namespace {

using ::testing::HasSubstr;

// An open stream.
class StepStream {
 public:
  explicit StepStream(v1::SessionService::Stub& stub)
      : stream_(stub.Step(&context_)) {}
  ~StepStream() { context_.TryCancel(); }

  // Nothing if the stream has ended.
  std::optional<v1::StepResponse> Send(const v1::StepRequest& request) {
    return Write(request) ? Read() : std::nullopt;
  }
  std::optional<v1::StepResponse> Read() {
    v1::StepResponse response;
    return stream_->Read(&response) ? std::optional(response) : std::nullopt;
  }
  bool Write(const v1::StepRequest& request) { return stream_->Write(request); }
  // Blocks until the server ends it.
  grpc::Status End() {
    v1::StepResponse response;
    EXPECT_FALSE(stream_->Read(&response)) << response.ShortDebugString();
    return stream_->Finish();
  }
  grpc::Status Close() {
    stream_->WritesDone();
    return End();
  }
  void Cancel() { context_.TryCancel(); }

 private:
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::StepRequest, v1::StepResponse>>
      stream_;
};

grpc::Status StatusOf(const v1::StepResult& result) {
  return grpc::Status(static_cast<grpc::StatusCode>(result.code()),
                      result.message(), result.status_details());
}

class StepTest : public SessionFixture {
 protected:
  explicit StepTest(
      const server::Options& options = TestServer::DefaultOptions())
      : SessionFixture(options) {}

  v1::StepItem Appending(const std::string& id, int64_t count,
                         int64_t layer = 0) {
    const v1::AppendKeyValuesRequest append = AppendRequest(id, count, layer);
    v1::StepItem item;
    item.set_id(id);
    item.set_layer(layer);
    *item.mutable_key() = append.key();
    *item.mutable_value() = append.value();
    return item;
  }
  void AddQuery(v1::StepItem& item, int64_t queries = 1) {
    *item.mutable_query() = AttendRequest(item.id(), queries).query();
  }
  static v1::StepRequest Batch(const std::vector<v1::StepItem>& items) {
    v1::StepRequest request;
    for (const v1::StepItem& item : items) *request.add_items() = item;
    return request;
  }
  // The result of a batch of one.
  v1::StepResult Do(StepStream& stream, const v1::StepItem& item) {
    const std::optional<v1::StepResponse> response = stream.Send(Batch({item}));
    if (!response || response->results_size() != 1) {
      ADD_FAILURE() << "no answer";
      return {};
    }
    return response->results(0);
  }
  // `result` has the bits of one request over all that was appended.
  void ExpectAnswer(const v1::StepItem& item, const v1::StepResult& result) {
    EXPECT_EQ(result.code(), 0) << result.message();
    v1::AttendRequest request;
    *request.mutable_query() = item.query();
    if (item.has_mask()) *request.mutable_mask() = item.mask();
    if (item.has_indices()) *request.mutable_indices() = item.indices();
    if (item.has_sinks()) *request.mutable_sinks() = item.sinks();
    *request.mutable_options() = item.options();
    request.set_not_causal(item.not_causal());
    const v1::ComputeAttentionResponse wanted = Wanted(request);
    EXPECT_TRUE(result.output().data() == wanted.output().data());
    EXPECT_TRUE(result.log_sum_exp().data() == wanted.log_sum_exp().data());
    EXPECT_TRUE(result.scores().data() == wanted.scores().data());
    EXPECT_EQ(result.output().shape_size(), 3);
  }
  void ExpectFailed(const v1::StepResult& result, grpc::StatusCode code,
                    const std::string& reason, const std::string& field = "") {
    EXPECT_EQ(result.code(), code) << result.message();
    const Details details = DetailsOf(StatusOf(result));
    EXPECT_EQ(details.reason, reason);
    EXPECT_EQ(details.field, field);
    EXPECT_FALSE(result.has_output());
    EXPECT_EQ(result.length(), 0);
  }
};

TEST_F(StepTest, AppendsAndAttends) {
  Create("a");
  StepStream stream(*stub_);
  int64_t length = 0;
  for (int64_t count : {1, 300, 1, 1, 20}) {
    v1::StepItem item = Appending("a", count);
    item.set_expected_length(length);
    AddQuery(item, count == 20 ? 20 : 1);
    item.mutable_options()->set_return_log_sum_exp(true);
    const v1::StepResult result = Do(stream, item);
    ExpectAnswer(item, result);
    EXPECT_EQ(result.length(), length += count);
  }
  v1::StepItem only_attends;
  only_attends.set_id("a");
  AddQuery(only_attends, 3);
  only_attends.set_not_causal(true);
  only_attends.set_expected_length(length);
  only_attends.mutable_options()->set_return_scores(v1::SCORES_WEIGHTS);
  *only_attends.mutable_mask() =
      RandomTensor(v1::DATA_TYPE_BOOL, {3, length}, 9);
  ExpectAnswer(only_attends, Do(stream, only_attends));
  *only_attends.mutable_indices() =
      RandomTensor(v1::DATA_TYPE_INT32, {2 * kHeads, 3, 2}, 10);
  *only_attends.mutable_sinks() =
      RandomTensor(v1::DATA_TYPE_FLOAT32, {2 * kHeads, 3}, 11);
  ExpectAnswer(only_attends, Do(stream, only_attends));
  const v1::StepResult only_appends = Do(stream, Appending("a", 2));
  EXPECT_EQ(only_appends.code(), 0);
  EXPECT_EQ(only_appends.length(), length + 2);
  EXPECT_FALSE(only_appends.has_output());
  EXPECT_TRUE(stream.Close().ok());
}

TEST_F(StepTest, RowsOfNoQueryAreRefused) {
  Create("a");
  StepStream stream(*stub_);
  v1::StepItem item = Appending("a", 1);
  *item.mutable_indices() = RandomTensor(v1::DATA_TYPE_INT32, {1, 1}, 1);
  ExpectFailed(Do(stream, item), grpc::StatusCode::INVALID_ARGUMENT,
               "INVALID_FIELD", "indices");
  item.clear_indices();
  *item.mutable_sinks() =
      RandomTensor(v1::DATA_TYPE_FLOAT32, {2 * kHeads, 1}, 1);
  ExpectFailed(Do(stream, item), grpc::StatusCode::INVALID_ARGUMENT,
               "INVALID_FIELD", "sinks");
}

TEST_F(StepTest, LargeMessagesGoThroughTheExecutor) {
  Create("a");
  StepStream stream(*stub_);
  v1::StepItem item = Appending("a", 20000);
  AddQuery(item, 40);
  ExpectAnswer(item, Do(stream, item));
  v1::StepItem small = Appending("a", 1);
  AddQuery(small);
  ExpectAnswer(small, Do(stream, small));
}

TEST_F(StepTest, ManySessionsInOneMessage) {
  constexpr int kSessions = 40;
  std::vector<v1::StepItem> items;
  // All have the same tokens, so that one answer tells what each should be.
  const v1::StepItem first = Appending("s0", 700);
  for (int i = 0; i < kSessions; ++i) {
    const std::string id = absl::StrCat("s", i);
    Create(id);
    items.push_back(first);
    items.back().set_id(id);
    AddQuery(items.back(), 1 + i % 5);
    if (i % 3 == 0) items.back().mutable_options()->set_softcap(2);
  }
  StepStream stream(*stub_);
  const auto response = stream.Send(Batch(items));
  ASSERT_TRUE(response);
  ASSERT_EQ(response->results_size(), kSessions);
  for (int i = 0; i < kSessions; ++i) {
    ExpectAnswer(items[i], response->results(i));
  }
  EXPECT_TRUE(response->has_timing());
}

TEST_F(StepTest, OneFailsAlone) {
  Create("a");
  Create("b", 2);
  const v1::StepItem good = [&] {
    v1::StepItem item = Appending("a", 5);
    AddQuery(item);
    return item;
  }();
  const auto changed = [&](const std::string& id, int64_t layer,
                           const auto& change) {
    v1::StepItem item = good;
    item.set_id(id);
    item.set_layer(layer);
    change(item);
    return item;
  };
  const std::vector<v1::StepItem> items = {
      changed("b", 0,
              [](auto& item) { item.mutable_query()->set_shape(0, 3); }),
      changed("nobody", 0, [](auto&) {}),
      good,
      changed("b", 7, [](auto&) {}),
      changed("b", 1, [](auto& item) { item.set_expected_length(1); }),
  };
  StepStream stream(*stub_);
  const auto response = stream.Send(Batch(items));
  ASSERT_TRUE(response);
  ASSERT_EQ(response->results_size(), 5);
  ExpectFailed(response->results(0), grpc::StatusCode::INVALID_ARGUMENT,
               "INVALID_FIELD", "query.data");
  ExpectFailed(response->results(1), grpc::StatusCode::NOT_FOUND,
               "SESSION_UNKNOWN");
  ExpectAnswer(good, response->results(2));
  ExpectFailed(response->results(3), grpc::StatusCode::OUT_OF_RANGE,
               "LAYER_UNKNOWN");
  ExpectFailed(response->results(4), grpc::StatusCode::ABORTED,
               "LENGTH_CONFLICT");
  EXPECT_EQ(Get("a").lengths(0), 5);
  EXPECT_EQ(Get("b").lengths(0), 0);
  EXPECT_EQ(Get("b").lengths(1), 0);
}

// What is wrong with the queries leaves the tokens out too.
TEST_F(StepTest, AppendsAndAttendsOrNeither) {
  Create("a");
  StepStream stream(*stub_);
  const int64_t before = server_.server().sessions().totals().bytes;
  v1::StepItem item = Appending("a", 3);
  AddQuery(item, 2);
  const auto with = [&](const auto& change) {
    v1::StepItem other = item;
    change(other);
    return Do(stream, other);
  };
  ExpectFailed(
      with([](auto& i) {
        *i.mutable_mask() = RandomTensor(v1::DATA_TYPE_BOOL, {2, 4}, 1);
      }),
      grpc::StatusCode::INVALID_ARGUMENT, "INVALID_FIELD", "mask.shape");
  ExpectFailed(
      with([](auto& i) {
        *i.mutable_mask() = RandomTensor(v1::DATA_TYPE_BOOL, {2, 3}, 1);
        i.mutable_mask()->mutable_data()->back() = 2;
      }),
      grpc::StatusCode::INVALID_ARGUMENT, "INVALID_FIELD", "mask.data");
  ExpectFailed(
      with([](auto& i) { i.mutable_options()->set_return_present(true); }),
      grpc::StatusCode::INVALID_ARGUMENT, "INVALID_FIELD",
      "options.return_present");
  ExpectFailed(with([](auto& i) { i.mutable_options()->set_softcap(-1); }),
               grpc::StatusCode::INVALID_ARGUMENT, "INVALID_FIELD",
               "options.softcap");
  EXPECT_EQ(Get("a").lengths(0), 0);
  EXPECT_EQ(server_.server().sessions().totals().bytes, before);
  ExpectAnswer(item, Do(stream, item));
}

TEST_F(StepTest, TellsWhatDoesNotBelongTogether) {
  Create("a");
  StepStream stream(*stub_);
  const v1::StepItem append = Appending("a", 1);
  v1::StepItem attend;
  attend.set_id("a");
  AddQuery(attend);
  const auto expect = [&](v1::StepItem item, const std::string& field) {
    ExpectFailed(Do(stream, item), grpc::StatusCode::INVALID_ARGUMENT,
                 "INVALID_FIELD", field);
  };
  v1::StepItem item;
  item.set_id("a");
  expect(item, "key");
  item = append;
  item.set_not_causal(true);
  expect(item, "not_causal");
  item = append;
  item.mutable_options()->set_softcap(1);
  expect(item, "options");
  item = append;
  *item.mutable_mask() = RandomTensor(v1::DATA_TYPE_BOOL, {1, 1}, 1);
  expect(item, "mask");
  item = attend;
  item.set_request_id("x");
  expect(item, "request_id");
  item = attend;
  *item.mutable_value() = append.value();
  expect(item, "value");
  item = append;
  item.clear_value();
  expect(item, "value");
  EXPECT_EQ(Get("a").lengths(0), 0);
}

TEST_F(StepTest, ALayerIsChangedByOneItemAtMost) {
  Create("a", 2);
  StepStream stream(*stub_);
  v1::StepItem append = Appending("a", 2);
  AddQuery(append);
  v1::StepItem attend = append;
  attend.clear_key();
  attend.clear_value();
  v1::StepItem elsewhere = append;
  elsewhere.set_layer(1);
  for (const v1::StepItem& other : {append, attend}) {
    const auto response = stream.Send(Batch({append, elsewhere, other}));
    ASSERT_TRUE(response);
    for (int i : {0, 2}) {
      ExpectFailed(response->results(i), grpc::StatusCode::INVALID_ARGUMENT,
                   "INVALID_FIELD", "layer");
    }
    EXPECT_EQ(response->results(1).code(), 0);
  }
  EXPECT_EQ(Get("a").lengths(0), 0);
  ExpectAnswer(append, Do(stream, append));
  const auto response = stream.Send(Batch({attend, attend}));
  ASSERT_TRUE(response);
  ExpectAnswer(attend, response->results(0));
  ExpectAnswer(attend, response->results(1));
}

TEST_F(StepTest, ItemsNameTheSessionThatTheyMean) {
  const uint64_t now = Create("a").incarnation();
  StepStream stream(*stub_);
  v1::StepItem item = Appending("a", 4);
  AddQuery(item);
  v1::StepItem other = item;
  other.set_incarnation(now + 1 == 0 ? 1 : now + 1);
  const v1::StepResult failed = Do(stream, other);
  ExpectFailed(failed, grpc::StatusCode::NOT_FOUND, "SESSION_UNKNOWN");
  EXPECT_THAT(failed.message(), HasSubstr("another one, made since"));
  item.set_incarnation(now);
  ExpectAnswer(item, Do(stream, item));
}

TEST_F(StepTest, TheSameAgainIsTheSameAnswer) {
  Create("a");
  StepStream stream(*stub_);
  v1::StepItem item = Appending("a", 4);
  item.set_expected_length(0);
  item.set_request_id("one");
  AddQuery(item, 2);
  const v1::StepResult first = Do(stream, item);
  ExpectAnswer(item, first);
  // After it the layer has grown; the stream is another one.
  EXPECT_EQ(Do(stream, Appending("a", 3)).length(), 7);
  StepStream again(*stub_);
  const v1::StepResult second = Do(again, item);
  EXPECT_EQ(second.length(), 4);
  EXPECT_TRUE(second.output().data() == first.output().data());
  EXPECT_EQ(Get("a").lengths(0), 7);
  v1::StepItem other = item;
  other.mutable_value()->mutable_data()->back() ^= 1;
  ExpectFailed(Do(again, other), grpc::StatusCode::ABORTED, "LENGTH_CONFLICT");
  other = item;
  other.set_request_id("two");
  ExpectFailed(Do(again, other), grpc::StatusCode::ABORTED, "LENGTH_CONFLICT");
  EXPECT_EQ(Get("a").lengths(0), 7);
}

TEST_F(StepTest, MessagesThatAreNoneEndTheStream) {
  Create("a");
  const auto end_of = [&](const std::string& message) {
    RawStream stream(server_.Channel(Transport::kLoopback),
                     "/attention.v1.SessionService/Step");
    EXPECT_TRUE(stream.Write(message));
    EXPECT_EQ(stream.Read(), std::nullopt);
    return stream.Finish();
  };
  grpc::Status status = end_of("\x0a\x05zz");
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(DetailsOf(status).reason, "MALFORMED_MESSAGE");
  status = end_of("");
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(DetailsOf(status).field, "items");
  v1::StepRequest request;
  for (int i = 0; i < 1025; ++i) request.add_items();
  status = end_of(request.SerializeAsString());
  EXPECT_EQ(DetailsOf(status).field, "items");
  EXPECT_TRUE(WaitUntil([&] { return server_.server().running_calls() == 0; }));
}

TEST_F(StepTest, ManyItemsThatFail) {
  StepStream stream(*stub_);
  v1::StepRequest request;
  for (int i = 0; i < 1024; ++i) request.add_items();
  const auto response = stream.Send(request);
  ASSERT_TRUE(response);
  ASSERT_EQ(response->results_size(), 1024);
  ExpectFailed(response->results(1023), grpc::StatusCode::INVALID_ARGUMENT,
               "INVALID_FIELD", "key");
}

// A client that leaves while its batch is computed leaves nothing of it.
TEST_F(StepTest, ACancelledBatchIsUndone) {
  Create("a");
  v1::StepItem item;
  item.set_id("a");
  *item.mutable_key() = keys_.Add(60000, ++seed_);
  *item.mutable_value() = values_.Add(60000, ++seed_);
  *item.mutable_query() =
      RandomTensor(v1::DATA_TYPE_FLOAT32, {2, 100000, kKeySize}, 1);
  const int64_t before = server_.server().sessions().totals().bytes;
  {
    StepStream stream(*stub_);
    ASSERT_TRUE(stream.Write(Batch({item})));
    // Pages are there once the tokens are being copied; then it computes for
    // many seconds.
    ASSERT_TRUE(WaitUntil(
        [&] { return server_.server().sessions().totals().bytes > before; }));
    stream.Cancel();
  }
  EXPECT_TRUE(WaitUntil([&] { return server_.server().running_calls() == 0; }));
  EXPECT_TRUE(WaitUntil(
      [&] { return server_.server().sessions().totals().bytes == before; }));
  EXPECT_EQ(Get("a").lengths(0), 0);
  // The layer takes others.
  EXPECT_EQ(Append(AppendRequest("a", 1)).length(), 1);
  ExpectOk();
}

// It would be copied before anybody has been asked for the time.
// A retry that comes while its first try still computes.
TEST_F(StepTest, TheSameAgainWaitsForTheFirst) {
  Create("a");
  v1::StepItem item = Appending("a", 60000);
  item.set_expected_length(0);
  item.set_request_id("one");
  AddQuery(item);
  v1::StepItem longer = item;
  *longer.mutable_query() =
      RandomTensor(v1::DATA_TYPE_FLOAT32, {2, 100000, kKeySize}, 1);
  const int64_t before = server_.server().sessions().totals().bytes;
  StepStream first(*stub_);
  ASSERT_TRUE(first.Write(Batch({longer})));
  ASSERT_TRUE(WaitUntil(
      [&] { return server_.server().sessions().totals().bytes > before; }));
  StepStream second(*stub_);
  const v1::StepResult under_way = Do(second, item);
  ExpectFailed(under_way, grpc::StatusCode::UNAVAILABLE, "APPEND_UNDER_WAY");
  EXPECT_GT(
      DetailsOf(StatusOf(under_way)).retry_delay.value_or(absl::ZeroDuration()),
      absl::ZeroDuration());
  // Anything else is in its way.
  v1::StepItem other = item;
  other.set_request_id("two");
  ExpectFailed(Do(second, other), grpc::StatusCode::ABORTED, "LENGTH_CONFLICT");
  other = item;
  other.set_expected_length(1);
  ExpectFailed(Do(second, other), grpc::StatusCode::ABORTED, "LENGTH_CONFLICT");
  first.Cancel();
  v1::StepResult result;
  EXPECT_TRUE(WaitUntil([&] {
    result = Do(second, item);
    return result.code() != grpc::StatusCode::UNAVAILABLE;
  }));
  ExpectAnswer(item, result);
  EXPECT_EQ(Get("a").lengths(0), 60000);
}

TEST_F(StepTest, RefusesMasksInSharedMemory) {
  Create("a");
  StepStream stream(*stub_);
  v1::StepItem item = Appending("a", 2);
  AddQuery(item);
  item.mutable_mask()->set_data_type(v1::DATA_TYPE_BOOL);
  item.mutable_mask()->add_shape(2);
  item.mutable_mask()->mutable_shared_memory()->set_region("r");
  ExpectFailed(Do(stream, item), grpc::StatusCode::INVALID_ARGUMENT,
               "INVALID_FIELD", "mask.shared_memory");
  EXPECT_EQ(Get("a").lengths(0), 0);
}

TEST_F(StepTest, DrainingEndsStreamsThatWait) {
  Create("a");
  const auto channel = server_.Channel(Transport::kLoopback);
  const auto stub = v1::SessionService::NewStub(channel);
  StepStream stream(*stub);
  const v1::StepItem item = Appending("a", 2);
  ASSERT_EQ(Do(stream, item).code(), 0);
  server_.server().Shutdown(absl::InfiniteFuture());
  std::thread waiting([&] { server_.server().Wait(); });
  const grpc::Status status = stream.End();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(DetailsOf(status).reason, "DRAINING");
  waiting.join();
}

TEST_F(StepTest, DrainingLetsABatchEnd) {
  Create("a");
  const auto stub =
      v1::SessionService::NewStub(server_.Channel(Transport::kLoopback));
  StepStream stream(*stub);
  v1::StepItem item = Appending("a", 4000);
  *item.mutable_query() =
      RandomTensor(v1::DATA_TYPE_FLOAT32, {2, 8000, kKeySize}, 1);
  ASSERT_TRUE(stream.Write(Batch({item})));
  ASSERT_TRUE(WaitUntil(
      [&] { return server_.server().sessions().totals().bytes > 100000; }));
  server_.server().Shutdown(absl::InfiniteFuture());
  std::thread waiting([&] { server_.server().Wait(); });
  const auto response = stream.Read();
  EXPECT_TRUE(response);
  if (response) ExpectAnswer(item, response->results(0));
  EXPECT_EQ(stream.End().error_code(), grpc::StatusCode::UNAVAILABLE);
  waiting.join();
}

class StepIdleTest : public StepTest {
 protected:
  static server::Options ShortDeadline() {
    server::Options options = TestServer::DefaultOptions();
    options.default_deadline = absl::Seconds(1);
    return options;
  }
  StepIdleTest() : StepTest(ShortDeadline()) {}
};

TEST_F(StepIdleTest, EachMessageHasTheDefaultDeadline) {
  Create("a");
  StepStream stream(*stub_);
  const absl::Time start = absl::Now();
  while (absl::Now() - start < absl::Seconds(1.5)) {
    ASSERT_EQ(Do(stream, Appending("a", 1)).code(), 0);
    absl::SleepFor(absl::Milliseconds(100));
  }
  const grpc::Status status = stream.End();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_EQ(DetailsOf(status).reason, "IDLE_TOO_LONG");
}

class StepMemoryTest : public StepTest {
 protected:
  static server::Options SmallBudget() {
    server::Options options = TestServer::DefaultOptions();
    options.max_request_bytes = int64_t{4} << 20;
    options.max_response_bytes = int64_t{4} << 20;
    options.max_inflight_bytes = int64_t{16} << 20;
    return options;
  }
  StepMemoryTest() : StepTest(SmallBudget()) {}
};

// Streams between messages hold their headers alone, and where others need that
// too, those go that have waited longest.
TEST_F(StepMemoryTest, StreamsThatWaitMakeRoom) {
  Create("a");
  const auto stub =
      v1::SessionService::NewStub(server_.Channel(Transport::kLoopback));
  std::vector<std::unique_ptr<StepStream>> streams;
  constexpr int kStreams = 600;
  for (int i = 0; i < kStreams; ++i) {
    streams.push_back(std::make_unique<StepStream>(*stub));
    ASSERT_EQ(Do(*streams.back(), Appending("a", 1)).code(), 0);
  }
  // The largest message that there may be.
  v1::AppendKeyValuesRequest request;
  request.set_id("a");
  constexpr int64_t kTokenBytes = kHeads * (kKeySize + kValueSize) * 4;
  const int64_t tokens = ((int64_t{4} << 20) - 4096) / kTokenBytes;
  *request.mutable_key() = keys_.Add(tokens, ++seed_);
  *request.mutable_value() = values_.Add(tokens, ++seed_);
  EXPECT_TRUE(WaitUntil([&] {
    const int64_t length = Append(request).length();
    EXPECT_TRUE(!status_.ok() || length == kStreams + tokens) << length;
    return status_.ok();
  })) << status_.error_message();
  const v1::StepResult last = Do(*streams.back(), Appending("a", 1));
  EXPECT_EQ(last.code(), 0) << last.message();
  const grpc::Status status = streams.front()->End();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(DetailsOf(status).reason, "MEMORY_BUSY");
}

TEST_F(StepMemoryTest, AnItemThatNeverFitsIsRefused) {
  Create("a");
  StepStream stream(*stub_);
  v1::StepItem item = Appending("a", 20000);
  *item.mutable_query() =
      RandomTensor(v1::DATA_TYPE_FLOAT32, {2, 300, kKeySize}, 1);
  item.mutable_options()->set_return_scores(v1::SCORES_RAW);
  const v1::StepResult result = Do(stream, item);
  EXPECT_EQ(result.code(), grpc::StatusCode::RESOURCE_EXHAUSTED)
      << result.message();
  EXPECT_EQ(Get("a").lengths(0), 0);
  AddQuery(item);
  item.mutable_options()->clear_return_scores();
  ExpectAnswer(item, Do(stream, item));
}

// A prompt that is longer than the window, and its queries in one item; then
// what is left of it.
TEST_F(StepTest, QueriesSeeWhatTheirAppendReleases) {
  CreateWithWindows("a", 1, {100}, 0);
  StepStream stream(*stub_);
  v1::StepItem item = Appending("a", 600);
  AddQuery(item, 600);
  item.mutable_options()->mutable_window()->set_left(99);
  ExpectAnswer(item, Do(stream, item));
  item = Appending("a", 700);
  item.set_request_id("prompt");
  AddQuery(item, 700);
  item.mutable_options()->mutable_window()->set_left(99);
  ExpectAnswer(item, Do(stream, item));
  EXPECT_EQ(Get("a").first_tokens(0), 1024);  // 1300 - 100 is in this page

  // Once more: the tokens that its queries saw are gone, but it was done.
  ExpectFailed(Do(stream, item), grpc::StatusCode::FAILED_PRECONDITION,
               "TOKENS_RELEASED");
  v1::StepItem append_alone = item;
  append_alone.clear_query();
  append_alone.clear_options();
  EXPECT_EQ(Do(stream, append_alone).length(), 1300);
  append_alone.mutable_key()->mutable_data()->back() ^= 1;
  ExpectFailed(Do(stream, append_alone), grpc::StatusCode::ABORTED,
               "LENGTH_CONFLICT");

  v1::StepItem decode = Appending("a", 1);
  decode.set_request_id("decode");
  AddQuery(decode);
  decode.mutable_options()->mutable_window()->set_left(99);
  const v1::StepResult first = Do(stream, decode);
  ExpectAnswer(decode, first);
  Do(stream, Appending("a", 1));
  const v1::StepResult again = Do(stream, decode);
  EXPECT_EQ(again.code(), 0) << again.message();
  EXPECT_TRUE(again.output().data() == first.output().data());

  // One that is refused leaves nothing behind.
  v1::StepItem wrong = Appending("a", 1);
  AddQuery(wrong);
  ExpectFailed(Do(stream, wrong), grpc::StatusCode::INVALID_ARGUMENT,
               "INVALID_FIELD", "options.window.left");
  EXPECT_EQ(Get("a").lengths(0), 1302);
}

}  // namespace
}  // namespace attention::testing
