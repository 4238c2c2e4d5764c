// Sessions of the client against a real server, and through a relay that loses
// answers, ends streams and refuses.
#include "attention/session.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <span>
#include <stop_token>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "attention/client.h"
#include "attention/internal/step_streams.h"
#include "tests/client/session_relay.h"
#include "tests/support/test_server.h"

namespace attention {
namespace {

using ::testing::HasSubstr;
using ::testing::SizeIs;
using testing::TestServer;
using testing::Transport;
using testing::WaitUntil;

constexpr int64_t kHeads = 2, kQueryHeads = 4, kSize = 8, kValueSize = 4;

v1::SessionConfig Config(int64_t layers = 1) {
  v1::SessionConfig config;
  config.set_num_layers(layers);
  config.set_kv_heads(kHeads);
  config.set_head_size(kSize);
  config.set_value_head_size(kValueSize);
  return config;
}

Tensor RandomTensor(std::vector<int64_t> shape) {
  static auto* const engine = new std::mt19937(11);
  std::vector<float> numbers(*ElementCount(shape));
  std::uniform_real_distribution<float> uniform(-1, 1);
  for (float& number : numbers) number = uniform(*engine);
  return Tensor::Of<float>(numbers, std::move(shape));
}
Tensor Keys(int64_t n) { return RandomTensor({kHeads, n, kSize}); }
Tensor Values(int64_t n) { return RandomTensor({kHeads, n, kValueSize}); }
Tensor Query(int64_t s = 1) { return RandomTensor({kQueryHeads, s, kSize}); }

// The tokens of several tensors (H, n, size) as one, (1, H, n, size).
Tensor Joined(const std::vector<Tensor>& parts) {
  const int64_t heads = parts[0].shape()[0], size = parts[0].shape()[2];
  std::vector<float> joined;
  int64_t length = 0;
  for (const Tensor& part : parts) length += part.shape()[1];
  for (int64_t head = 0; head < heads; ++head) {
    for (const Tensor& part : parts) {
      const int64_t count = part.shape()[1] * size;
      const auto rows = part.elements<float>().subspan(head * count, count);
      joined.insert(joined.end(), rows.begin(), rows.end());
    }
  }
  return Tensor::Of<float>(joined, {1, heads, length, size});
}

std::string BytesOf(const Tensor& tensor) {
  return {reinterpret_cast<const char*>(tensor.bytes().data()),
          tensor.bytes().size()};
}

// What a session should hold, and what it should answer.
struct Mirror {
  std::vector<Tensor> keys, values;

  void Add(const Tensor& key, const Tensor& value) {
    keys.push_back(key);
    values.push_back(value);
  }
  // One computation over all tokens.
  std::string Wanted(const Client& client, const Tensor& query) const {
    const Tensor key = Joined(keys), value = Joined(values);
    std::vector<int64_t> shape = query.shape();
    shape.insert(shape.begin(), 1);
    ComputeRequest request;
    request.query = {query.type(), shape, query.bytes()};
    request.key = key;
    request.value = value;
    request.options.set_causal(v1::CAUSAL_BOTTOM_RIGHT);
    const auto result = client.Compute(request);
    EXPECT_TRUE(result.ok()) << result.status();
    return result.ok() ? BytesOf(result->output) : "";
  }
};

class SessionTest : public ::testing::Test {
 protected:
  SessionTest()
      : client_(server_.Channel(Transport::kInProcess)),
        relay_(server_.Channel(Transport::kInProcess)),
        relayed_(relay_.address()) {}

  // Of a client whose calls go through the relay.
  ClientSession Create(const std::string& id = "", int64_t layers = 1) {
    return relayed_.CreateSession(Config(layers), id).value();
  }
  // Appends what the mirror then has.
  void Append(ClientSession& session, Mirror& mirror, int64_t tokens) {
    const Tensor key = Keys(tokens), value = Values(tokens);
    ASSERT_TRUE(session.Append(0, key, value).ok());
    mirror.Add(key, value);
  }

