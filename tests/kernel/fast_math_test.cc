// MathMode::kFast. What it promises is tested with the rest: its error bounds
// by random_test, its bits by same_bits_test, accumulator_test and poison_test.
#include <gtest/gtest.h>

#include <cmath>

#include "kernel/attention.h"
#include "tests/support/attention_case.h"
#include "tests/support/reference.h"
#include "tests/support/run_kernel.h"
#include "tests/support/tensor.h"

namespace attention::test {
namespace {

constexpr DataType kBFloat16 = DataType::kBFloat16;

// Whether FAST changes a bit.
bool Differs(AttentionCase request) {
  const KernelResult exact = RunKernel(request);
  request.options.math_mode = MathMode::kFast;
  return !SameBits(RunKernel(request), exact);
}

TEST(FastMathTest, DiffersWhereTheCpuHasIt) {
  Random random(1);
  EXPECT_EQ(Differs(NormalCase(random, {1, 2, 1, 40, 300, 64, 64}, kBFloat16)),
            HasFastMath());
}

TEST(FastMathTest, IsForBFloat16InFloat32Only) {
  Random random(2);
  const Sizes sizes = {1, 2, 1, 40, 300, 64, 64};
  for (DataType type :
       {DataType::kFloat32, DataType::kFloat16, DataType::kFloat64}) {
    EXPECT_FALSE(Differs(NormalCase(random, sizes, type))) << Name(type);
  }
  const AttentionCase all = NormalCase(random, sizes, kBFloat16);
  AttentionCase other = all;
  other.value = all.value.ConvertedTo(DataType::kFloat32);
  EXPECT_FALSE(Differs(other));
  other = all;
  other.query = all.query.ConvertedTo(DataType::kFloat32);
  other.key = all.key.ConvertedTo(DataType::kFloat32);
  EXPECT_FALSE(Differs(other));
  other = all;
  other.options.softmax_precision = DataType::kFloat64;
  EXPECT_FALSE(Differs(other));
  // Pairs of a row must not reach into the next.
  EXPECT_FALSE(
      Differs(NormalCase(random, {1, 2, 1, 40, 300, 63, 64}, kBFloat16)));
}

// Every way through the kernel: few rows and many, whole vectors and not, keys
// in pairs and one left over.
TEST(FastMathTest, IsRight) {
  Random random(3);
  for (int64_t rows : {1, 2, 7, 8, 9, 14, 15, 30}) {
    for (int64_t keys : {1, 2, 3, 15, 16, 17, 31, 32, 33, 255, 256, 257, 511}) {
      for (int64_t columns : {2, 14, 16, 18, 32, 64}) {
        const int64_t head_size = random.Pick<int64_t>({2, 8, 30, 32, 34});
        AttentionCase request =
            NormalCase(random, {1, 2, 1, rows, keys, head_size, columns},
                       {kBFloat16, MathMode::kFast});
        request.options.causal = random.Pick<Causal>(
            {Causal::kNone, Causal::kTopLeft, Causal::kBottomRight});
        request.options.return_log_sum_exp = true;
        ASSERT_TRUE(Matches(RunKernel(request), Reference(request)))
            << request.ToString();
      }
    }
  }
}

void Multiply(Tensor& tensor, double factor) {
  for (int64_t i = 0; i < tensor.size(); ++i) {
    tensor.Set(i, factor * tensor.Get(i));
  }
}

// Few rows and many go ways of their own, with other instructions; where sums
// and their parts are subnormal too.
TEST(FastMathTest, RowsAloneHaveTheSameBits) {
  constexpr int64_t kRows = 33;
  Random random(5);
  for (int64_t head_size : {2, 30, 34, 64, 80, 128}) {
    for (int64_t columns : {16, 48, 64, 80}) {
      for (double tiny : {1.0, 1e-19, 1e-37}) {
        AttentionCase request =
            NormalCase(random, {1, 2, 1, kRows, 300, head_size, columns},
                       {kBFloat16, MathMode::kFast});
        Multiply(request.query, tiny);
        Multiply(request.key, tiny == 1e-19 ? tiny : 1);
        Multiply(request.value, 1e-38);
        request.options.scale = tiny == 1 ? 1 : 1e37;
        request.options.return_log_sum_exp = true;
        const KernelResult all = RunKernel(request);
        for (int64_t count : {1, 2, 3, 5, 8}) {
          const int64_t first = random.Integer(0, kRows - count);
          AttentionCase few = request;
          few.query = request.query.Slice(2, first, first + count);
          KernelResult part;
          part.output = all.output.Slice(2, first, first + count);
          part.log_sum_exp = all.log_sum_exp->Slice(2, first, first + count);
          ASSERT_TRUE(SameBits(RunKernel(few), part))
              << count << " rows from " << first << " of "
              << request.ToString();
        }
      }
    }
  }
}

// A hidden NaN makes the rows that do not see it go a way of their own too.
TEST(FastMathTest, HiddenNaNChangesNoBit) {
  constexpr int64_t kRows = 130;
  constexpr int64_t kKey = 127;
  Random random(6);
  for (int64_t columns : {16, 40, 64}) {
    for (double tiny : {1.0, 1e-38}) {
      AttentionCase request =
          NormalCase(random, {1, 1, 1, kRows, kRows, 32, columns},
                     {kBFloat16, MathMode::kFast});
      request.options.causal = Causal::kTopLeft;
      Multiply(request.value, tiny);
      KernelResult clean = RunKernel(request);
      request.value.Set({0, 0, kKey, 0}, std::nan(""));
      KernelResult poisoned = RunKernel(request);
      EXPECT_TRUE(std::isnan(poisoned.output.Get({0, 0, kKey, 0})));
      clean.output = clean.output.Slice(2, 0, kKey);
      poisoned.output = poisoned.output.Slice(2, 0, kKey);
      ASSERT_TRUE(SameBits(poisoned, clean))
          << columns << " columns times " << tiny;
    }
  }
}

// Weights are rounded, the sum of them is not: values that are all the same
// come back within the weights' rounding.
TEST(FastMathTest, RoundsWeightsToNearest) {
  Random random(4);
  AttentionCase request = NormalCase(random, {1, 1, 1, 64, 4000, 64, 16},
                                     {kBFloat16, MathMode::kFast});
  request.value = Filled(kBFloat16, request.value.shape(), 1);
  const Tensor output = RunKernel(request).output;
  for (int64_t i = 0; i < output.size(); ++i) {
    // Rounding errors of so many weights cancel; those of truncation would
    // not, they would take a 256th.
    ASSERT_NEAR(output.Get(i), 1, 1.0 / 512) << i;
  }
}

}  // namespace
}  // namespace attention::test
