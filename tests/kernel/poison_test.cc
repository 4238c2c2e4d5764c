// NaN and infinity in keys, values, queries and masks: they reach the rows that
// attend them and no other.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernel/attention.h"
#include "tests/support/attention_case.h"
#include "tests/support/reference.h"
#include "tests/support/run_kernel.h"
#include "tests/support/tensor.h"

namespace attention::test {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// Each row sees other keys; which is poisoned tells which rows are.
class PoisonTest
    : public ::testing::TestWithParam<std::tuple<Kind, std::string>> {
 protected:
  static Kind GetKind() { return std::get<0>(GetParam()); }
  static DataType Type() { return GetKind().type; }

  // Key j of head 0 becomes `poison` in key or value.
  static void Poison(Tensor* tensor, int64_t j, double poison) {
    tensor->Set({0, 0, j, tensor->shape()[3] / 2}, poison);
  }

  static std::vector<AttentionCase> Cases() {
    std::vector<AttentionCase> cases;
    Random random(15);
    for (int64_t rows : {1, 6, 33}) {
      for (int64_t keys : {5, 40, 300, 600}) {
        AttentionCase request =
            NormalCase(random, {1, 1, 1, rows, keys, 10, 9}, GetKind());
        request.options.return_log_sum_exp = true;
        request.options.causal = Causal::kBottomRight;
        cases.push_back(request);
        request.options.window_left = 7;
        cases.push_back(request);
        request.options.causal = Causal::kNone;
        cases.push_back(request);
        request.options.window_left = -1;
        request.mask = random.NormalTensor(DataType::kBool, {rows, keys});
        cases.push_back(request);
        request.mask = random.NormalTensor(DataType::kFloat32, {rows, keys});
        for (int64_t i = 0; i < request.mask->size(); ++i) {
          if (random.Chance(0.5)) request.mask->Set(i, -kInf);
        }
        cases.push_back(request);
        request.mask.reset();
        request.valid_lengths = {keys / 2};
        cases.push_back(request);
      }
    }
    return cases;
  }

 private:
  const ScopedSimdTarget target_{std::get<1>(GetParam())};
};

INSTANTIATE_TEST_SUITE_P(
    OnEachTarget, PoisonTest,
    ::testing::Combine(::testing::ValuesIn(kKinds),
                       ::testing::ValuesIn(AllSimdTargets())),
    [](const ::testing::TestParamInfo<PoisonTest::ParamType>& info) {
      return absl::StrCat(Name(std::get<0>(info.param)), "_",
                          std::get<1>(info.param));
    });

// Which rows attend key j.
std::set<int64_t> RowsThatSee(AttentionCase request, int64_t j) {
  request.options.return_scores = Scores::kBiased;
  const ReferenceResult result = Reference(request);
  const int64_t keys = result.scores->shape[3];
  std::set<int64_t> rows;
  for (int64_t i = 0; i < result.scores->shape[2]; ++i) {
    if (result.scores->values[i * keys + j] != -kInf) rows.insert(i);
  }
  return rows;
}

TEST_P(PoisonTest, ReachesTheRowsThatSeeItAndNoOther) {
  Random random(16);
  for (const AttentionCase& clean : Cases()) {
    const KernelResult expected = RunKernel(clean);
    const int64_t keys = clean.key.shape()[2];
    const int64_t rows = clean.query.shape()[2];
    const int64_t columns = clean.value.shape()[3];
    for (int round = 0; round < 6; ++round) {
      const int64_t j = random.Integer(0, keys - 1);
      const bool in_key = round % 2 == 0;
      const double poison = random.Pick<double>({kNan, kInf, -kInf});
      AttentionCase poisoned = clean;
      Poison(in_key ? &poisoned.key : &poisoned.value, j, poison);
      const std::set<int64_t> seen = RowsThatSee(clean, j);
      const KernelResult actual = RunKernel(poisoned);
      SCOPED_TRACE(::testing::Message()
                   << poison << (in_key ? " in key " : " in value ") << j
                   << " of " << clean.ToString());
      for (int64_t i = 0; i < rows; ++i) {
        const Tensor row = actual.output.Slice(2, i, i + 1);
        const Tensor lse = actual.log_sum_exp->Slice(2, i, i + 1);
        if (seen.count(i) == 0) {
          ASSERT_TRUE(SameBits(row, expected.output.Slice(2, i, i + 1)));
          ASSERT_TRUE(SameBits(lse, expected.log_sum_exp->Slice(2, i, i + 1)));
          continue;
        }
        if (in_key && !std::isnan(poison)) continue;  // below
        for (int64_t d = 0; d < columns; ++d) {
          if (in_key) {
            ASSERT_TRUE(std::isnan(row.Get(d))) << "row " << i;
          } else if (d == columns / 2) {
            ASSERT_FALSE(std::isfinite(row.Get(d))) << "row " << i;
          } else {
            ASSERT_EQ(row.Get(d), expected.output.Get({0, 0, i, d}));
          }
        }
        if (in_key) {
          ASSERT_TRUE(std::isnan(lse.Get(0))) << "row " << i;
        } else {
          ASSERT_EQ(lse.Get(0), expected.log_sum_exp->Get({0, 0, i}));
        }
      }
    }
  }
}

// An infinite score is an ordinary number to the softmax: -inf weighs nothing,
// +inf has no finite distance to itself.
TEST_P(PoisonTest, InfiniteScores) {
  Random random(17);
  for (int64_t rows : {1, 20}) {
    for (int64_t keys : {4, 300, 600}) {
      AttentionCase request =
          NormalCase(random, {1, 1, 1, rows, keys, 8, 8}, GetKind());
      for (int64_t i = 0; i < request.query.size(); ++i) {
        request.query.Set(i, std::fabs(request.query.Get(i)) + 0.5);
      }
      request.key.Set({0, 0, keys - 1, 3}, -kInf);
      AttentionCase without = request;
      without.mask = Filled(DataType::kBool, {keys}, 1);
      without.mask->Set(keys - 1, 0);
      EXPECT_TRUE(
          SameBits(RunKernel(request).output, RunKernel(without).output));
      request.key.Set({0, 0, keys - 1, 3}, kInf);
      const Tensor output = RunKernel(request).output;
      for (int64_t i = 0; i < output.size(); ++i) {
        ASSERT_TRUE(std::isnan(output.Get(i)));
      }
    }
  }
}

// A row whose scores are all -inf, though none of its keys is masked, is not a
// masked row: its softmax is 0/0.
TEST_P(PoisonTest, AllScoresMinusInfinityIsNotMasked) {
  for (int64_t rows : {1, 20}) {
    for (int64_t keys : {1, 4, 300, 600}) {
      AttentionCase request;
      request.query = Filled(Type(), {1, 1, rows, 8}, 1);
      request.key = Filled(Type(), {1, 1, keys, 8}, -kInf);
      request.value = Filled(Type(), {1, 1, keys, 8}, 1);
      request.options.math_mode = GetKind().math;
      request.options.return_log_sum_exp = true;
      const KernelResult result = RunKernel(request);
      for (int64_t i = 0; i < result.output.size(); ++i) {
        ASSERT_TRUE(std::isnan(result.output.Get(i))) << keys << " keys";
      }
      ExpectAll(*result.log_sum_exp, -kInf);
      // A sink takes all the weight.
      request.options.sinks = {0};
      ExpectAll(RunKernel(request).output, 0);
    }
  }
}

TEST_P(PoisonTest, SoftcapTamesInfinity) {
  AttentionCase request;
  request.query = Filled(Type(), {1, 1, 3, 8}, 1);
  request.key = Filled(Type(), {1, 1, 20, 8}, 1);
  request.value = Filled(Type(), {1, 1, 20, 8}, 2);
  request.options.math_mode = GetKind().math;
  request.key.Set({0, 0, 3, 0}, kInf);
  request.key.Set({0, 0, 4, 0}, -kInf);
  request.options.softcap = 5;
  request.options.return_log_sum_exp = true;
  EXPECT_TRUE(Matches(RunKernel(request), Reference(request)));
}

TEST_P(PoisonTest, QueryReachesItsOwnRow) {
  Random random(18);
  AttentionCase request =
      NormalCase(random, {1, 2, 1, 20, 300, 8, 8}, GetKind());
  const Tensor clean = RunKernel(request).output;
  request.query.Set({0, 1, 7, 2}, kNan);
  const Tensor output = RunKernel(request).output;
  for (int64_t h = 0; h < 2; ++h)
    for (int64_t i = 0; i < 20; ++i)
      for (int64_t d = 0; d < 8; ++d) {
        if (h == 1 && i == 7) {
          ASSERT_TRUE(std::isnan(output.Get({0, h, i, d})));
        } else {
          ASSERT_EQ(output.Get({0, h, i, d}), clean.Get({0, h, i, d}));
        }
      }
}

// NaN in a mask is attended; behind a causal mask it is not.
TEST_P(PoisonTest, MaskReachesTheRowsThatSeeIt) {
  Random random(19);
  for (double poison : {kNan, kInf}) {
    AttentionCase request =
        NormalCase(random, {1, 1, 1, 20, 20, 8, 8}, GetKind());
    request.options.causal = Causal::kTopLeft;
    request.mask = random.NormalTensor(DataType::kFloat32, {20, 20});
    const Tensor clean = RunKernel(request).output;
    request.mask->Set({5, 9}, poison);   // hidden
    request.mask->Set({15, 9}, poison);  // seen
    const Tensor output = RunKernel(request).output;
    for (int64_t i = 0; i < 20; ++i) {
      for (int64_t d = 0; d < 8; ++d) {
        if (i == 15) {
          ASSERT_TRUE(std::isnan(output.Get({0, 0, i, d})));
        } else {
          ASSERT_EQ(output.Get({0, 0, i, d}), clean.Get({0, 0, i, d}));
        }
      }
    }
  }
}

// RAW and CAPPED show masked keys, BIASED and WEIGHTS do not.
TEST_P(PoisonTest, ScoresOfMaskedKeys) {
  AttentionCase request;
  request.query = Filled(Type(), {1, 1, 2, 4}, 1);
  request.key = Filled(Type(), {1, 1, 300, 4}, 1);
  request.value = Filled(Type(), {1, 1, 300, 4}, 1);
  request.options.math_mode = GetKind().math;
  request.key.Set({0, 0, 299, 0}, kNan);
  request.valid_lengths = {200};
  request.options.softcap = 1;
  for (const auto& [stage, masked, poisoned] :
       {std::tuple(Scores::kRaw, 2.0, kNan),
        std::tuple(Scores::kCapped, std::tanh(2.0), kNan),
        std::tuple(Scores::kBiased, -kInf, -kInf),
        std::tuple(Scores::kWeights, 0.0, 0.0)}) {
    request.options.return_scores = stage;
    const KernelResult result = RunKernel(request);
    const ReferenceResult expected = Reference(request);
    EXPECT_TRUE(Matches(result, expected));
    if (std::isfinite(masked)) {
      EXPECT_NEAR(result.scores->Get({0, 0, 1, 250}), masked, 1e-2);
    } else {
      EXPECT_EQ(result.scores->Get({0, 0, 1, 250}), masked);
    }
    EXPECT_EQ(std::isnan(result.scores->Get({0, 0, 1, 299})),
              std::isnan(poisoned));
  }
}

}  // namespace
}  // namespace attention::test