  TestServer server_;
  Client client_;
  SessionRelay relay_;
  Client relayed_;
};

TEST_F(SessionTest, AppendsAndAttendsWithTheBitsOfCompute) {
  ClientSession session = client_.CreateSession(Config(2), "a").value();
  EXPECT_EQ(session.id(), "a");
  EXPECT_EQ(session.config().lease().seconds(), 60);
  EXPECT_EQ(session.length(1), 0);
  EXPECT_EQ(session.length(2), -1);
  Mirror mirror;
  for (const int64_t tokens : {3, 300, 1}) {
    const Tensor key = Keys(tokens), value = Values(tokens);
    mirror.Add(key, value);
    const auto length = session.Append(1, key, value);
    ASSERT_TRUE(length.ok()) << length.status();
    EXPECT_EQ(*length, session.length(1));
    const Tensor query = Query(2);
    const auto result = session.Attend(1, query);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(BytesOf(result->output), mirror.Wanted(client_, query));
    EXPECT_EQ(result->length, *length);
    EXPECT_FALSE(result->log_sum_exp);
  }
  EXPECT_EQ(session.length(0), 0);
}

TEST_F(SessionTest, StepsWithTheBitsOfComputeOnOneStream) {
  ClientSession session = Create();
  Mirror mirror;
  Append(session, mirror, 20);
  for (int i = 0; i < 20; ++i) {
    const Tensor key = Keys(1), value = Values(1), query = Query();
    mirror.Add(key, value);
    const auto result = session.Step(0, key, value, query);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(BytesOf(result->output), mirror.Wanted(client_, query));
    EXPECT_EQ(result->length, 21 + i);
    EXPECT_GT(result->timing.ByteSizeLong(), 0);
  }
  EXPECT_EQ(session.length(), 40);
  EXPECT_EQ(relay_.streams, 1);
}

TEST_F(SessionTest, LendsLargeKeysToAStreamThatStaysOpen) {
  ClientSession session = Create();
  Mirror mirror;
  for (int i = 0; i < 5; ++i) {
    const Tensor key = Keys(3000), value = Values(3000), query = Query();
    mirror.Add(key, value);
    const auto result = session.Step(0, key, value, query);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(BytesOf(result->output), mirror.Wanted(client_, query));
  }
  EXPECT_EQ(relay_.streams, 1);
}

TEST_F(SessionTest, OptionsMasksAndOutputs) {
  ClientSession session = Create();
  const Tensor key = Keys(5), value = Values(5), query = Query(3);
  ASSERT_TRUE(session.Append(0, key, value).ok());
  AttendOptions attend;
  attend.options.set_return_log_sum_exp(true);
  attend.options.set_return_scores(v1::SCORES_WEIGHTS);
  attend.not_causal = true;
  const std::vector<double> numbers = {1, 1, 0, 1, 0};
  const Tensor mask = Tensor::Rounded(v1::DATA_TYPE_BOOL, numbers, {1, 5});
  attend.mask = mask;
  // All keys: what they change is that they are sent.
  const std::vector<double> keys = {4, 3, 2, 1, 0, 0, 1, 2,
                                    3, 4, 4, 3, 2, 1, 0};
  const Tensor indices = Tensor::Rounded(v1::DATA_TYPE_INT64, keys, {3, 5});
  attend.indices = indices;
  const std::vector<double> logits(kQueryHeads * 3, 1);
  const Tensor sinks =
      Tensor::Rounded(v1::DATA_TYPE_FLOAT32, logits, {kQueryHeads, 3});
  attend.sinks = sinks;
  std::vector<float> memory(kQueryHeads * 3 * kValueSize);
  attend.outputs.output = std::as_writable_bytes(std::span(memory));
  const auto unary = session.Attend(0, query, attend);
  ASSERT_TRUE(unary.ok()) << unary.status();
  EXPECT_EQ(static_cast<const void*>(unary->output.bytes().data()),
            memory.data());
  EXPECT_EQ(unary->output.shape(),
            (std::vector<int64_t>{kQueryHeads, 3, kValueSize}));
  ASSERT_TRUE(unary->scores);
  EXPECT_EQ(unary->scores->shape(), (std::vector<int64_t>{kQueryHeads, 3, 5}));
  EXPECT_EQ(unary->scores->elements<float>()[2], 0);
  EXPECT_EQ(unary->scores->elements<float>()[4], 0);
  ASSERT_TRUE(unary->log_sum_exp);
  const std::string output = BytesOf(unary->output);
  // The same by a step that only attends.
  const StepItem item{.session = &session, .query = query, .attend = attend};
  const auto stepped = relayed_.Step({&item, 1});
  ASSERT_THAT(stepped, SizeIs(1));
  ASSERT_TRUE(stepped[0].ok()) << stepped[0].status();
  EXPECT_EQ(BytesOf(stepped[0]->output), output);
  EXPECT_EQ(BytesOf(*stepped[0]->scores), BytesOf(*unary->scores));
  // And by a call of its own.
  memory.assign(memory.size(), 0);
  const auto later = session.AttendAsync(0, query, attend).get();
  ASSERT_TRUE(later.ok()) << later.status();
  EXPECT_EQ(BytesOf(later->output), output);
  EXPECT_EQ(static_cast<const void*>(later->output.bytes().data()),
            memory.data());
  EXPECT_EQ(BytesOf(*later->log_sum_exp), BytesOf(*unary->log_sum_exp));
  EXPECT_EQ(later->length, 5);
}

TEST_F(SessionTest, AnAnswerThatDoesNotFitIsOfTokensThatAreAppended) {
  ClientSession session = Create();
  std::vector<float> memory(1);
  AttendOptions attend;
  attend.outputs.output = std::as_writable_bytes(std::span(memory));
  const auto result = session.Step(0, Keys(1), Values(1), Query(), attend);
  EXPECT_TRUE(absl::IsInvalidArgument(result.status())) << result.status();
  EXPECT_EQ(session.length(), 1);
  EXPECT_TRUE(session.Append(0, Keys(1), Values(1)).ok());
}

TEST_F(SessionTest, StepsManySessionsInOneMessage) {
  std::vector<ClientSession> sessions;
  std::vector<Mirror> mirrors(5);
  std::vector<Tensor> keys, values, queries;
  for (int i = 0; i < 5; ++i) {
    sessions.push_back(Create(absl::StrCat("s", i)));
    Append(sessions.back(), mirrors[i], 10 + i);
    keys.push_back(Keys(1));
    values.push_back(Values(1));
    queries.push_back(Query());
  }
  // Without this client's knowledge.
  ASSERT_TRUE(client_.DeleteSession("s3").ok());
  std::vector<StepItem> items;
  for (int i = 0; i < 5; ++i) {
    items.push_back({&sessions[i], 0, keys[i], values[i], queries[i]});
  }
  const auto results = relayed_.Step(items);
  ASSERT_THAT(results, SizeIs(5));
  EXPECT_EQ(relay_.steps, 1);
  for (int i = 0; i < 5; ++i) {
    if (i == 3) {
      EXPECT_TRUE(absl::IsNotFound(results[i].status()));
      EXPECT_EQ(ErrorReason(results[i].status()), "SESSION_UNKNOWN");
      continue;
    }
    ASSERT_TRUE(results[i].ok()) << results[i].status();
    mirrors[i].Add(keys[i], values[i]);
    EXPECT_EQ(BytesOf(results[i]->output),
              mirrors[i].Wanted(client_, queries[i]));
    EXPECT_EQ(sessions[i].length(), 11 + i);
  }
  // The one that is gone is not asked for again.
  const auto again = sessions[3].Step(0, keys[3], values[3], queries[3]);
  EXPECT_TRUE(absl::IsNotFound(again.status()));
  EXPECT_EQ(relay_.steps, 1);
}

TEST_F(SessionTest, AStepThatFailsHasTheDetailsOfACall) {
  ClientSession session = Create();
  const Tensor wrong = RandomTensor({kHeads, 1, kSize + 1});
  const absl::Status by_call = session.Append(0, wrong, Values(1)).status();
  const absl::Status by_step =
      session.Step(0, wrong, Values(1), Query()).status();
  ASSERT_TRUE(absl::IsInvalidArgument(by_step)) << by_step;
  EXPECT_EQ(by_step, by_call);
  ASSERT_THAT(FieldViolations(by_step), SizeIs(1));
  EXPECT_EQ(session.length(), 0);
  const auto outside = session.Append(7, Keys(1), Values(1));
  EXPECT_EQ(ErrorReason(outside.status()), "LAYER_UNKNOWN");
}

TEST_F(SessionTest, WhatIsNoStepIsRefusedHere) {
  EXPECT_THAT(relayed_.Step({}), SizeIs(0));
  ClientSession session = Create();
  ClientSession other = client_.CreateSession(Config()).value();
  const Tensor query = Query();
  EXPECT_TRUE(absl::IsInvalidArgument(
      relayed_.Step(std::vector<StepItem>(1))[0].status()));
  const std::vector<StepItem> mixed = {{.session = &other, .query = query},
                                       {.session = &session, .query = query}};
  const auto results = relayed_.Step(mixed);
  EXPECT_TRUE(absl::IsInvalidArgument(results[0].status()));
  EXPECT_TRUE(results[1].ok()) << results[1].status();
  const std::vector<StepItem> many(1025, mixed[1]);
  EXPECT_TRUE(absl::IsInvalidArgument(relayed_.Step(many)[0].status()));
  const auto most = relayed_.Step(std::span(many).first(1024));
  EXPECT_TRUE(most.back().ok()) << most.back().status();
}

TEST_F(SessionTest, AConflictTellsTheTrueLength) {
  ClientSession session = Create("a");
  ClientSession other = client_.OpenSession("a").value();
  ASSERT_TRUE(other.Append(0, Keys(7), Values(7)).ok());
  for (const absl::Status& status :
       {session.Append(0, Keys(1), Values(1)).status(),
        session.Step(0, Keys(1), Values(1), Query()).status()}) {
    EXPECT_TRUE(absl::IsAborted(status)) << status;
    EXPECT_EQ(ErrorReason(status), "LENGTH_CONFLICT");
    EXPECT_EQ(ConflictLength(status), 7);
  }
  EXPECT_EQ(session.length(), 0);
  ASSERT_TRUE(session.Refresh().ok());
  EXPECT_EQ(session.length(), 7);
  EXPECT_EQ(session.Append(0, Keys(1), Values(1)).value(), 8);
  EXPECT_EQ(ConflictLength(absl::AbortedError("")), std::nullopt);
}

TEST_F(SessionTest, OneAppendPerLayerAtATime) {
  ClientSession session = Create("", 2);
  relay_.stall_steps = 1;
  std::stop_source stop;
  absl::Status stalled;
  const Tensor key = Keys(1), value = Values(1), query = Query();
  std::thread stepping([&] {
    stalled = session.Step(0, key, value, query, {}, {.stop = stop.get_token()})
                  .status();
  });
  ASSERT_TRUE(WaitUntil([&] { return relay_.stall_steps == 0; }));
  const absl::Status status = session.Append(0, Keys(1), Values(1)).status();
  EXPECT_TRUE(absl::IsAborted(status)) << status;
  EXPECT_EQ(ConflictLength(status), 0);
  // Another layer is free.
  EXPECT_TRUE(session.Append(1, Keys(1), Values(1)).ok());
  EXPECT_EQ(relay_.appends, 1);
  stop.request_stop();
  stepping.join();
  EXPECT_TRUE(absl::IsCancelled(stalled)) << stalled;
  EXPECT_TRUE(session.Step(0, Keys(1), Values(1), Query()).ok());
}

TEST_F(SessionTest, ALostAnswerIsAskedForOnceMore) {
  ClientSession session = Create();
  Mirror mirror;
  relay_.lose_answers = 1;
  Append(session, mirror, 9);
  EXPECT_EQ(relay_.appends, 2);
  EXPECT_EQ(session.length(), 9);
  for (int i = 0; i < 2; ++i) {  // On a new stream, and on one that was kept.
    relay_.lose_answers = 1;
    const Tensor key = Keys(1), value = Values(1), query = Query();
    mirror.Add(key, value);
    const auto result = session.Step(0, key, value, query);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(BytesOf(result->output), mirror.Wanted(client_, query));
    EXPECT_EQ(session.length(), 10 + i);
  }
  EXPECT_EQ(relay_.steps, 4);
}

TEST_F(SessionTest, AnAttendThatDoesNotBlockIsTriedAgain) {
  ClientSession session = Create();
  Mirror mirror;
  Append(session, mirror, 9);
  const Tensor query = Query();
  relay_.lose_attends = kDefaultMaxAttempts - 1;
  const auto result = session.AttendAsync(0, query).get();
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(BytesOf(result->output), mirror.Wanted(client_, query));
  relay_.lose_attends = kDefaultMaxAttempts;
  const absl::Status lost = session.AttendAsync(0, query).get().status();
  EXPECT_TRUE(absl::IsUnavailable(lost)) << lost;
  EXPECT_EQ(relay_.lose_attends, 0);
}

TEST_F(SessionTest, WhatHasNoAnswerMayBeTriedAgain) {
  ClientSession session = Create();
  const Tensor key = Keys(1), value = Values(1), query = Query();
  relay_.lose_answers = kDefaultMaxAttempts;
  absl::Status status = session.Step(0, key, value, query).status();
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_EQ(session.length(), 0);
  // Other tokens find out that those are there.
  status = session.Append(0, Keys(1), Values(1)).status();
  EXPECT_TRUE(absl::IsAborted(status)) << status;
  EXPECT_EQ(ConflictLength(status), 1);
  // The same ones are appended once.
  const auto result = session.Step(0, key, value, query);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->length, 1);
  EXPECT_EQ(session.Append(0, key, value).value(), 2);
}

TEST_F(SessionTest, AnAppendWaitsForItsFirstTry) {
  ClientSession session = Create();
  Mirror mirror;
  relay_.say_under_way = 3;
  Append(session, mirror, 9);
  EXPECT_EQ(relay_.appends, 4);
  EXPECT_EQ(session.length(), 9);
  // Of a step the item alone is asked for again.
  ClientSession other = Create();
  relay_.say_under_way = 2;
  const Tensor key = Keys(1), value = Values(1), query = Query();
  mirror.Add(key, value);
  const StepItem items[] = {
      {.session = &session, .key = key, .value = value, .query = query},
      {.session = &other, .query = query}};
  const auto results = relayed_.Step(items);
  ASSERT_TRUE(results[0].ok()) << results[0].status();
  EXPECT_EQ(BytesOf(results[0]->output), mirror.Wanted(client_, query));
  EXPECT_TRUE(results[1].ok()) << results[1].status();
  EXPECT_EQ(relay_.steps, 3);
  EXPECT_EQ(session.length(), 10);
}

TEST_F(SessionTest, AnAppendWaitsForItsFirstTryAsLongAsItMay) {
  ClientSession session = Create();
  const Tensor key = Keys(1), value = Values(1), query = Query();
  relay_.say_under_way = 1 << 30;
  const CallOptions in_time = {.timeout = absl::Milliseconds(100)};
  for (const absl::Status& status :
       {session.Append(0, key, value, in_time).status(),
        session.Step(0, key, value, query, {}, in_time).status()}) {
    // What the time ends: the pause, which is not begun then, or a slow try.
    EXPECT_TRUE(absl::IsDeadlineExceeded(status) ||
                ErrorReason(status) == "APPEND_UNDER_WAY")
        << status;
  }
  std::stop_source stop;
  std::thread stopping([&] {
    const int appends = relay_.appends;
    EXPECT_TRUE(WaitUntil([&] { return relay_.appends > appends + 2; }));
    stop.request_stop();
  });
  EXPECT_TRUE(absl::IsCancelled(
      session.Append(0, key, value, {.stop = stop.get_token()}).status()));
  stopping.join();
  relay_.say_under_way = 0;
  EXPECT_EQ(session.Append(0, key, value).value(), 1);
}

// The first try computes for many seconds when its client leaves; the network
// has not told the server yet.
TEST_F(SessionTest, ARetryBesideItsFirstTryIsDoneOnce) {
  ClientSession session = Create();
  const int64_t before = server_.server().sessions().totals().bytes;
  const Tensor key = Keys(60000), value = Values(60000);
  relay_.hold_steps = 1;
  std::stop_source stop;
  absl::Status first;
  std::thread stepping([&] {
    first =
        session
            .Step(0, key, value, Query(100000), {}, {.stop = stop.get_token()})
            .status();
  });
  // Pages are there once the tokens are being copied.
  EXPECT_TRUE(WaitUntil(
      [&] { return server_.server().sessions().totals().bytes > before; }));
  stop.request_stop();
  stepping.join();
  EXPECT_TRUE(absl::IsCancelled(first)) << first;
  // Somebody else's append is a conflict.
  ClientSession other = client_.OpenSession(session.id()).value();
  EXPECT_TRUE(absl::IsAborted(other.Append(0, Keys(1), Values(1)).status()));
  std::thread releasing([&] {
    EXPECT_TRUE(WaitUntil([&] { return relay_.appends >= 2; }));
    relay_.hold_steps = 0;
  });
  const auto length = session.Append(0, key, value);
  releasing.join();
  ASSERT_TRUE(length.ok()) << length.status();
  EXPECT_EQ(*length, 60000);
  ASSERT_TRUE(session.Refresh().ok());
  EXPECT_EQ(session.length(), 60000);
}

TEST_F(SessionTest, AStreamThatEndedBetweenMessagesIsBegunAnew) {
  ClientSession session = Create();
  Mirror mirror;
  Append(session, mirror, 4);
  int streams = 0;
  for (const auto& [code, reason] :
       {std::pair(grpc::StatusCode::UNAVAILABLE, "DRAINING"),
        std::pair(grpc::StatusCode::RESOURCE_EXHAUSTED, "MEMORY_BUSY"),
        std::pair(grpc::StatusCode::DEADLINE_EXCEEDED, "IDLE_TOO_LONG"),
        std::pair(grpc::StatusCode::UNAUTHENTICATED, "TOKEN_UNKNOWN")}) {
    relay_.EndStreams(WithReason(code, reason));
    for (int i = 0; i < 3; ++i) {
      const Tensor key = Keys(1), value = Values(1), query = Query();
      mirror.Add(key, value);
      const auto result = session.Step(0, key, value, query);
      ASSERT_TRUE(result.ok()) << result.status();
      EXPECT_EQ(BytesOf(result->output), mirror.Wanted(client_, query));
      EXPECT_EQ(relay_.streams, ++streams);
    }
  }
  EXPECT_EQ(relay_.steps, 12);
}

TEST_F(SessionTest, AnotherEndOfAStreamIsTold) {
  ClientSession session = Create();
  const Tensor key = Keys(1), value = Values(1), query = Query();
  relay_.EndStreams(
      WithReason(grpc::StatusCode::PERMISSION_DENIED, "TENANT_NOT_ALLOWED"));
  ASSERT_TRUE(session.Step(0, key, value, query).ok());
  const auto result = session.Step(0, key, value, query);
  EXPECT_EQ(ErrorReason(result.status()), "TENANT_NOT_ALLOWED");
  EXPECT_EQ(relay_.steps, 1);
}

TEST_F(SessionTest, AnAnswerLargerThanTheClientTakesIsTold) {
  if (!absl::StartsWith(grpc::Version(), "1.51.")) {
    GTEST_SKIP() << "gRPC 1.83 says no more than CANCELLED of what it refused";
  }
  ClientOptions options;
  options.max_receive_bytes = 4 << 10;
  const Client client(relay_.address(), options);
  ClientSession session = client.CreateSession(Config()).value();
  const Tensor key = Keys(1), value = Values(1);
  ASSERT_TRUE(session.Step(0, key, value, Query()).ok());
  for (const char* stream : {"one that was open", "a new one"}) {
    const absl::Status status =
        session.Step(0, key, value, Query(4 << 10)).status();
    EXPECT_TRUE(absl::IsResourceExhausted(status)) << stream << ": " << status;
    EXPECT_EQ(ErrorReason(status), "CLIENT_LIMIT") << stream;
  }
  EXPECT_EQ(relay_.streams, 2);
}

TEST_F(SessionTest, TimeAndStop) {
  ClientSession session = Create();
  const Tensor key = Keys(1), value = Values(1), query = Query();
  ASSERT_TRUE(session.Step(0, key, value, query).ok());
  relay_.stall_steps = 2;
  absl::Status status =
      session
          .Step(0, key, value, query, {}, {.timeout = absl::Milliseconds(20)})
          .status();
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
  status =
      session
          .Step(0, key, value, query, {}, {.interrupted = [] { return true; }})
          .status();
  EXPECT_TRUE(absl::IsCancelled(status)) << status;
  std::stop_source stopped;
  stopped.request_stop();
  status = session.Step(0, key, value, query, {}, {.stop = stopped.get_token()})
               .status();
  EXPECT_TRUE(absl::IsCancelled(status)) << status;
  EXPECT_EQ(session.Step(0, key, value, query).value().length, 2);
}

TEST_F(SessionTest, AStopThatComesWithTheAnswerIsOfThatCallAlone) {
  ClientSession session = Create();
  const Tensor query = Query();
  for (int i = 0; i < 200; ++i) {
    std::stop_source stop;
    relay_.AfterAnswers([stop]() mutable { stop.request_stop(); });
    const absl::Status status =
        session.Attend(0, query, {}, {.stop = stop.get_token()}).status();
    EXPECT_TRUE(status.ok() || absl::IsCancelled(status)) << status;
    ASSERT_TRUE(WaitUntil([&] { return stop.stop_requested(); }));
    relay_.AfterAnswers(nullptr);
    const absl::Status next = session.Attend(0, query).status();
    ASSERT_TRUE(next.ok()) << next;
  }
}

TEST_F(SessionTest, AServerThatIsKilledIsUnavailable) {
  ClientSession session = Create();
  const Tensor key = Keys(1), value = Values(1), query = Query();
  ASSERT_TRUE(session.Step(0, key, value, query).ok());
  relay_.Kill();
  for (const absl::Status& status :
       {session.Step(0, key, value, query).status(),
        session.Append(0, key, value).status(),
        session.Attend(0, query).status(),
        session.AttendAsync(0, query).get().status(), session.Refresh(),
        session.Truncate(0), session.Delete(), session.Fork().status(),
        relayed_.OpenSession("a").status(), relayed_.ListSessions().status()}) {
    EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  }
  EXPECT_EQ(session.length(), 1);
}

TEST_F(SessionTest, LargeAppendsGoInPieces) {
  v1::SessionConfig config = Config();
  config.set_head_size(128);
  config.clear_value_head_size();
  config.set_value_is_key_prefix(false);
  ClientSession session = relayed_.CreateSession(config).value();
  // 20 MB: 8192 tokens of 2 KiB would be 16 MiB.
  const Tensor key = RandomTensor({kHeads, 10000, 128});
  const Tensor value = RandomTensor({kHeads, 10000, 128});
  std::vector<int64_t> progress;
  CallOptions options;
  options.progress = [&](int64_t sent, int64_t total) {
    progress.push_back(sent * 100 / total);
  };
  EXPECT_EQ(session.Append(0, key, value, options).value(), 10000);
  EXPECT_EQ(relay_.appends, 3);
  EXPECT_THAT(progress, ::testing::ElementsAre(40, 81, 100));
  Mirror mirror;
  mirror.Add(key, value);
  const Tensor query = RandomTensor({kQueryHeads, 1, 128});
  EXPECT_EQ(BytesOf(session.Attend(0, query).value().output),
            mirror.Wanted(client_, query));
  // Half done is told.
  relay_.appends_before_refusal = 1;
  relay_.refuse_appends = 1;
  const absl::Status status = session.Append(0, key, value).status();
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_EQ(ErrorReason(status), "SESSION_BYTES");
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("the first 4096 of 10000 tokens were appended"));
  EXPECT_EQ(session.length(), 14096);
  ASSERT_TRUE(session.Truncate(10000).ok());
  EXPECT_EQ(BytesOf(session.Attend(0, query).value().output),
            mirror.Wanted(client_, query));
}

