// Attend over a shard of a sequence: partials that merge to the bits of one
// session, and what is refused.
#include "kernel/shard.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "attention/v1/session.pb.h"
#include "base/executor.h"
#include "kernel/accumulator.h"
#include "kernel/attention.h"
#include "tests/support/messages.h"
#include "tests/support/session_fixture.h"

namespace attention::testing {
namespace {

constexpr int64_t kQueryHeads = 2 * kHeads;

class ShardTest : public SessionFixture {
 protected:
  explicit ShardTest(
      const server::Options& options = TestServer::DefaultOptions())
      : SessionFixture(options) {}

  // The tokens of `append`, to the sessions "0", "1", ... that share them; and
  // to the session "all".
  void AppendAll(const ShardLayout& layout,
                 const v1::AppendKeyValuesRequest& append) {
    Append(append);
    ExpectOk();
    const int64_t tokens = append.key().shape(1);
    for (int64_t begin = 0; begin < tokens; begin += layout.run) {
      const int64_t end = std::min(begin + layout.run, tokens);
      v1::AppendKeyValuesRequest run;
      run.set_id(std::to_string(begin / layout.run % layout.count));
      *run.mutable_key() = Tokens(append.key(), begin, end);
      *run.mutable_value() = Tokens(append.value(), begin, end);
      Append(run);
      ExpectOk();
    }
  }
  static v1::Tensor Tokens(const v1::Tensor& all, int64_t begin, int64_t end) {
    v1::Tensor some = all;
    some.set_shape(1, end - begin);
    some.clear_data();
    const int64_t row = all.shape(2) * 4;
    for (int64_t head = 0; head < kHeads; ++head) {
      *some.mutable_data() += all.data().substr(
          (head * all.shape(1) + begin) * row, (end - begin) * row);
    }
    return some;
  }

  static v1::AttendRequest OfShard(const v1::AttendRequest& request,
                                   const ShardLayout& layout, int64_t index,
                                   int64_t length) {
    v1::AttendRequest of_shard = request;
    of_shard.set_id(std::to_string(index));
    v1::Shard& shard = *of_shard.mutable_shard();
    shard.set_index(index);
    shard.set_count(layout.count);
    shard.set_blocks_per_run(layout.run / kKeyBlock);
    shard.set_total_length(length);
    return of_shard;
  }

  // `selected` keys of `tokens` for each query of each head.
  static v1::Tensor Selection(int64_t queries, int64_t selected,
                              int64_t tokens) {
    const std::vector<int64_t> shape = {kQueryHeads, queries, selected};
    v1::Tensor indices = RandomTensor(v1::DATA_TYPE_INT64, shape, 1);
    std::mt19937 random(7);
    std::vector<int64_t> keys(kQueryHeads * queries * selected);
    for (int64_t& key : keys) {
      key = static_cast<int64_t>(random() % (tokens + 1)) - 1;
    }
    indices.set_data(keys.data(), keys.size() * sizeof(int64_t));
    return indices;
  }

