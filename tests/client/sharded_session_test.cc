// One sequence over several servers has the bits of one server; what happens
// when servers fail, and when they lie.
#include "attention/sharded_session.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "attention/client.h"
#include "attention/status.h"
#include "tests/client/session_relay.h"
#include "tests/support/test_server.h"

namespace attention {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::TestServer;
using testing::Transport;

constexpr int64_t kBlock = 256;
constexpr int64_t kHeads = 2, kQueryHeads = 4, kSize = 8, kValueSize = 4;

v1::SessionConfig Config(int64_t layers = 1) {
  v1::SessionConfig config;
  config.set_num_layers(layers);
  config.set_kv_heads(kHeads);
  config.set_head_size(kSize);
  config.set_value_head_size(kValueSize);
  return config;
}

std::string BytesOf(const Tensor& tensor) {
  return {reinterpret_cast<const char*>(tensor.bytes().data()),
          tensor.bytes().size()};
}

class ShardedSessionTest : public ::testing::Test {
 protected:
  int64_t Integer(int64_t least, int64_t most) {
    return std::uniform_int_distribution<int64_t>(least, most)(random_);
  }
  bool Chance(double share) {
    return std::uniform_real_distribution<double>(0, 1)(random_) < share;
  }
  Tensor Random(v1::DataType type, std::vector<int64_t> shape) {
    std::vector<double> numbers(
        static_cast<size_t>(ElementCount(shape).value()));
    std::uniform_real_distribution<double> uniform(-2, 2);
    for (double& number : numbers) {
      number = type == v1::DATA_TYPE_BOOL ? (random_() % 4 == 0 ? 0 : 1)
                                          : uniform(random_);
    }
    return Tensor::Rounded(type, numbers, std::move(shape));
  }
  Tensor Keys(int64_t n) {
    return Random(v1::DATA_TYPE_FLOAT32, {kHeads, n, kSize});
  }
  Tensor Values(int64_t n) {
    return Random(v1::DATA_TYPE_FLOAT32, {kHeads, n, kValueSize});
  }
  Tensor Query(int64_t s = 1) {
    return Random(v1::DATA_TYPE_FLOAT32, {kQueryHeads, s, kSize});
  }

  // Several clients of the one server: what makes a shard is its session.
  std::vector<Client> Clients(size_t count) {
    std::vector<Client> clients;
    for (size_t i = 0; i < count; ++i) {
      clients.emplace_back(server_.Channel(Transport::kInProcess));
    }
    return clients;
  }

