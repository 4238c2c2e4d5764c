// Keys that indices select: the bits are those of the mask that hides all
// others, and what is not selected is not read.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "base/executor.h"
#include "kernel/attention.h"
#include "kernel/cpu/selected_keys.h"
#include "tests/support/attention_case.h"
#include "tests/support/run_kernel.h"
#include "tests/support/tensor.h"

namespace attention::test {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

// The mask's arithmetic would be another one with FAST math.
AttentionCase Reproducible(AttentionCase request) {
  request.options.math_mode = MathMode::kReproducible;
  return request;
}

TEST(IndicesTest, HaveTheBitsOfTheMask) {
  RandomLimits limits;
  limits.key_lengths = {1, 7, 16, 33, 130, 255, 256, 257, 511, 800, 1300};
  int seen = 0, with_mask = 0;
  for (uint64_t seed = 0; seen < 400; ++seed) {
    Random random(seed);
    const AttentionCase request = Reproducible(RandomCase(random, limits));
    if (!request.indices || request.options.layout == Layout::kRagged) continue;
    ++seen;
    with_mask += request.mask.has_value();
    ASSERT_TRUE(
        SameBits(RunKernel(request), RunKernel(WithMaskForIndices(request))))
        << "seed " << seed << ": " << request.ToString();
  }
  EXPECT_GT(with_mask, 50);
}

// Many rows to a tile, few, one; whole vectors of values and not.
TEST(IndicesTest, HaveTheBitsOfTheMaskInEveryShapeOfTile) {
  for (const DataType type : kFloatTypes) {
    for (const int64_t group : {1, 2, 8, 9, 16, 40, 130}) {
      for (const int64_t size : {16, 17, 64}) {
        Random random(group * size);
        AttentionCase request =
            NormalCase(random, {1, group, 1, 3, 1100, size, size}, type);
        request.indices = RandomIndices(random, {1, 3}, 1100);
        request.options.causal = Causal::kBottomRight;
        request.options.return_log_sum_exp = true;
        const AttentionCase masked = WithMaskForIndices(request);
        for (const std::string& target : AllSimdTargets()) {
          const ScopedSimdTarget scope(target);
          ASSERT_TRUE(SameBits(RunKernel(request), RunKernel(masked)))
              << target << ": " << request.ToString();
        }
      }
    }
  }
}

// Of ragged sequences each row has what it has alone.
TEST(IndicesTest, OfRaggedSequencesAreTheirOwn) {
  Random random(5);
  AttentionCase request;
  request.options.layout = Layout::kRagged;
  request.query_starts = {0, 3, 3, 7};
  request.key_starts = {0, 300, 310, 900};
  request.query = random.NormalTensor(DataType::kFloat32, {7, 4, 16});
  request.key = random.NormalTensor(DataType::kFloat32, {900, 2, 16});
  request.value = random.NormalTensor(DataType::kFloat32, {900, 2, 16});
  request.indices = Tensor(DataType::kInt32, {7, 4, 40});
  request.sinks = random.NormalTensor(DataType::kFloat32, {7, 4});
  for (int64_t i = 0; i < request.indices->size(); ++i) {
    request.indices->Set(
        i, static_cast<double>(random.Integer(-1, i < 480 ? 299 : 589)));
  }
  const KernelResult whole = RunKernel(request, 3);
  for (const int b : {0, 2}) {
    const int64_t q0 = request.query_starts[b],
                  q1 = request.query_starts[b + 1];
    const int64_t k0 = request.key_starts[b], k1 = request.key_starts[b + 1];
    AttentionCase one = request;
    one.query_starts = {0, q1 - q0};
    one.key_starts = {0, k1 - k0};
    one.query = request.query.Slice(0, q0, q1);
    one.key = request.key.Slice(0, k0, k1);
    one.value = request.value.Slice(0, k0, k1);
    one.indices = request.indices->Slice(0, q0, q1);
    one.sinks = request.sinks->Slice(0, q0, q1);
    EXPECT_TRUE(SameBits(RunKernel(one).output, whole.output.Slice(0, q0, q1)));
    EXPECT_TRUE(IsRightOnAllTargets(one));
  }
}

TEST(IndicesTest, OrderAndRepetitionDoNotMatter) {
  Random random(6);
  AttentionCase request = NormalCase(random, {2, 4, 2, 5, 700, 16, 16});
  request.indices = Tensor(DataType::kInt64, {2, 5, 6});
  AttentionCase other = request;
  other.indices = Tensor(DataType::kInt32, {2, 5, 9});
  for (int64_t row = 0; row < 10; ++row) {
    const std::vector<int64_t> keys = {row, 255, 256, 600 + row, 699, 3 * row};
    for (int64_t n = 0; n < 6; ++n) {
      request.indices->Set(row * 6 + n, static_cast<double>(keys[n]));
    }
    const std::vector<int64_t> again = {699,       -1,  256, 3 * row, 255,
                                        600 + row, row, 699, 255};
    for (int64_t n = 0; n < 9; ++n) {
      other.indices->Set(row * 9 + n, static_cast<double>(again[n]));
    }
  }
  EXPECT_TRUE(SameBits(RunKernel(request), RunKernel(other)));
}

TEST(IndicesTest, NoKeyGivesNoOutput) {
  Random random(7);
  AttentionCase request = NormalCase(random, {1, 2, 1, 3, 300, 8, 8});
  request.options.return_log_sum_exp = true;
  for (const int64_t count : {0, 4}) {
    request.indices = Filled(DataType::kInt32, {1, 3, count}, -1);
    const KernelResult result = RunKernel(request);
    ExpectAll(result.output, 0);
    ExpectAll(*result.log_sum_exp, -kInf);
  }
}

// NaN and infinity in all keys and values that are not selected.
TEST(IndicesTest, WhatIsNotSelectedIsNotSeen) {
  for (const bool masks : {false, true}) {
    Random random(8);
    AttentionCase request = NormalCase(random, {1, 4, 2, 1, 1000, 16, 16});
    request.indices = RandomIndices(random, {1, 1}, 1000);
    if (masks) {
      request.mask = random.NormalTensor(DataType::kBool, {1, 1, 1, 1000});
    }
    AttentionCase poisoned = request;
    std::vector<bool> selected(1000);
    for (double key : request.indices->values()) {
      if (key >= 0 &&
          (!masks || request.mask->Get(static_cast<int64_t>(key)) != 0)) {
        selected[static_cast<size_t>(key)] = true;
      }
    }
    for (int64_t h = 0; h < 2; ++h) {
      for (int64_t j = 0; j < 1000; ++j) {
        for (int64_t d = 0; d < 16 && !selected[j]; ++d) {
          poisoned.key.Set({0, h, j, d}, d % 2 == 0 ? NAN : kInf);
          poisoned.value.Set({0, h, j, d}, d % 2 == 0 ? -kInf : NAN);
        }
      }
    }
    EXPECT_TRUE(SameBits(RunKernel(poisoned), RunKernel(request)));
  }
}

// Numbers that were checked may change later, in memory that is shared: then
// keys beyond the sequence are passed over.
TEST(IndicesTest, AreBoundedWhenTheyAreRead) {
  std::vector<int32_t> list = {5, -1, 300, 511, 512, 1 << 30, -(1 << 30), 256};
  std::vector<uint64_t> words(SelectedKeys::Words(600), ~uint64_t{0});
  SelectedKeys selected(words.data());
  IndexOperand operand;
  operand.type = DataType::kInt32;
  operand.count = static_cast<int64_t>(list.size());
  selected.Select(list.data(), operand, {256, 512});
  uint8_t keys[kKeyBlock];
  ASSERT_EQ(selected.List(1, keys), 3);
  EXPECT_EQ(keys[0], 0);
  EXPECT_EQ(keys[1], 44);
  EXPECT_EQ(keys[2], 255);
  EXPECT_TRUE(selected.Has(300));
  EXPECT_FALSE(selected.Has(301));
  EXPECT_EQ(words[0], ~uint64_t{0}) << "a block before the keys";
}

TEST(IndicesTest, WorkGrowsWithTheirNumber) {
  const auto plan = [](int64_t keys, int64_t count) {
    AttentionInputs inputs;
    inputs.query.shape = {1, 8, 64, 128};
    inputs.key.shape = inputs.value.shape = {1, 8, keys, 128};
    if (count >= 0) {
      inputs.indices.emplace();
      inputs.indices->type = DataType::kInt32;
      inputs.indices->shape = {1, 64, count};
    }
    return PlanAttention(inputs, {}).value();
  };
  EXPECT_EQ(plan(100000, 2000).flops, 2.0 * 8 * 64 * 2000 * 256);
  EXPECT_EQ(plan(1000, 2000).flops, 2.0 * 8 * 64 * 1000 * 256);
  EXPECT_LT(plan(10000000, 2000).work, 1.1 * plan(1000000, 2000).work);
  EXPECT_GT(plan(1000000, 4000).work, 1.5 * plan(1000000, 2000).work);
  // As the .proto file has it: for 8 heads there are 512 lists. No two rows
  // share what they read.
  const double reading = 8.0 * 64 * 1000 * 256 * 8 * (1 - 1.0 / 64);
  const double lists = 512 * (40000 + 40 * 1000 + 10000 * (1000.0 / 256 + 1));
  EXPECT_NEAR(plan(1000, 1000).work - plan(1000, -1).work, reading + lists, 1);
}

TEST(IndicesTest, FastMathIsNotTaken) {
  Random random(9);
  AttentionCase request = NormalCase(random, {1, 4, 2, 3, 300, 16, 16},
                                     {DataType::kBFloat16, MathMode::kFast});
  request.indices = RandomIndices(random, {1, 3}, 300);
  EXPECT_FALSE(PlanAttention(request.inputs(), request.options)->fast_math);
  EXPECT_TRUE(SameBits(RunKernel(request), RunKernel(Reproducible(request))));
}

TEST(RowSinksTest, AreThoseOfTheHeadWhereRowsAgree) {
  Random random(10);
  AttentionCase request = NormalCase(random, {2, 4, 2, 5, 300, 16, 16});
  request.options.return_log_sum_exp = true;
  AttentionCase per_row = request;
  request.options.sinks = {0.5, -kInf, 2, -1};
  per_row.sinks = Tensor(DataType::kFloat64, {2, 4, 5});
  for (int64_t i = 0; i < 40; ++i) {
    per_row.sinks->Set(i, request.options.sinks[i / 5 % 4]);
  }
  EXPECT_TRUE(SameBits(RunKernel(per_row), RunKernel(request)));
}

}  // namespace
}  // namespace attention::test
