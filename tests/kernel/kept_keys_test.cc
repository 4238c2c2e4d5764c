// Keys in blocks without the first ones, which no query sees: the bits are
// those of all keys. The same of a mask without their columns.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "base/executor.h"
#include "kernel/accumulator.h"
#include "kernel/attention.h"
#include "kernel/key_values.h"
#include "tests/support/run_kernel.h"

namespace attention {
namespace {

constexpr int64_t kHeads = 2;  // Hkv
constexpr int64_t kQueryHeads = 4;
constexpr int64_t kSize = 40;

ConstTensorView Float32(const Shape& shape, const std::vector<float>& data) {
  ConstTensorView view;
  view.shape = shape;
  view.data = data.data();
  return view;
}

std::vector<float> Numbers(int64_t count, std::mt19937& random) {
  std::vector<float> numbers(count);
  for (float& x : numbers) x = std::normal_distribution<float>()(random);
  return numbers;
}

// [tokens, Hkv, size] as a request has them and as blocks: those before `begin`
// are not there.
struct Keys {
  Keys(int64_t tokens, int64_t begin, std::mt19937& random)
      : key(Numbers(tokens * kHeads * kSize, random)),
        value(Numbers(tokens * kHeads * kSize, random)) {
    for (int64_t token = begin; token < tokens; token += kKeyBlock) {
      KeyValueView::Block& block = blocks.emplace_back();
      block.key = &key[token * kHeads * kSize];
      block.value = &value[token * kHeads * kSize];
      block.key_head_stride = block.value_head_stride = kSize;
    }
    view.begin = begin;
    view.length = tokens - begin;
    view.key_row_stride = view.value_row_stride = kHeads * kSize;
    view.blocks = blocks;
  }

  std::vector<float> key, value;
  std::vector<KeyValueView::Block> blocks;
  KeyValueView view;
};

struct Request {
  Request(int64_t tokens, int64_t queries, const Keys& keys,
          std::mt19937& random)
      : query(Numbers(queries * kQueryHeads * kSize, random)) {
    inputs.query = Float32({1, queries, kQueryHeads, kSize}, query);
    inputs.key = Float32({1, tokens, kHeads, kSize}, keys.key);
    inputs.value = Float32({1, tokens, kHeads, kSize}, keys.value);
    options.layout = Layout::kBSHD;
    options.causal = Causal::kBottomRight;
    options.return_log_sum_exp = true;
  }