  std::mt19937 random_{7};
  TestServer server_;
  Client one_{server_.Channel(Transport::kInProcess)};
};

// Everything that a query can ask, over every stored type.
TEST_F(ShardedSessionTest, HasTheBitsOfOneSession) {
  const v1::DataType types[] = {
      v1::DATA_TYPE_FLOAT32, v1::DATA_TYPE_FLOAT16, v1::DATA_TYPE_BFLOAT16,
      v1::DATA_TYPE_FLOAT64, v1::DATA_TYPE_INT8,    v1::DATA_TYPE_FLOAT8_E4M3,
  };
  int masks = 0, empty = 0, selected = 0;
  for (int round = 0; round < 300; ++round) {
    SCOPED_TRACE(round);
    const v1::DataType stored = types[round % 6];
    const bool scaled =
        stored == v1::DATA_TYPE_INT8 || stored == v1::DATA_TYPE_FLOAT8_E4M3;
    const v1::DataType type = scaled ? v1::DATA_TYPE_FLOAT32 : stored;
    v1::SessionConfig config = Config();
    config.set_data_type(stored);
    config.set_value_is_key_prefix(Chance(0.2));
    const bool has_values = !config.value_is_key_prefix();
    const auto count = static_cast<size_t>(Integer(1, 5));
    const int64_t run_blocks = std::vector<int64_t>{1, 2, 16}[random_() % 3];
    auto sharded = ShardedSession::Create(Clients(count), config,
                                          {.blocks_per_run = run_blocks});
    ASSERT_TRUE(sharded.ok()) << sharded.status();
    ClientSession whole = one_.CreateSession(config).value();
    int64_t length = 0;
    for (int64_t appends = Integer(1, 4); appends > 0; --appends) {
      const int64_t n = Chance(0.3)
                            ? Integer(1, 3)
                            : Integer(1, run_blocks == 16 ? 9000 : 2000);
      const Tensor key = Random(type, {kHeads, n, kSize});
      const Tensor value = Random(type, {kHeads, n, kValueSize});
      const auto values =
          has_values ? std::optional<TensorSpan>(value) : std::nullopt;
      ASSERT_TRUE(whole.Append(0, key, values).ok());
      const auto appended = sharded->Append(0, key, values);
      ASSERT_TRUE(appended.ok()) << appended.status();
      length += n;
      EXPECT_EQ(*appended, length);
    }
    for (size_t i = 0; i < count; ++i) {
      empty += sharded->TokensOf(static_cast<int64_t>(i)).empty() ? 1 : 0;
    }
    for (int asked = 0; asked < 3; ++asked) {
      const int64_t queries = Chance(0.5) ? 1 : Integer(2, 20);
      const Tensor query = Random(type, {kQueryHeads, queries, kSize});
      ShardedAttendOptions attend;
      v1::AttentionOptions& options = attend.options;
      options.set_return_log_sum_exp(Chance(0.7));
      if (Chance(0.3)) {
        attend.not_causal = true;
      } else if (Chance(0.2)) {
        options.set_causal(v1::CAUSAL_TOP_LEFT);
      }
      if (Chance(0.3)) options.mutable_window()->set_left(Integer(0, length));
      if (Chance(0.2)) options.mutable_window()->set_right(Integer(0, length));
      if (Chance(0.3)) options.set_softcap(3);
      if (Chance(0.2)) options.set_scale(0.3);
      if (Chance(0.2)) options.set_softmax_precision(v1::DATA_TYPE_FLOAT64);
      for (int64_t head = 0; head < kQueryHeads && asked == 1; ++head) {
        options.add_sinks(static_cast<double>(head) - 1);
      }
      for (int64_t head = 0; head < kQueryHeads && asked == 2; ++head) {
        options.add_alibi_slopes(0.01 * static_cast<double>(head));
      }
      std::optional<Tensor> mask;
      if (Chance(0.5)) {
        ++masks;
        const int64_t columns =
            Chance(0.3) && length > 2 ? Integer(2, length) : length;
        std::vector<int64_t> shape = {Chance(0.5) ? queries : 1, columns};
        if (Chance(0.3)) shape.insert(shape.begin(), kQueryHeads);
        mask = Random(Chance(0.5) ? v1::DATA_TYPE_BOOL : v1::DATA_TYPE_FLOAT32,
                      shape);
        attend.mask = *mask;
      }
      std::optional<Tensor> indices, sinks;
      if (Chance(0.3) && length > 0) {
        std::vector<int64_t> shape = {queries, Integer(0, 40)};
        if (Chance(0.4)) shape.insert(shape.begin(), kQueryHeads);
        std::vector<double> keys(static_cast<size_t>(*ElementCount(shape)));
        for (double& key : keys) {
          key = static_cast<double>(Integer(-1, length - 1));
        }
        indices = Tensor::Rounded(v1::DATA_TYPE_INT32, keys, shape);
        attend.indices = *indices;
        ++selected;
      }
      if (asked == 0) {
        sinks = Random(v1::DATA_TYPE_FLOAT32, {kQueryHeads, queries});
        attend.sinks = *sinks;
      }
      const auto wanted = whole.Attend(0, query, attend);
      ASSERT_TRUE(wanted.ok()) << wanted.status();
      const auto got = sharded->Attend(0, query, attend);
      ASSERT_TRUE(got.ok()) << got.status();
      EXPECT_EQ(got->output.shape(), wanted->output.shape());
      EXPECT_EQ(got->output.type(), wanted->output.type());
      ASSERT_TRUE(BytesOf(got->output) == BytesOf(wanted->output))
          << length << " tokens over " << count << " in runs of " << run_blocks
          << ": " << options.ShortDebugString();
      ASSERT_EQ(got->log_sum_exp.has_value(), wanted->log_sum_exp.has_value());
      if (got->log_sum_exp) {
        EXPECT_TRUE(BytesOf(*got->log_sum_exp) ==
                    BytesOf(*wanted->log_sum_exp));
      }
      EXPECT_EQ(got->length, length);
      EXPECT_THAT(got->missing, IsEmpty());
    }
    EXPECT_TRUE(sharded->Delete().ok());
    EXPECT_TRUE(whole.Delete().ok());
  }
  EXPECT_GT(masks, 200);
  EXPECT_GT(selected, 100);
  EXPECT_GT(empty, 50);
}

TEST_F(ShardedSessionTest, NoTokensAndNoQueries) {
  auto sharded = ShardedSession::Create(Clients(3), Config());
  ClientSession whole = one_.CreateSession(Config()).value();
  for (const int64_t tokens : {0, 5}) {
    if (tokens > 0) {
      const Tensor key = Keys(tokens), value = Values(tokens);
      ASSERT_TRUE(sharded->Append(0, key, value).ok());
      ASSERT_TRUE(whole.Append(0, key, value).ok());
    }
    for (const int64_t queries : {0, 2}) {
      const Tensor query = Query(queries);
      const auto got = sharded->Attend(0, query);
      ASSERT_TRUE(got.ok()) << got.status();
      EXPECT_EQ(BytesOf(got->output), BytesOf(whole.Attend(0, query)->output));
    }
  }
}

TEST_F(ShardedSessionTest, DealsOutRuns) {
  auto sharded = ShardedSession::Create(Clients(3), Config(2),
                                        {.id = "s", .blocks_per_run = 2});
  ASSERT_TRUE(sharded.ok()) << sharded.status();
  EXPECT_THAT(sharded->ids(), ElementsAre("s/0of3x2", "s/1of3x2", "s/2of3x2"));
  EXPECT_EQ(*sharded->Append(1, Keys(1700), Values(1700)), 1700);
  EXPECT_EQ(sharded->length(0), 0);
  EXPECT_EQ(sharded->length(1), 1700);
  EXPECT_EQ(sharded->length(2), -1);
  EXPECT_THAT(sharded->TokensOf(0, 1),
              ElementsAre(TokenRange{0, 512}, TokenRange{1536, 1700}));
  EXPECT_THAT(sharded->TokensOf(2, 1), ElementsAre(TokenRange{1024, 1536}));
  EXPECT_EQ(one_.GetSession("s/0of3x2")->lengths(1), 512 + 164);
  EXPECT_EQ(one_.GetSession("s/1of3x2")->lengths(1), 512);

  auto opened =
      ShardedSession::Open(Clients(3), {.id = "s", .blocks_per_run = 2});
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_EQ(opened->length(1), 1700);
  const Tensor query = Query();
  EXPECT_EQ(BytesOf(opened->Attend(1, query)->output),
            BytesOf(sharded->Attend(1, query)->output));
  EXPECT_EQ(*opened->Append(1, Keys(3), Values(3)), 1703);
  EXPECT_TRUE(sharded->Refresh().ok());
  EXPECT_EQ(sharded->length(1), 1703);
  // Tokens would have other places.
  for (const auto& [servers, blocks] : {std::pair(3, 1), {3, 4}, {2, 2}}) {
    EXPECT_TRUE(absl::IsNotFound(
        ShardedSession::Open(Clients(servers),
                             {.id = "s", .blocks_per_run = blocks})
            .status()));
  }
}

TEST_F(ShardedSessionTest, ForksAndTruncates) {
  auto sharded =
      ShardedSession::Create(Clients(3), Config(), {.blocks_per_run = 1});
  ClientSession whole = one_.CreateSession(Config()).value();
  const Tensor key = Keys(1000), value = Values(1000), query = Query(3);
  ASSERT_TRUE(sharded->Append(0, key, value).ok());
  ASSERT_TRUE(whole.Append(0, key, value).ok());
  auto fork = sharded->Fork();
  ASSERT_TRUE(fork.ok()) << fork.status();
  EXPECT_EQ(fork->length(), 1000);
  for (const int64_t length : {800, 300, 256}) {
    ASSERT_TRUE(fork->Truncate(length).ok());
    ASSERT_TRUE(whole.Truncate(length).ok());
    EXPECT_EQ(fork->length(), length);
    EXPECT_EQ(BytesOf(fork->Attend(0, query)->output),
              BytesOf(whole.Attend(0, query)->output));
  }
  const Tensor more = Keys(700), others = Values(700);
  ASSERT_TRUE(fork->Append(0, more, others).ok());
  ASSERT_TRUE(whole.Append(0, more, others).ok());
  EXPECT_EQ(BytesOf(fork->Attend(0, query)->output),
            BytesOf(whole.Attend(0, query)->output));
  EXPECT_EQ(sharded->length(), 1000);
  EXPECT_EQ(fork->Truncate(957).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(sharded->Delete().ok());
  EXPECT_TRUE(fork->Attend(0, query).ok());
  EXPECT_EQ(sharded->Append(0, key, value).status().code(),
            absl::StatusCode::kNotFound);
}

TEST_F(ShardedSessionTest, RefusesWhatIsWrong) {
  const auto field = [](const absl::Status& status) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    const auto violations = FieldViolations(status);
    return violations.empty() ? std::string(status.message())
                              : violations[0].field;
  };
  EXPECT_EQ(field(ShardedSession::Create({}, Config()).status()), "clients");
  EXPECT_EQ(
      field(ShardedSession::Create(Clients(1), Config(), {.blocks_per_run = 3})
                .status()),
      "blocks_per_run");
  EXPECT_EQ(field(ShardedSession::Open(Clients(1), {}).status()), "id");
  v1::SessionConfig windowed = Config();
  windowed.add_retain_window(300);
  EXPECT_EQ(field(ShardedSession::Create(Clients(2), windowed).status()),
            "config.retain_window");
  auto sharded = ShardedSession::Create(Clients(2), Config());
  const Tensor key = Keys(300), value = Values(300), query = Query();
  EXPECT_EQ(field(sharded->Append(0, value, value).status()), "key.shape");
  EXPECT_EQ(field(sharded->Append(0, key, key).status()), "value.shape");
  EXPECT_EQ(field(sharded->Append(0, key, std::nullopt).status()), "value");
  TensorSpan short_key = key;
  short_key.bytes = short_key.bytes.first(8);
  EXPECT_EQ(field(sharded->Append(0, short_key, value).status()), "key.data");
  EXPECT_EQ(sharded->Append(1, key, value).status().code(),
            absl::StatusCode::kOutOfRange);
  EXPECT_EQ(sharded->Attend(1, query).status().code(),
            absl::StatusCode::kOutOfRange);
  ASSERT_TRUE(sharded->Append(0, key, value).ok());

  const auto wrong = [&](const std::function<void(ShardedAttendOptions&)>& set,
                         const TensorSpan& with) {
    ShardedAttendOptions attend;
    set(attend);
    return field(sharded->Attend(0, with, attend).status());
  };
  const auto none = [](ShardedAttendOptions&) {};
  EXPECT_EQ(wrong(none, Random(v1::DATA_TYPE_FLOAT32, {3, 1, kSize})),
            "query.shape");
  EXPECT_EQ(wrong(none, Random(v1::DATA_TYPE_FLOAT32, {1, kSize})),
            "query.shape");
  EXPECT_EQ(wrong(none, Random(v1::DATA_TYPE_FLOAT16, {4, 1, kSize})),
            "query.data_type");
  EXPECT_EQ(wrong(
                [](ShardedAttendOptions& attend) {
                  attend.options.set_return_scores(v1::SCORES_RAW);
                },
                query),
            "options.return_scores");
  EXPECT_EQ(
      wrong([](ShardedAttendOptions& attend) { attend.options.add_sinks(1); },
            query),
      "options.sinks");
  EXPECT_EQ(
      wrong(
          [](ShardedAttendOptions& attend) { attend.options.set_kv_heads(2); },
          query),
      "options.kv_heads");
  EXPECT_EQ(wrong([](ShardedAttendOptions& attend) { attend.mask_begin = 256; },
                  query),
            "mask_begin");
  const Tensor mask = Random(v1::DATA_TYPE_BOOL, {1, 301});
  EXPECT_EQ(
      wrong([&](ShardedAttendOptions& attend) { attend.mask = mask; }, query),
      "mask.shape");
  std::byte place[3];
  EXPECT_THAT(
      wrong(
          [&](ShardedAttendOptions& attend) { attend.outputs.output = place; },
          query),
      HasSubstr("outputs.output: got 3 bytes, wanted 64"));
}

// Each shard behind a relay of its own.
class ShardedFaultTest : public ShardedSessionTest {
 protected:
  static constexpr int64_t kShards = 3;

