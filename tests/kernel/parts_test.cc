// RunAttentionPart and MergeAttentionParts: any block-aligned parts of the keys
// merge to the bits of the whole.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "kernel/attention.h"
#include "tests/support/attention_case.h"
#include "tests/support/run_kernel.h"
#include "tests/support/tensor.h"

namespace attention::test {
namespace {

// Ascending keys at which parts begin and end, the first 0 and the last `keys`.
std::vector<int64_t> RandomCuts(Random& random, int64_t keys) {
  std::vector<int64_t> cuts = {0};
  while (cuts.back() < keys) {
    const int64_t blocks = random.Pick<int64_t>({0, 1, 1, 2, 3, 5});
    cuts.push_back(std::min(keys, cuts.back() + blocks * kKeyBlock));
  }
  return cuts;
}

// `request` with every key and value outside [begin, end) made NaN.
AttentionCase OnlyKeys(const AttentionCase& request, int64_t begin,
                       int64_t end) {
  AttentionCase result = request;
  for (Tensor* tensor : {&result.key, &result.value}) {
    const int64_t columns = tensor->shape()[3];
    const int64_t keys = tensor->shape()[2];
    for (int64_t i = 0; i < tensor->size(); ++i) {
      const int64_t key = i / columns % keys;
      if (key < begin || key >= end) tensor->Set(i, NAN);
    }
  }
  return result;
}

KernelResult Merged(const AttentionCase& request,
                    const std::vector<AttentionPart>& parts,
                    Executor& executor) {
  const AttentionPlan plan =
      PlanAttention(request.inputs(), request.options).value();
  KernelResult result;
  AttentionOutputs outputs;
  result.output = Tensor(plan.output.type, plan.output.shape);
  outputs.output = result.output.data();
  const auto make = [](const std::optional<TensorSpec>& spec,
                       std::optional<Tensor>* tensor, void** data) {
    if (!spec) return;
    tensor->emplace(spec->type, spec->shape);
    *data = (*tensor)->data();
  };
  make(plan.log_sum_exp, &result.log_sum_exp, &outputs.log_sum_exp);
  make(plan.scores, &result.scores, &outputs.scores);
  make(plan.present_key, &result.present_key, &outputs.present_key);
  make(plan.present_value, &result.present_value, &outputs.present_value);
  const absl::Status status =
      MergeAttentionParts(plan, parts, outputs, executor);
  EXPECT_TRUE(status.ok()) << status;
  return result;
}

// Parts computed by other plans over other memory, other threads and, unless
// the math is FAST, other SIMD targets.
void ExpectPartsMerge(Random& random, const AttentionCase& request,
                      int64_t keys) {
  const std::vector<std::string> targets =
      request.options.math_mode == MathMode::kFast
          ? std::vector<std::string>{std::string(SimdTarget())}
          : AllSimdTargets();
  const KernelResult expected = RunKernel(request, 2);
  for (int round = 0; round < 3; ++round) {
    const std::vector<int64_t> cuts = RandomCuts(random, keys);
    std::vector<AttentionPart> parts;
    for (size_t i = 0; i + 1 < cuts.size(); ++i) {
      AttentionCase own = request;
      if (request.options.layout != Layout::kRagged) {
        own = OnlyKeys(request, cuts[i], cuts[i + 1]);
      }
      const ScopedSimdTarget target(random.Pick(targets));
      Executor executor(random.Pick<int>({0, 1, 7}));
      const absl::StatusOr<AttentionPart> part =
          RunAttentionPart(PlanAttention(own.inputs(), own.options).value(),
                           cuts[i], cuts[i + 1], executor);
      ASSERT_TRUE(part.ok()) << part.status();
      parts.push_back(*part);
    }
    Executor executor(1);
    ASSERT_TRUE(SameBits(Merged(request, parts, executor), expected))
        << parts.size() << " parts of " << request.ToString();
  }
}

TEST(PartsTest, MergeToTheBitsOfTheWhole) {
  for (uint64_t seed = 0; seed < 60; ++seed) {
    Random random(seed);
    const Sizes sizes = {random.Integer(1, 2),
                         random.Pick<int64_t>({2, 4}),
                         2,
                         random.Pick<int64_t>({1, 5, 120}),
                         random.Pick<int64_t>({1, 255, 256, 257, 1300, 2600}),
                         random.Pick<int64_t>({4, 17}),
                         random.Pick<int64_t>({3, 16})};
    AttentionCase request = NormalCase(random, sizes, kKinds[seed % 5]);
    AttentionOptions& options = request.options;
    options.return_log_sum_exp = true;
    options.causal = random.Pick<Causal>(
        {Causal::kNone, Causal::kTopLeft, Causal::kBottomRight});
    if (random.Chance(0.4)) options.window_left = random.Integer(0, 700);
    if (random.Chance(0.4)) options.softcap = 2;
    if (random.Chance(0.4)) options.sinks.assign(sizes.query_heads, 0.5);
    if (random.Chance(0.4)) options.alibi_slopes.assign(sizes.query_heads, 0.1);
    if (random.Chance(0.4)) {
      request.mask = RandomMask(random, {sizes.batch, sizes.query_heads,
                                         sizes.query_length, sizes.key_length});
    }
    ExpectPartsMerge(random, request, sizes.key_length);
  }
}

// Each way to cut six blocks, the last of which is not whole.
TEST(PartsTest, EveryCut) {
  constexpr int64_t kKeys = 5 * kKeyBlock + 100;
  for (DataType type : {DataType::kFloat32, DataType::kFloat64}) {
    Random random(99);
    AttentionCase request = NormalCase(random, {1, 2, 1, 3, kKeys, 8, 8}, type);
    request.options.return_log_sum_exp = true;
    const KernelResult expected = RunKernel(request);
    const AttentionPlan plan =
        PlanAttention(request.inputs(), request.options).value();
    Executor executor(0);
    for (uint32_t cuts = 0; cuts < 32; ++cuts) {
      std::vector<AttentionPart> parts;
      int64_t begin = 0;
      for (int64_t block = 1; block <= 6; ++block) {
        if (block < 6 && (cuts >> (block - 1) & 1) == 0) continue;
        const int64_t end = std::min(kKeys, block * kKeyBlock);
        parts.push_back(RunAttentionPart(plan, begin, end, executor).value());
        begin = end;
      }
      ASSERT_TRUE(SameBits(Merged(request, parts, executor), expected)) << cuts;
    }
  }
}

TEST(PartsTest, WithScoresPastAndPresent) {
  Random random(100);
  AttentionCase request = NormalCase(random, {2, 2, 1, 3, 700, 8, 8});
  request.past_key = random.NormalTensor(DataType::kFloat32, {2, 1, 500, 8});
  request.past_value = random.NormalTensor(DataType::kFloat32, {2, 1, 500, 8});
  request.options.return_present = true;
  for (int stage = 0; stage <= 4; ++stage) {
    request.options.return_scores = static_cast<Scores>(stage);
    const KernelResult expected = RunKernel(request);
    const AttentionPlan plan =
        PlanAttention(request.inputs(), request.options).value();
    Executor executor(1);
    std::vector<AttentionPart> parts;
    for (const auto& [begin, end] :
         {std::pair(0, 256), std::pair(256, 768), std::pair(768, 1200)}) {
      parts.push_back(RunAttentionPart(plan, begin, end, executor).value());
    }
    EXPECT_TRUE(SameBits(Merged(request, parts, executor), expected));
  }
}

TEST(PartsTest, Ragged) {
  Random random(101);
  AttentionCase request;
  request.options.layout = Layout::kRagged;
  request.options.return_log_sum_exp = true;
  request.options.causal = Causal::kBottomRight;
  request.query_starts = {0, 1, 20, 20, 25};
  request.key_starts = {0, 700, 720, 1000, 2100};
  request.query = random.NormalTensor(DataType::kFloat16, {25, 4, 8});
  request.key = random.NormalTensor(DataType::kFloat16, {2100, 2, 8});
  request.value = random.NormalTensor(DataType::kFloat16, {2100, 2, 8});
  ExpectPartsMerge(random, request, 1100);
}

TEST(PartsTest, NoKeysNeedNoParts) {
  Random random(102);
  AttentionCase request = NormalCase(random, {1, 2, 1, 3, 0, 8, 8});
  Executor executor(0);
  EXPECT_TRUE(SameBits(Merged(request, {}, executor), RunKernel(request)));
}

class PartsErrorTest : public ::testing::Test {
 protected:
  PartsErrorTest()
      : request_(NormalCase(random_, {1, 2, 1, 3, 600, 8, 8})),
        plan_(PlanAttention(request_.inputs(), request_.options).value()) {}