  std::vector<float> query;
  AttentionInputs inputs;
  AttentionOptions options;
};

std::string Answer(const AttentionPlan& plan, int threads) {
  std::vector<char> output(plan.output.num_bytes());
  std::vector<char> lse(plan.log_sum_exp->num_bytes());
  Executor executor(threads - 1);
  EXPECT_EQ(
      RunAttention(plan, {.output = output.data(), .log_sum_exp = lse.data()},
                   executor),
      absl::OkStatus());
  return std::string(output.data(), output.size()) +
         std::string(lse.data(), lse.size());
}

TEST(KeptKeysTest, HaveTheBitsOfAllKeys) {
  std::mt19937 random(1);
  for (int64_t tokens : {300, 512, 1100, 3001}) {
    for (int64_t queries : {1, 5, 40}) {
      for (int64_t left : {0, 31, 255, 700}) {
        const int64_t seen = std::max<int64_t>(0, tokens - queries - left);
        const int64_t begin = seen / kKeyBlock * kKeyBlock;
        SCOPED_TRACE(absl::StrCat(tokens, " tokens from ", begin, ", ", queries,
                                  " queries, window ", left));
        Keys keys(tokens, begin, random);
        Request request(tokens, queries, keys, random);
        AttentionOptions& options = request.options;
        options.window_left = left;
        if (tokens % 2 == 0) options.alibi_slopes = {0.1, 0.2, 0.3, 0.5};
        if (queries == 5) options.sinks = {1, 0, -1, 2};
        std::vector<float> mask = Numbers(queries * tokens, random);
        const bool masked = left == 31 || left == 700;
        if (masked) {
          for (float& x : mask) {
            if (x > 1) x = -std::numeric_limits<float>::infinity();
          }
          request.inputs.mask = Float32({queries, tokens}, mask);
        }
        const auto wanted = PlanAttention(request.inputs, options);
        ASSERT_TRUE(wanted.ok()) << wanted.status();
        EXPECT_EQ(FirstVisibleKey(*wanted), seen);
        const std::string bits = Answer(*wanted, 1);

        request.inputs.key.data = request.inputs.value.data = nullptr;
        std::vector<float> columns;
        if (masked) {
          for (int64_t row = 0; row < queries; ++row) {
            columns.insert(columns.end(), &mask[row * tokens + begin],
                           &mask[row * tokens] + tokens);
          }
          request.inputs.mask = Float32({queries, tokens - begin}, columns);
          request.inputs.mask_begin = begin;
        }
        const auto plan = PlanAttention(request.inputs, options);
        ASSERT_TRUE(plan.ok()) << plan.status();
        const auto kept = WithKeys(*plan, absl::MakeConstSpan(&keys.view, 1));
        ASSERT_TRUE(kept.ok()) << kept.status();
        for (int threads : {1, 3}) EXPECT_TRUE(Answer(*kept, threads) == bits);
        for (const std::string& target : test::AllSimdTargets()) {
          const test::ScopedSimdTarget scope(target);
          EXPECT_TRUE(Answer(*kept, 1) == bits) << target;
        }
      }
    }
  }
}

// Against a look at every query, also where some see nothing.
TEST(KeptKeysTest, BeginWithTheFirstKeyThatAnyQuerySees) {
  std::mt19937 random(1);
  const auto number = [&](int64_t least, int64_t most) {
    return std::uniform_int_distribution<int64_t>(least, most)(random);
  };
  for (int i = 0; i < 2000; ++i) {
    const int64_t tokens = number(0, 12);
    const int64_t queries = number(0, 12);
    const std::vector<float> query(queries * kQueryHeads * kSize);
    AttentionInputs inputs;
    inputs.query = Float32({1, queries, kQueryHeads, kSize}, query);
    inputs.key = Float32({1, tokens, kHeads, kSize}, {});
    inputs.value = inputs.key;
    AttentionOptions options;
    options.layout = Layout::kBSHD;
    options.causal = static_cast<Causal>(number(0, 2));
    options.window_left = number(-1, 6);
    options.window_right = number(-1, 3);
    int64_t first = tokens;
    for (int64_t q = queries - 1; q >= 0; --q) {
      const int64_t position =
          options.causal == Causal::kBottomRight ? q + tokens - queries : q;
      for (int64_t key = tokens - 1; key >= 0; --key) {
        const bool seen =
            (options.causal == Causal::kNone || key <= position) &&
            (options.window_left < 0 ||
             key >= position - options.window_left) &&
            (options.window_right < 0 ||
             key <= position + options.window_right);
        if (seen) first = std::min(first, key);
      }
    }
    const auto plan = PlanAttention(inputs, options);
    ASSERT_TRUE(plan.ok()) << plan.status();
    EXPECT_EQ(FirstVisibleKey(*plan), first);
  }
}

TEST(KeptKeysTest, LackNoneThatIsSeen) {
  std::mt19937 random(1);
  Keys keys(1000, 512, random);
  Request request(1000, 3, keys, random);
  AttentionOptions& options = request.options;
  options.window_left = 1000 - 3 - 512;
  const auto with_keys = [&](const KeyValueView& view) {
    const auto plan = PlanAttention(request.inputs, options);
    EXPECT_TRUE(plan.ok());
    return WithKeys(*plan, absl::MakeConstSpan(&view, 1)).status();
  };
  EXPECT_EQ(with_keys(keys.view), absl::OkStatus());
  KeyValueView wrong = keys.view;
  wrong.length -= 1;
  EXPECT_TRUE(absl::IsInvalidArgument(with_keys(wrong)));
  wrong = keys.view;
  wrong.begin += 1;
  wrong.length -= 1;
  EXPECT_TRUE(absl::IsInvalidArgument(with_keys(wrong)));
  wrong.begin = -256;
  wrong.length = 1256;
  EXPECT_TRUE(absl::IsInvalidArgument(with_keys(wrong)));
  options.return_scores = Scores::kRaw;  // Of all keys.
  EXPECT_TRUE(absl::IsInvalidArgument(with_keys(keys.view)));
  options.return_scores = Scores::kNone;
  options.window_left += 1;
  EXPECT_TRUE(absl::IsInvalidArgument(with_keys(keys.view)));
}

TEST(KeptKeysTest, AMaskBeginsBeforeWhatIsSeen) {
  std::mt19937 random(1);
  Keys keys(1000, 0, random);
  Request request(1000, 3, keys, random);
  const std::vector<float> mask(1000);
  AttentionOptions& options = request.options;
  options.window_left = 1000 - 3 - 512;
  const auto plan = [&](int64_t begin, int64_t columns) {
    request.inputs.mask = Float32({columns}, mask);
    request.inputs.mask_begin = begin;
    return PlanAttention(request.inputs, options);
  };
  const auto field_of = [&](int64_t begin, int64_t columns) {
    return ErrorField(plan(begin, columns).status());
  };
  EXPECT_EQ(plan(512, 488).status(), absl::OkStatus());
  EXPECT_EQ(plan(512, 100).status(), absl::OkStatus());
  EXPECT_EQ(field_of(512, 489), "mask.shape");
  EXPECT_EQ(field_of(511, 488), "mask_begin");
  EXPECT_EQ(field_of(768, 100), "mask_begin");
  EXPECT_EQ(field_of(-256, 100), "mask_begin");
  EXPECT_EQ(Accumulator::Create(*plan(512, 488), {}).status().code(),
            absl::StatusCode::kInvalidArgument);
  options.return_scores = Scores::kBiased;
  EXPECT_EQ(field_of(512, 488), "mask_begin");
  options.return_scores = Scores::kNone;
  request.inputs.mask.reset();
  EXPECT_EQ(ErrorField(PlanAttention(request.inputs, options).status()),
            "mask_begin");
}

}  // namespace
}  // namespace attention