  ShardedFaultTest() {
    for (int64_t i = 0; i < kShards; ++i) {
      relays_.push_back(std::make_unique<SessionRelay>(
          server_.Channel(Transport::kInProcess)));
      relayed_.emplace_back(relays_.back()->address());
    }
  }

  ShardedSession Create() {
    return ShardedSession::Create(relayed_, Config(), {.blocks_per_run = 1})
        .value();
  }
  // Appends to both.
  void Append(ShardedSession& sharded, ClientSession& whole, int64_t n) {
    const Tensor key = Keys(n), value = Values(n);
    ASSERT_TRUE(sharded.Append(0, key, value).ok());
    ASSERT_TRUE(whole.Append(0, key, value).ok());
  }
  void ExpectSame(const ShardedSession& sharded, const ClientSession& whole) {
    const Tensor query = Query(2);
    const auto got = sharded.Attend(0, query);
    ASSERT_TRUE(got.ok()) << got.status();
    EXPECT_EQ(BytesOf(got->output), BytesOf(whole.Attend(0, query)->output));
  }

  std::vector<std::unique_ptr<SessionRelay>> relays_;
  std::vector<Client> relayed_;
};

TEST_F(ShardedFaultTest, ALostServerIsToldWithItsTokens) {
  ShardedSession sharded = Create();
  ClientSession whole = one_.CreateSession(Config()).value();
  constexpr int64_t kTokens = 7 * kBlock + 10;
  Append(sharded, whole, kTokens);
  const Tensor query = Query(2);
  relays_[1]->Kill();
  const std::vector<TokenRange> missing = {{1 * kBlock, 2 * kBlock},
                                           {4 * kBlock, 5 * kBlock},
                                           {7 * kBlock, kTokens}};
  ShardedAttendOptions attend;
  attend.options.set_softcap(2);
  for (int i = 0; i < kQueryHeads; ++i) attend.options.add_sinks(0.5);
  const absl::Status lost = sharded.Attend(0, query, attend).status();
  EXPECT_EQ(lost.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(ErrorReason(lost), "SHARD_LOST");
  EXPECT_EQ(MissingTokens(lost), missing);
  EXPECT_THAT(std::string(lost.message()),
              HasSubstr("tokens [256, 512), [1024, 1280), [1792, 1802) are "
                        "missing: shard 1: "));
  EXPECT_THAT(MissingTokens(absl::UnavailableError("")), IsEmpty());

  // What is there, as if the rest were masked.
  attend.allow_missing = true;
  const auto got = sharded.Attend(0, query, attend);
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_EQ(got->missing, missing);
  std::vector<double> seen(kTokens, 1);
  for (const TokenRange& range : missing) {
    std::fill(seen.begin() + range.begin, seen.begin() + range.end, 0);
  }
  const Tensor mask = Tensor::Rounded(v1::DATA_TYPE_BOOL, seen, {1, kTokens});
  AttendOptions masked;
  masked.options = attend.options;
  masked.options.set_return_log_sum_exp(true);
  masked.mask = mask;
  const auto wanted = whole.Attend(0, query, masked);
  ASSERT_TRUE(wanted.ok()) << wanted.status();
  EXPECT_EQ(BytesOf(got->output), BytesOf(wanted->output));
  ASSERT_TRUE(got->log_sum_exp.has_value());
  EXPECT_EQ(BytesOf(*got->log_sum_exp), BytesOf(*wanted->log_sum_exp));

  for (const auto& relay : relays_) relay->Kill();
  EXPECT_EQ(sharded.Attend(0, query, attend).status().code(),
            absl::StatusCode::kUnavailable);
}

// Until the call is cancelled, or its time is up.
void Hang(const grpc::ServerContext& call) {
  while (!call.IsCancelled()) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

TEST_F(ShardedFaultTest, AServerThatDoesNotAnswerInTimeIsLost) {
  ShardedSession sharded = Create();
  ClientSession whole = one_.CreateSession(Config()).value();
  Append(sharded, whole, 600);
  const CallOptions in_time = {.timeout = absl::Seconds(3)};
  const Tensor query = Query();
  relays_[1]->BeforeCalls(Hang);
  const absl::Status lost = sharded.Attend(0, query, {}, in_time).status();
  EXPECT_EQ(ErrorReason(lost), "SHARD_LOST") << lost;
  EXPECT_EQ(lost.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(MissingTokens(lost), ElementsAre(TokenRange{256, 512}));
  ShardedAttendOptions attend;
  attend.allow_missing = true;
  const auto rest = sharded.Attend(0, query, attend, in_time);
  ASSERT_TRUE(rest.ok()) << rest.status();
  EXPECT_THAT(rest->missing, ElementsAre(TokenRange{256, 512}));
  // No server is at fault where none had the time.
  for (const auto& relay : relays_) relay->BeforeCalls(Hang);
  EXPECT_TRUE(absl::IsDeadlineExceeded(
      sharded.Attend(0, query, attend, {.timeout = absl::Milliseconds(100)})
          .status()));
  for (const auto& relay : relays_) relay->BeforeCalls(nullptr);
  ExpectSame(sharded, whole);
}

// Each server waits for the others' calls: one after another none would answer.
TEST_F(ShardedFaultTest, AllServersAreAskedAtOnce) {
  std::atomic<int> calls{0};
  const auto meet = [&](const grpc::ServerContext& call) {
    ++calls;
    while (calls < kShards && !call.IsCancelled()) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  };
  for (const auto& relay : relays_) relay->BeforeCalls(meet);
  const ShardedOptions named = {.id = "s", .blocks_per_run = 1};
  const CallOptions in_time = {.timeout = absl::Seconds(20)};
  auto sharded = ShardedSession::Create(relayed_, Config(), named, in_time);
  ASSERT_TRUE(sharded.ok()) << sharded.status();
  calls = 0;
  const auto opened = ShardedSession::Open(relayed_, named, in_time);
  ASSERT_TRUE(opened.ok()) << opened.status();
  calls = 0;
  const auto fork = sharded->Fork("fork", in_time);
  ASSERT_TRUE(fork.ok()) << fork.status();
  calls = 0;
  EXPECT_EQ(sharded->Truncate(0, in_time), absl::OkStatus());
  calls = 0;
  EXPECT_EQ(sharded->Refresh(in_time), absl::OkStatus());
  calls = 0;
  EXPECT_EQ(sharded->Delete(in_time), absl::OkStatus());
  for (const auto& relay : relays_) relay->BeforeCalls(nullptr);
}

TEST_F(ShardedFaultTest, ACreationThatFailsLeavesNothing) {
  relays_[1]->Kill();
  const auto sharded =
      ShardedSession::Create(relayed_, Config(), {.blocks_per_run = 1});
  EXPECT_EQ(sharded.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(sharded.status().message()), HasSubstr("shard 1: "));
  EXPECT_EQ(server_.server().sessions().totals().sessions, 0);
}

// A server that was started anew has lost its sessions.
TEST_F(ShardedFaultTest, ALostSessionIsALostServer) {
  ShardedSession sharded = Create();
  ASSERT_TRUE(sharded.Append(0, Keys(600), Values(600)).ok());
  ASSERT_TRUE(one_.DeleteSession(sharded.ids()[2]).ok());
  for (int i = 0; i < 2; ++i) {
    const absl::Status lost = sharded.Attend(0, Query()).status();
    EXPECT_EQ(lost.code(), absl::StatusCode::kUnavailable) << lost;
    EXPECT_THAT(MissingTokens(lost), ElementsAre(TokenRange{512, 600}));
  }
}

// Also where somebody has made one of the same id since.
TEST_F(ShardedFaultTest, ASessionMadeAnewIsALostServer) {
  ShardedSession sharded = Create();
  ASSERT_TRUE(sharded.Append(0, Keys(600), Values(600)).ok());
  const std::string id = sharded.ids()[1];
  ASSERT_TRUE(one_.DeleteSession(id).ok());
  ClientSession other = one_.CreateSession(sharded.config(), id).value();
  ASSERT_TRUE(other.Append(0, Keys(256), Values(256)).ok());
  const absl::Status lost = sharded.Attend(0, Query()).status();
  EXPECT_EQ(lost.code(), absl::StatusCode::kUnavailable) << lost;
  EXPECT_THAT(MissingTokens(lost), ElementsAre(TokenRange{256, 512}));
  EXPECT_FALSE(sharded.Append(0, Keys(600), Values(600)).ok());
  ASSERT_TRUE(other.Refresh().ok());
  EXPECT_EQ(other.length(), 256);
}

// Errors that are no loss stay what they are.
TEST_F(ShardedFaultTest, AShorterSessionIsAConflict) {
  ShardedSession sharded = Create();
  ASSERT_TRUE(sharded.Append(0, Keys(600), Values(600)).ok());
  ClientSession other = one_.OpenSession(sharded.ids()[1]).value();
  ASSERT_TRUE(other.Truncate(255).ok());
  ShardedAttendOptions attend;
  attend.allow_missing = true;
  const absl::Status status = sharded.Attend(0, Query(), attend).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kAborted) << status;
  EXPECT_EQ(ConflictLength(status), 255);
  EXPECT_THAT(std::string(status.message()), HasSubstr("shard 1: "));
}

TEST_F(ShardedFaultTest, AnAppendIsDoneOnceHoweverItFails) {
  for (int fault = 0; fault < 4; ++fault) {
    SCOPED_TRACE(fault);
    ShardedSession sharded = Create();
    ClientSession whole = one_.CreateSession(Config()).value();
    Append(sharded, whole, 300);
    const Tensor key = Keys(1000), value = Values(1000);
    switch (fault) {
      case 0:  // nothing of one part
        relays_[1]->refuse_appends = 1;
        break;
      case 1:  // the first piece of one part, not the second
        relays_[1]->appends_before_refusal = 1;
        relays_[1]->refuse_appends = 1;
        break;
      case 2:  // done, but nobody hears of it, however often asked
        relays_[0]->lose_answers = kDefaultMaxAttempts;
        break;
      case 3:
        relays_[2]->lose_answers = kDefaultMaxAttempts;
        relays_[0]->refuse_appends = 1;
    }
    const absl::Status failed = sharded.Append(0, key, value).status();
    EXPECT_FALSE(failed.ok());
    EXPECT_THAT(std::string(failed.message()),
                HasSubstr("the append is unfinished"));
    EXPECT_EQ(sharded.length(), 300);
    // Nothing of it shows.
    ExpectSame(sharded, whole);
    const absl::Status others = sharded.Append(0, Keys(1000), value).status();
    EXPECT_EQ(others.code(), absl::StatusCode::kAborted);
    EXPECT_EQ(ErrorReason(others), "APPEND_UNFINISHED");
    EXPECT_EQ(sharded.Append(0, Keys(1), Values(1)).status().code(),
              absl::StatusCode::kAborted);
    EXPECT_EQ(ErrorReason(sharded.Fork().status()), "APPEND_UNFINISHED");
    ASSERT_TRUE(sharded.Refresh().ok());
    EXPECT_EQ(sharded.length(), 300);
    const auto length = sharded.Append(0, key, value);
    ASSERT_TRUE(length.ok()) << length.status();
    EXPECT_EQ(*length, 1300);
    ASSERT_TRUE(whole.Append(0, key, value).ok());
    ExpectSame(sharded, whole);
    Append(sharded, whole, 2);
    ExpectSame(sharded, whole);
  }
}

TEST_F(ShardedFaultTest, AnUnfinishedAppendCanBeGivenUp) {
  ShardedSession sharded = Create();
  ClientSession whole = one_.CreateSession(Config()).value();
  Append(sharded, whole, 300);
  relays_[1]->refuse_appends = 1;
  EXPECT_FALSE(sharded.Append(0, Keys(1000), Values(1000)).ok());
  ASSERT_TRUE(sharded.Truncate(300).ok());
  Append(sharded, whole, 500);
  ExpectSame(sharded, whole);
}

// Where no server has anything of it, there is nothing to finish.
TEST_F(ShardedFaultTest, ARefusedAppendLeavesNothing) {
  ShardedSession sharded = Create();
  ClientSession whole = one_.CreateSession(Config()).value();
  relays_[0]->refuse_appends = 1;
  const absl::Status refused = sharded.Append(0, Keys(9), Values(9)).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.message()),
              ::testing::Not(HasSubstr("unfinished")));
  Append(sharded, whole, 20);
  ExpectSame(sharded, whole);
}

TEST_F(ShardedFaultTest, ATruncationThatFailedIsMadeUpFor) {
  ShardedSession sharded = Create();
  ClientSession whole = one_.CreateSession(Config()).value();
  Append(sharded, whole, 1000);
  relays_[1]->refuse_truncations = kDefaultMaxAttempts;
  const absl::Status status = sharded.Truncate(300);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_EQ(sharded.length(), 300);
  ASSERT_TRUE(whole.Truncate(300).ok());
  ExpectSame(sharded, whole);
  Append(sharded, whole, 900);
  ExpectSame(sharded, whole);
}

TEST_F(ShardedFaultTest, ForksAndRefreshesBringNothingBack) {
  ShardedSession sharded = Create();
  ClientSession whole = one_.CreateSession(Config()).value();
  Append(sharded, whole, 1000);
  relays_[1]->refuse_truncations = kDefaultMaxAttempts;
  EXPECT_FALSE(sharded.Truncate(300).ok());
  ASSERT_TRUE(whole.Truncate(300).ok());
  relays_[1]->refuse_truncations = kDefaultMaxAttempts;
  EXPECT_EQ(sharded.Fork().status().code(), absl::StatusCode::kUnavailable);
  relays_[1]->refuse_truncations = kDefaultMaxAttempts;
  EXPECT_EQ(sharded.Refresh().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(sharded.length(), 300);
  absl::StatusOr<ShardedSession> fork = sharded.Fork();
  ASSERT_TRUE(fork.ok()) << fork.status();
  EXPECT_EQ(fork->length(), 300);
  ExpectSame(*fork, whole);
  ASSERT_TRUE(sharded.Refresh().ok());
  EXPECT_EQ(sharded.length(), 300);
  Append(*fork, whole, 900);
  ExpectSame(*fork, whole);
}

TEST_F(ShardedFaultTest, SessionsThatLieAreRefused) {
  const auto code = [&](std::function<void(v1::Session&)> lie) {
    relays_[1]->ChangeCreated(std::move(lie));
    return ShardedSession::Create(relayed_, Config(), {.blocks_per_run = 1})
        .status()
        .code();
  };
  using Session = v1::Session;
  EXPECT_EQ(code([](Session& s) { s.mutable_config()->set_num_layers(-1); }),
            absl::StatusCode::kInternal);
  EXPECT_EQ(code([](Session& s) { s.mutable_config()->set_kv_heads(0); }),
            absl::StatusCode::kInternal);
  EXPECT_EQ(code([](Session& s) { s.mutable_config()->set_head_size(9); }),
            absl::StatusCode::kFailedPrecondition);
  // Lengths from nowhere.
  for (const int64_t length :
       {int64_t{-5}, int64_t{7}, std::numeric_limits<int64_t>::max()}) {
    for (const auto& relay : relays_) {
      relay->ChangeCreated([=](Session& s) { s.set_lengths(0, length); });
    }
    auto sharded =
        ShardedSession::Create(relayed_, Config(), {.blocks_per_run = 1});
    ASSERT_TRUE(sharded.ok()) << sharded.status();
    EXPECT_GE(sharded->length(), 0);
    EXPECT_EQ(sharded->Attend(0, Query()).ok(), length < 0);
  }
}

// Nothing that a server answers is trusted.
TEST_F(ShardedFaultTest, AnswersThatLieAreRefused) {
  ShardedSession sharded = Create();
  ASSERT_TRUE(sharded.Append(0, Keys(1400), Values(1400)).ok());
  const Tensor query = Query(2);
  using Answer = v1::AttendResponse;
  const std::vector<std::function<void(Answer&)>> lies = {
      [](Answer& a) { a.clear_partials(); },
      [](Answer& a) { a.mutable_partials()->RemoveLast(); },
      [](Answer& a) { *a.add_partials() = a.partials(0); },
      [](Answer& a) { a.mutable_partials()->SwapElements(0, 1); },
      [](Answer& a) { *a.mutable_partials(1) = a.partials(0); },
      [](Answer& a) { a.set_length(1399); },
      [](Answer& a) { a.mutable_partials(0)->set_block_begin(-1); },
      [](Answer& a) { a.mutable_partials(0)->set_block_end(1 << 30); },
      [](Answer& a) { a.mutable_partials(0)->clear_max(); },
      [](Answer& a) { a.mutable_partials(0)->mutable_sum()->clear_data(); },
      [](Answer& a) {
        a.mutable_partials(0)->mutable_output()->mutable_data()->pop_back();
      },
      [](Answer& a) {
        a.mutable_partials(0)->mutable_output()->mutable_data()->append(4, 'x');
      },
      [](Answer& a) {
        a.mutable_partials(0)->mutable_output()->set_shape(2, 1);
      },
      [](Answer& a) {
        a.mutable_partials(0)->mutable_max()->set_shape(
            0, std::numeric_limits<int64_t>::max());
      },
      [](Answer& a) { a.mutable_partials(0)->mutable_max()->add_shape(1); },
      [](Answer& a) {
        a.mutable_partials(0)->mutable_max()->set_data_type(
            v1::DATA_TYPE_INT32);
      },
      [](Answer& a) {
        a.mutable_partials(0)->mutable_max()->add_float_values(1);
      },
      [](Answer& a) {
        a.mutable_partials(0)->mutable_max()->mutable_shared_memory();
      },
      [](Answer& a) {
        a.mutable_output()->mutable_data()->append(1 << 20, 'x');
      },
  };
  ShardedAttendOptions attend;
  attend.allow_missing = true;
  for (size_t i = 0; i < lies.size(); ++i) {
    relays_[1]->ChangeAttends(lies[i]);
    const absl::Status status = sharded.Attend(0, query, attend).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInternal) << i << status;
  }
  // Numbers are only numbers.
  relays_[1]->ChangeAttends([](Answer& a) {
    std::string& max = *a.mutable_partials(0)->mutable_max()->mutable_data();
    std::fill(max.begin(), max.end(), '\xff');
  });
  EXPECT_TRUE(sharded.Attend(0, query, attend).ok());
  relays_[1]->ChangeAttends(nullptr);
  EXPECT_TRUE(sharded.Attend(0, query, attend).ok());
}

}  // namespace
}  // namespace attention