TEST_F(SessionTest, ALargeAppendThatFailedHalfWayMayBeMadeAgain) {
  v1::SessionConfig config = Config();
  config.set_head_size(128);
  config.clear_value_head_size();
  ClientSession session = relayed_.CreateSession(config).value();
  Mirror mirror;
  const Tensor query = RandomTensor({kQueryHeads, 1, 128});
  const auto large = [&] { return RandomTensor({kHeads, 10000, 128}); };
  const auto expect_all = [&](int64_t length) {
    EXPECT_EQ(session.length(), length);
    EXPECT_EQ(BytesOf(session.Attend(0, query).value().output),
              mirror.Wanted(client_, query));
  };
  Tensor key = large(), value = large();
  // In three calls: a later one is refused, or its answer is lost, however
  // often the client asks for it.
  for (const bool refused : {true, false}) {
    relay_.appends = 0;
    if (refused) {
      relay_.appends_before_refusal = 1;
      relay_.refuse_appends = 1;
    } else {
      relay_.answers_before_loss = 1;
      relay_.lose_answers = kDefaultMaxAttempts;
    }
    EXPECT_FALSE(session.Append(0, key, value).ok());
    EXPECT_EQ(session.length() % 10000, 4096);
    // Once more, and again.
    relay_.appends_before_refusal = 1;
    relay_.refuse_appends = 1;
    EXPECT_FALSE(session.Append(0, key, value).ok());
    EXPECT_EQ(session.length() % 10000, 8192);
    const auto length = session.Append(0, key, value);
    ASSERT_TRUE(length.ok()) << length.status();
    mirror.Add(key, value);
    expect_all(refused ? 10000 : 20000);
    EXPECT_EQ(relay_.appends, refused ? 3 : 3 + kDefaultMaxAttempts);
  }
  // The same once more are new tokens; and what was given up is.
  EXPECT_EQ(session.Append(0, key, value).value(), 30000);
  mirror.Add(key, value);
  relay_.appends_before_refusal = 1;
  relay_.refuse_appends = 1;
  EXPECT_FALSE(session.Append(0, key, value).ok());
  ASSERT_TRUE(session.Truncate(30000).ok());
  EXPECT_EQ(session.Append(0, key, value).value(), 40000);
  mirror.Add(key, value);
  expect_all(40000);
  // Others go behind those that are there.
  relay_.appends_before_refusal = 1;
  relay_.refuse_appends = 1;
  EXPECT_FALSE(session.Append(0, key, value).ok());
  EXPECT_EQ(session.Append(0, large(), large()).value(), 54096);
  EXPECT_EQ(session.Append(0, key, value).value(), 64096);
}

