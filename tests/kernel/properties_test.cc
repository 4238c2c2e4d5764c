// Laws that attention obeys whatever the numbers.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "kernel/attention.h"
#include "tests/support/attention_case.h"
#include "tests/support/reference.h"
#include "tests/support/run_kernel.h"
#include "tests/support/tensor.h"

namespace attention::test {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

class PropertyTest : public ::testing::TestWithParam<DataType> {
 protected:
  AttentionCase Normal(const Sizes& sizes) {
    AttentionCase request = NormalCase(random_, sizes, GetParam());
    request.options.return_log_sum_exp = true;
    return request;
  }

  Random random_{11};
};

INSTANTIATE_TEST_SUITE_P(Types, PropertyTest,
                         ::testing::Values(DataType::kFloat32,
                                           DataType::kFloat16,
                                           DataType::kBFloat16,
                                           DataType::kFloat64),
                         [](const ::testing::TestParamInfo<DataType>& info) {
                           return std::string(Name(info.param));
                         });

const std::vector<Sizes> kShapes = {{1, 1, 1, 1, 1, 4, 4},
                                    {2, 2, 1, 3, 30, 8, 8},
                                    {1, 4, 2, 20, 300, 16, 16},
                                    {1, 2, 2, 1, 1000, 64, 64}};

TEST_P(PropertyTest, WeightsSumToOne) {
  for (const Sizes& sizes : kShapes) {
    AttentionCase request = Normal(sizes);
    request.options.return_scores = Scores::kWeights;
    const ReferenceResult reference = Reference(request);
    const Tensor weights = *RunKernel(request).scores;
    const int64_t keys = sizes.key_length;
    for (int64_t row = 0; row < weights.size() / keys; ++row) {
      double sum = 0;
      double error = 0;
      for (int64_t i = row * keys; i < (row + 1) * keys; ++i) {
        EXPECT_GE(weights.Get(i), 0);
        sum += weights.Get(i);
        error +=
            reference.scores->errors[i] + UlpAt(weights.Get(i), GetParam()) / 2;
      }
      ASSERT_NEAR(sum, 1, error);
    }
  }
}

TEST_P(PropertyTest, ConstantValueReturnsIt) {
  for (const Sizes& sizes : kShapes) {
    AttentionCase request = Normal(sizes);
    for (int64_t i = 0; i < request.value.size(); ++i) {
      request.value.Set(i, -1.375);
    }
    Expected expected = Reference(request).output;
    for (Wide& value : expected.values) value = -1.375;
    EXPECT_TRUE(Matches(RunKernel(request).output, expected));
  }
}

TEST_P(PropertyTest, OrderOfKeysDoesNotMatter) {
  for (const Sizes& sizes : kShapes) {
    const AttentionCase request = Normal(sizes);
    AttentionCase reversed = request;
    const int64_t keys = sizes.key_length;
    std::vector<Tensor> k;
    std::vector<Tensor> v;
    for (int64_t j = keys - 1; j >= 0; --j) {
      k.push_back(request.key.Slice(2, j, j + 1));
      v.push_back(request.value.Slice(2, j, j + 1));
    }
    reversed.key = Concatenate(k, 2);
    reversed.value = Concatenate(v, 2);
    // The bounds, not the numbers, depend on the order.
    ReferenceResult expected = Reference(reversed);
    expected.output.values = Reference(request).output.values;
    EXPECT_TRUE(Matches(RunKernel(reversed), expected));
  }
}

TEST_P(PropertyTest, ConstantAddedToAMaskRowShiftsTheLogSumExpAlone) {
  for (const Sizes& sizes : kShapes) {
    AttentionCase request = Normal(sizes);
    request.mask = random_.NormalTensor(DataType::kFloat32,
                                        {sizes.query_length, sizes.key_length});
    AttentionCase shifted = request;
    for (int64_t i = 0; i < shifted.mask->size(); ++i) {
      // Powers of two small enough that the sum is exact.
      request.mask->Set(i, std::round(request.mask->Get(i) * 16) / 16);
      shifted.mask->Set(i, request.mask->Get(i) - 8);
    }
    ReferenceResult expected = Reference(shifted);
    const ReferenceResult plain = Reference(request);
    expected.output.values = plain.output.values;
    for (size_t i = 0; i < plain.log_sum_exp->values.size(); ++i) {
      expected.log_sum_exp->values[i] = plain.log_sum_exp->values[i] - 8;
    }
    EXPECT_TRUE(Matches(RunKernel(shifted), expected));
  }
}

// The parts' outputs and log-sum-exps, merged as the specification says.
TEST_P(PropertyTest, PartsMergeToTheWhole) {
  for (const Sizes& sizes : kShapes) {
    AttentionCase whole = Normal(sizes);
    whole.options.sinks.assign(sizes.query_heads, 0.5);
    const ReferenceResult expected = Reference(whole);
    const int64_t keys = sizes.key_length;
    for (int64_t cut : {int64_t{0}, int64_t{1}, keys / 3, keys}) {
      std::vector<KernelResult> results;
      std::vector<ReferenceResult> bounds;
      for (const auto& [begin, end] :
           {std::pair(int64_t{0}, cut), std::pair(cut, keys)}) {
        AttentionCase part = whole;
        part.key = whole.key.Slice(2, begin, end);
        part.value = whole.value.Slice(2, begin, end);
        if (!results.empty()) part.options.sinks.clear();  // once only
        results.push_back(RunKernel(part));
        bounds.push_back(Reference(part));
      }
      for (int64_t i = 0; i < expected.output.values.size(); ++i) {
        const int64_t row = i / sizes.value_head_size;
        const double lse = expected.log_sum_exp->values[row];
        double sum = 0;
        double output = 0;
        double error = expected.output.errors[i];
        for (int p = 0; p < 2; ++p) {
          const double part_lse = results[p].log_sum_exp->Get(row);
          const double part_output = results[p].output.Get(i);
          if (part_lse == -kInf) continue;
          const double weight = std::exp(part_lse - lse);
          sum += weight;
          output += weight * part_output;
          error += weight * (bounds[p].output.errors[i] +
                             UlpAt(part_output, GetParam()) / 2) +
                   weight * std::fabs(part_output) *
                       (bounds[p].log_sum_exp->errors[row] +
                        UlpAt(part_lse, bounds[p].log_sum_exp->type) / 2);
        }
        const double lse_error = expected.log_sum_exp->errors[row] +
                                 bounds[0].log_sum_exp->errors[row] +
                                 bounds[1].log_sum_exp->errors[row] +
                                 2 * UlpAt(lse, bounds[0].log_sum_exp->type);
        ASSERT_NEAR(std::log(sum), 0, lse_error);
        ASSERT_NEAR(output, expected.output.values[i],
                    error + UlpAt(output, GetParam()) / 2);
      }
    }
  }
}

// A sink is a key of that logit whose value is zero.
TEST_P(PropertyTest, SinkIsAKeyWithoutValue) {
  for (const Sizes& sizes : kShapes) {
    AttentionCase sink = Normal(sizes);
    sink.options.sinks.assign(sizes.query_heads, 1.25);
    AttentionCase key = sink;
    key.options.sinks.clear();
    key.options.scale = sink.options.scale.value_or(
        1 / std::sqrt(static_cast<double>(sizes.head_size)));
    sink.options.scale = key.options.scale;
    // All scores but the sink's are as they were: its key is zero, and the mask
    // adds the logit.
    const auto with_zero_row = [](const Tensor& tensor) {
      Shape shape = tensor.shape();
      shape[2] = 1;
      return Concatenate({tensor, Tensor(tensor.type(), shape)}, 2);
    };
    key.key = with_zero_row(sink.key);
    key.value = with_zero_row(sink.value);
    key.mask = Tensor(DataType::kFloat32, {sizes.key_length + 1});
    key.mask->Set(sizes.key_length, 1.25);
    const ReferenceResult expected = Reference(key);
    EXPECT_TRUE(Matches(RunKernel(sink), expected));
    EXPECT_TRUE(Matches(RunKernel(key), Reference(sink)));
  }
}

// Scaling by a power of two is exact, wherever it happens.
TEST_P(PropertyTest, ScaleMovesIntoTheQuery) {
  for (const Sizes& sizes : kShapes) {
    AttentionCase request = Normal(sizes);
    request.options.scale = 0.25;
    AttentionCase moved = request;
    moved.options.scale = 0.5;
    for (int64_t i = 0; i < moved.query.size(); ++i) {
      moved.query.Set(i, request.query.Get(i) / 2);
    }
    EXPECT_TRUE(Matches(RunKernel(moved), Reference(request)));
  }
}

TEST_P(PropertyTest, HugeSoftcapIsNone) {
  AttentionCase request = Normal(kShapes[2]);
  ReferenceResult expected = Reference(request);
  request.options.softcap = 1e9;
  const ReferenceResult bounds = Reference(request);
  expected.output.errors = bounds.output.errors;
  expected.log_sum_exp->errors = bounds.log_sum_exp->errors;
  EXPECT_TRUE(Matches(RunKernel(request), expected));
}

}  // namespace
}  // namespace attention::test