  absl::StatusOr<AttentionPart> Run(int64_t begin, int64_t end) {
    return RunAttentionPart(plan_, begin, end, executor_);
  }

  absl::Status Merge(const std::vector<AttentionPart>& parts) {
    std::vector<float> output(plan_.output.num_elements());
    AttentionOutputs outputs;
    outputs.output = output.data();
    return MergeAttentionParts(plan_, parts, outputs, executor_);
  }

  Random random_{103};
  AttentionCase request_;
  AttentionPlan plan_;
  Executor executor_{1};
};

TEST_F(PartsErrorTest, PartsBeginAndEndAtBlocks) {
  for (const auto& [begin, end] :
       {std::pair(0, 255), std::pair(1, 256), std::pair(-256, 256),
        std::pair(512, 256), std::pair(0, 601), std::pair(0, 768),
        std::pair(600, 600), std::pair(1024, 1280)}) {
    EXPECT_EQ(Run(begin, end).status().code(),
              absl::StatusCode::kInvalidArgument)
        << begin << " " << end;
  }
  for (const auto& [begin, end] : {std::pair(0, 600), std::pair(256, 256),
                                   std::pair(512, 600), std::pair(0, 512)}) {
    EXPECT_TRUE(Run(begin, end).ok()) << begin << " " << end;
  }
}

TEST_F(PartsErrorTest, PartsCoverAllKeysOnce) {
  const AttentionPart first = Run(0, 256).value();
  const AttentionPart second = Run(256, 512).value();
  const AttentionPart last = Run(512, 600).value();
  EXPECT_TRUE(Merge({first, second, last}).ok());
  for (const std::vector<AttentionPart>& parts :
       std::vector<std::vector<AttentionPart>>{{},
                                               {first},
                                               {first, second},
                                               {second, last},
                                               {first, last},
                                               {second, first, last},
                                               {first, first, second, last},
                                               {first, second, last, last}}) {
    EXPECT_EQ(Merge(parts).code(), absl::StatusCode::kInvalidArgument)
        << parts.size();
  }
}

TEST_F(PartsErrorTest, PartsAreOfEqualPlans) {
  for (const Sizes& other :
       {Sizes{1, 2, 1, 4, 600, 8, 8}, Sizes{1, 2, 1, 3, 600, 8, 7},
        Sizes{2, 2, 1, 3, 600, 8, 8}}) {
    const AttentionCase request = NormalCase(random_, other);
    const AttentionPart part =
        RunAttentionPart(
            PlanAttention(request.inputs(), request.options).value(), 0, 600,
            executor_)
            .value();
    EXPECT_EQ(Merge({part}).code(), absl::StatusCode::kInvalidArgument);
  }
  AttentionCase doubles = request_;
  doubles.options.softmax_precision = DataType::kFloat64;
  const AttentionPart part =
      RunAttentionPart(PlanAttention(doubles.inputs(), doubles.options).value(),
                       0, 600, executor_)
          .value();
  EXPECT_EQ(Merge({part}).code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(PartsErrorTest, Cancelled) {
  std::atomic<bool> cancelled{true};
  EXPECT_EQ(
      RunAttentionPart(plan_, 0, 600, executor_, &cancelled).status().code(),
      absl::StatusCode::kCancelled);
  const AttentionPart part = Run(0, 600).value();
  std::vector<float> output(plan_.output.num_elements());
  AttentionOutputs outputs;
  outputs.output = output.data();
  EXPECT_EQ(
      MergeAttentionParts(plan_, {&part, 1}, outputs, executor_, &cancelled)
          .code(),
      absl::StatusCode::kCancelled);
}

}  // namespace
}  // namespace attention::test