TEST_F(SessionTest, ForksTruncatesListsAndDeletes) {
  ClientSession session = client_.CreateSession(Config(), "a").value();
  Mirror mirror;
  Append(session, mirror, 30);
  ClientSession fork = session.Fork("b").value();
  EXPECT_EQ(fork.id(), "b");
  EXPECT_EQ(fork.length(), 30);
  Append(fork, mirror, 2);
  const Tensor query = Query();
  EXPECT_EQ(BytesOf(fork.Attend(0, query).value().output),
            mirror.Wanted(client_, query));
  EXPECT_EQ(session.length(), 30);
  EXPECT_EQ(session.Fork("b").status().code(),
            absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(session.ForkMany(3).value(), SizeIs(3));
  v1::ForkSessionsRequest forks;
  for (const char* source : {"b", "a"}) forks.add_forks()->set_source(source);
  EXPECT_EQ(client_.ForkSessions(forks).value()[0].length(), 32);

  EXPECT_TRUE(absl::IsInvalidArgument(session.Truncate(31)));
  ASSERT_TRUE(session.Truncate(10).ok());
  EXPECT_EQ(session.length(), 10);
  EXPECT_EQ(session.Append(0, Keys(1), Values(1)).value(), 11);

  EXPECT_EQ(client_.GetSession("a").value().lengths(0), 11);
  const auto listed = client_.ListSessions();
  ASSERT_TRUE(listed.ok());
  EXPECT_THAT(*listed, SizeIs(7));
  // Objects that are gone have deleted nothing.
  EXPECT_TRUE(session.Delete().ok());
  EXPECT_TRUE(session.Delete().ok());
  const absl::Status gone = session.Append(0, Keys(1), Values(1)).status();
  EXPECT_EQ(ErrorReason(gone), "SESSION_UNKNOWN");
  EXPECT_TRUE(absl::IsNotFound(client_.OpenSession("a").status()));
  EXPECT_EQ(ErrorReason(session.Refresh()), "SESSION_UNKNOWN");
  EXPECT_EQ(ErrorReason(session.Fork().status()), "SESSION_UNKNOWN");
  EXPECT_EQ(ErrorReason(session.AttendAsync(0, query).get().status()),
            "SESSION_UNKNOWN");
}

// Nobody told the handle that its session had ended.
TEST_F(SessionTest, AHandleTouchesNoOtherSessionOfItsId) {
  const auto expect_unknown = [](const absl::Status& status) {
    EXPECT_EQ(ErrorReason(status), "SESSION_UNKNOWN") << status;
  };
  using Use = std::function<absl::Status(ClientSession&)>;
  const Tensor key = Keys(1), value = Values(1), query = Query();
  const std::vector<Use> uses = {
      [&](ClientSession& s) { return s.Append(0, key, value).status(); },
      [&](ClientSession& s) {
        // In pieces of their own.
        return s.Append(0, Keys(100000), Values(100000)).status();
      },
      [&](ClientSession& s) { return s.Attend(0, query).status(); },
      [&](ClientSession& s) { return s.AttendAsync(0, query).get().status(); },
      [&](ClientSession& s) { return s.Step(0, key, value, query).status(); },
      [&](ClientSession& s) { return s.Fork().status(); },
      [&](ClientSession& s) { return s.ForkMany(2).status(); },
      [&](ClientSession& s) { return s.Truncate(0); },
      [&](ClientSession& s) { return s.Refresh(); },
  };
  for (const Use& use : uses) {
    ClientSession old = client_.CreateSession(Config(), "a").value();
    ClientSession deleted = client_.OpenSession("a").value();
    EXPECT_NE(old.incarnation(), 0);
    EXPECT_EQ(deleted.incarnation(), old.incarnation());
    ASSERT_TRUE(client_.DeleteSession("a").ok());
    ClientSession now = client_.CreateSession(Config(), "a").value();
    EXPECT_NE(now.incarnation(), old.incarnation());
    ASSERT_TRUE(now.Append(0, Keys(3), Values(3)).ok());
    expect_unknown(use(old));
    EXPECT_TRUE(deleted.Delete().ok());
    ASSERT_TRUE(now.Refresh().ok());
    EXPECT_EQ(now.length(), 3);
    ASSERT_TRUE(now.Delete().ok());
  }
}

TEST_F(SessionTest, NoLeaseIsRenewedOfAnotherSession) {
  relay_.TellLease(std::chrono::milliseconds(30));
  const ClientSession old = Create("a");
  ASSERT_TRUE(client_.DeleteSession("a").ok());
  ASSERT_TRUE(client_.CreateSession(Config(), "a").ok());
  // What fails there renews no lease.
  const Tensor wrong = RandomTensor({1, 1, 1});
  EXPECT_TRUE(WaitUntil([&] {
    return ErrorReason(old.Attend(0, wrong).status()) == "SESSION_UNKNOWN";
  }));
  const int asked = relay_.gets("a");
  const ClientSession other = Create("other");
  EXPECT_TRUE(WaitUntil([&] { return relay_.gets("other") >= 5; }));
  EXPECT_LE(relay_.gets("a"), asked + 1);
}

TEST_F(SessionTest, ListsAllPages) {
  for (int i = 0; i < 1010; ++i) {
    ASSERT_TRUE(client_.CreateSession(Config()).ok());
  }
  EXPECT_THAT(client_.ListSessions().value(), SizeIs(1010));
}

TEST_F(SessionTest, LeasesAreRenewedWhileTheObjectLives) {
  relay_.TellLease(std::chrono::milliseconds(30));
  std::optional<ClientSession> one(Create("one"));
  const ClientSession other = Create("other");
  const auto renewed = [&](const std::string& id, int times) {
    return WaitUntil([&] { return relay_.gets(id) >= times; });
  };
  EXPECT_TRUE(renewed("one", 3));
  EXPECT_TRUE(renewed("other", 3));
  one.reset();
  // At most one call is under way.
  const int most = relay_.gets("one") + 1;
  EXPECT_TRUE(renewed("other", relay_.gets("other") + 5));
  EXPECT_LE(relay_.gets("one"), most);
  // Without an answer it is tried again.
  relay_.AnswerGets({grpc::StatusCode::UNAVAILABLE, "no way"});
  EXPECT_TRUE(renewed("other", relay_.gets("other") + 5));
}

TEST_F(SessionTest, WhatIsUsedNeedsNoRenewal) {
  using Clock = std::chrono::steady_clock;
  constexpr std::chrono::milliseconds kLease(400);
  relay_.TellLease(kLease);
  ClientSession session = Create();
  const Clock::time_point begin = Clock::now();
  Clock::duration longest_pause{0};
  for (auto last = begin; last < begin + kLease;) {
    ASSERT_TRUE(session.Attend(0, Query()).ok());
    const Clock::time_point now = Clock::now();
    longest_pause = std::max(longest_pause, now - last);
    last = now;
  }
  // A third of the lease, less a quarter of that.
  if (longest_pause >= kLease / 4) GTEST_SKIP() << "the machine is too busy";
  EXPECT_EQ(relay_.gets(session.id()), 0);
}

TEST_F(SessionTest, ASessionThatExpiredFailsForGood) {
  relay_.TellLease(std::chrono::milliseconds(30));
  ClientSession session = Create("a");
  ASSERT_TRUE(session.Append(0, Keys(1), Values(1)).ok());
  relay_.AnswerGets(WithReason(grpc::StatusCode::NOT_FOUND, "SESSION_UNKNOWN"));
  // The server still knows it. What fails there renews no lease.
  const Tensor wrong = RandomTensor({1, 1, 1});
  absl::Status status;
  EXPECT_TRUE(WaitUntil([&] {
    status = session.Attend(0, wrong).status();
    return !absl::IsInvalidArgument(status);
  }));
  EXPECT_TRUE(absl::IsNotFound(status)) << status;
  EXPECT_EQ(ErrorReason(status), "SESSION_UNKNOWN");
  const int appends = relay_.appends;
  EXPECT_EQ(session.Append(0, Keys(1), Values(1)).status(), status);
  EXPECT_EQ(relay_.appends, appends);
  const Tensor query = Query();
  const StepItem item{.session = &session, .query = query};
  EXPECT_EQ(relayed_.Step({&item, 1})[0].status(), status);
}

TEST_F(SessionTest, MovesAndOutlivesItsClient) {
  auto client = std::make_unique<Client>(relay_.address());
  ClientSession session = client->CreateSession(Config(), "a").value();
  ClientSession other = client->CreateSession(Config(), "b").value();
  client.reset();
  other = std::move(session);
  EXPECT_EQ(other.id(), "a");
  EXPECT_TRUE(other.Step(0, Keys(1), Values(1), Query()).ok());
}

TEST_F(SessionTest, StepsFromManyThreads) {
  constexpr int kThreads = 12, kSteps = 30;
  std::vector<ClientSession> sessions;
  for (int i = 0; i < kThreads; ++i) sessions.push_back(Create());
  std::vector<Tensor> queries;
  for (int i = 0; i < kThreads; ++i) queries.push_back(Query());
  const Tensor key = Keys(1), value = Values(1);
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] {
      for (int step = 0; step < kSteps; ++step) {
        const auto result = sessions[i].Step(0, key, value, queries[i]);
        EXPECT_TRUE(result.ok()) << result.status();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const ClientSession& session : sessions) {
    EXPECT_EQ(session.length(), kSteps);
  }
  EXPECT_LE(relay_.streams, kThreads * kSteps);
}

TEST(SessionWithoutConnectionTest, TellsWhy) {
  ClientOptions options;
  options.tls_ca = "/no/such/file";
  const Client client("127.0.0.1:1", options);
  EXPECT_TRUE(absl::IsInvalidArgument(client.CreateSession({}).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(client.OpenSession("a").status()));
  EXPECT_TRUE(absl::IsInvalidArgument(client.GetSession("a").status()));
  EXPECT_TRUE(absl::IsInvalidArgument(client.ListSessions().status()));
  EXPECT_TRUE(absl::IsInvalidArgument(client.ForkSessions({}).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(client.DeleteSession("a")));
  const std::vector<StepItem> items(2);
  EXPECT_TRUE(absl::IsInvalidArgument(client.Step(items)[1].status()));
}

}  // namespace
}  // namespace attention