  ShardLayout layout_{.count = 3, .run = 2 * kKeyBlock};
};

// What a client does with partials, which it has in the order of their blocks.
std::string Merged(const v1::AttendRequest& request, int64_t length,
                   const std::vector<v1::Partial>& partials) {
  AttentionInputs inputs;
  inputs.query.shape = {1, kQueryHeads, request.query().shape(1), kKeySize};
  inputs.query.data = request.query().data().data();
  inputs.key.shape = {1, kHeads, length, kKeySize};
  inputs.value.shape = {1, kHeads, length, kValueSize};
  AttentionOptions options;
  options.causal = Causal::kBottomRight;
  const AttentionPlan plan = PlanAttention(inputs, options).value();
  std::string output(plan.output.num_bytes(), '\0');
  Accumulator whole =
      Accumulator::Create(plan, {.output = output.data()}).value();
  Executor executor(0);
  for (const v1::Partial& partial : partials) {
    // Aligned, as the message's strings need not be.
    std::vector<float> max(partial.max().data().size() / 4);
    std::vector<float> sum(max.size());
    std::vector<float> values(partial.output().data().size() / 4);
    std::memcpy(max.data(), partial.max().data().data(), max.size() * 4);
    std::memcpy(sum.data(), partial.sum().data().data(), sum.size() * 4);
    std::memcpy(values.data(), partial.output().data().data(),
                values.size() * 4);
    attention::Partial merged;
    merged.block_begin = partial.block_begin();
    merged.block_end = partial.block_end();
    merged.rows = static_cast<int64_t>(max.size());
    merged.value_head_size = kValueSize;
    merged.max = max.data();
    merged.sum = sum.data();
    merged.output = values.data();
    EXPECT_TRUE(whole.Merge(merged, executor).ok());
  }
  EXPECT_TRUE(whole.Finish(executor).ok());
  return output;
}

TEST_F(ShardTest, PartialsMergeToTheBitsOfOneSession) {
  constexpr int64_t kTokens = 7 * 512 + 100;
  for (const char* id : {"all", "0", "1", "2"}) Create(id);
  AppendAll(layout_, AppendRequest("all", kTokens));
  for (const auto& [queries, selected] :
       std::vector<std::pair<int64_t, int64_t>>{
           {1, 0}, {20, 0}, {1, 50}, {20, 5}}) {
    v1::AttendRequest request = AttendRequest("all", queries);
    if (selected > 0) {
      *request.mutable_indices() = Selection(queries, selected, kTokens);
    }
    std::vector<v1::Partial> partials;
    for (int64_t index = 0; index < layout_.count; ++index) {
      const v1::AttendResponse got =
          Attend(OfShard(request, layout_, index, kTokens));
      ExpectOk();
      EXPECT_EQ(got.length(), kTokens);
      EXPECT_FALSE(got.has_output());
      EXPECT_TRUE(got.has_timing());
      EXPECT_EQ(got.partials_size(), index < 2 ? 3 : 2);
      for (const v1::Partial& partial : got.partials()) {
        EXPECT_EQ(partial.block_begin() / 2 % layout_.count, index);
        EXPECT_EQ(partial.max().shape_size(), 2);
        EXPECT_EQ(partial.max().shape(0), queries);
        EXPECT_EQ(partial.max().shape(1), kQueryHeads);
        EXPECT_EQ(partial.output().shape(2), kValueSize);
        partials.push_back(partial);
      }
    }
    std::sort(partials.begin(), partials.end(),
              [](const v1::Partial& a, const v1::Partial& b) {
                return a.block_begin() < b.block_begin();
              });
    const v1::AttendResponse whole = Attend(request);
    EXPECT_TRUE(Merged(request, kTokens, partials) == whole.output().data());
  }
}

class ShardWorkTest : public ShardTest {
 protected:
  static server::Options WithLittleWork() {
    server::Options options = TestServer::DefaultOptions();
    options.max_work = 8'000'000;
    return options;
  }
  ShardWorkTest() : ShardTest(WithLittleWork()) {}
};

// All keys that indices name may lie in one shard.
TEST_F(ShardWorkTest, OfIndicesIsNotThatOfAPart) {
  constexpr int64_t kTokens = 3 * 512;
  for (const char* id : {"all", "0", "1", "2"}) Create(id);
  AppendAll(layout_, AppendRequest("all", kTokens));
  v1::AttendRequest request =
      OfShard(AttendRequest("0", 20), layout_, 0, kTokens);
  *request.mutable_indices() = Selection(20, 1, kTokens);
  Attend(request);
  ExpectOk();
  // Whose third would be taken.
  *request.mutable_indices() = Selection(20, 500, kTokens);
  Attend(request);
  EXPECT_EQ(status_.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(DetailsOf(status_).reason, "LIMIT_EXCEEDED");
}

// Tokens past the length that is told are another append's.
TEST_F(ShardTest, LooksAtNoLaterTokens) {
  for (const char* id : {"all", "0", "1", "2"}) Create(id);
  AppendAll(layout_, AppendRequest("all", 300));
  const v1::AttendRequest request =
      OfShard(AttendRequest("all", 1), layout_, 0, 200);
  const v1::AttendResponse longer = Attend(request);
  ExpectOk();
  v1::TruncateSessionRequest truncate;
  truncate.set_id("0");
  truncate.set_length(200);
  Call(&v1::SessionService::Stub::TruncateSession, truncate);
  ExpectOk();
  EXPECT_EQ(Attend(request).partials(0).SerializeAsString(),
            longer.partials(0).SerializeAsString());
}

TEST_F(ShardTest, ShardsWithoutTokensAnswerNothing) {
  Create("2");
  const v1::AttendResponse got =
      Attend(OfShard(AttendRequest("2", 1), layout_, 2, 1024));
  ExpectOk();
  EXPECT_EQ(got.partials_size(), 0);
  EXPECT_EQ(got.length(), 1024);
}

TEST_F(ShardTest, RefusesWhatIsWrong) {
  for (const char* id : {"all", "0", "1", "2"}) Create(id);
  AppendAll(layout_, AppendRequest("all", 300));
  const v1::AttendRequest good =
      OfShard(AttendRequest("0", 1), layout_, 0, 300);
  Attend(good);
  ExpectOk();
  const auto refused = [&](const auto& change, const std::string& text) {
    v1::AttendRequest request = good;
    change(request);
    Attend(request);
    EXPECT_EQ(status_.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << text;
    EXPECT_EQ(status_.error_message(), text);
  };
  using Request = v1::AttendRequest;
  const auto shard = [&](auto set, int64_t number, const std::string& text) {
    refused([&](Request& r) { (r.mutable_shard()->*set)(number); }, text);
  };
  shard(&v1::Shard::set_count, 0, "shard.count: got 0, wanted 1 to 1024");
  shard(&v1::Shard::set_count, 1025, "shard.count: got 1025, wanted 1 to 1024");
  shard(&v1::Shard::set_index, 3, "shard.index: got 3, wanted 0 to 2");
  shard(&v1::Shard::set_index, -1, "shard.index: got -1, wanted 0 to 2");
  shard(&v1::Shard::set_blocks_per_run, 3,
        "shard.blocks_per_run: got 3, wanted a power of two");
  shard(&v1::Shard::set_blocks_per_run, 0,
        "shard.blocks_per_run: got 0, wanted 1 to 1048576");
  shard(&v1::Shard::set_total_length, -1,
        "shard.total_length: got -1, wanted 0 to 1099511627776");
  const std::string once =
      ": got it, wanted none with shard: who merges the partials adds it once";
  refused([](Request& r) { r.mutable_options()->add_sinks(1); },
          "options.sinks" + once);
  refused(
      [](Request& r) {
        *r.mutable_sinks() = RandomTensor(v1::DATA_TYPE_FLOAT32, {4, 1}, 1);
      },
      "sinks" + once);
  refused([](Request& r) { r.mutable_options()->set_return_log_sum_exp(true); },
          "options.return_log_sum_exp" + once);
  refused(
      [](Request& r) {
        r.mutable_options()->set_return_scores(v1::SCORES_RAW);
      },
      "options.return_scores" + once);
  refused(
      [](Request& r) {
        *r.mutable_mask() = RandomTensor(v1::DATA_TYPE_BOOL, {1, 301}, 1);
      },
      "mask.shape: got (1, 301), wanted at most 300 columns, one for each "
      "token "
      "of the shard");
  refused(
      [](Request& r) {
        *r.mutable_mask() = RandomTensor(v1::DATA_TYPE_BOOL, {7, 300}, 1);
      },
      "mask.shape: got (7, 300), wanted a shape that broadcasts to (1, 4, 1, "
      "300)");

  refused(
      [](Request& r) { r.set_mask_begin(256); },
      "mask_begin: got 256, wanted 0 with shard: the mask has the columns of "
      "its tokens");

  v1::CreateSessionRequest create;
  create.set_id("windowed");
  create.mutable_config()->set_kv_heads(kHeads);
  create.mutable_config()->set_head_size(kKeySize);
  create.mutable_config()->add_retain_window(300);
  Call(&v1::SessionService::Stub::CreateSession, create);
  ExpectOk();
  refused(
      [](Request& r) {
        r.set_id("windowed");
        r.mutable_shard()->set_total_length(0);
      },
      "shard: got it, wanted none: the layer keeps a window of its tokens "
      "only");

  v1::AttendRequest longer = good;
  longer.mutable_shard()->set_total_length(301);
  Attend(longer);
  ExpectError(grpc::StatusCode::ABORTED, "LENGTH_CONFLICT");
  EXPECT_NE(status_.error_message().find("300"), std::string::npos)
      << status_.error_message();
}

}  // namespace
}  // namespace attention::testing
