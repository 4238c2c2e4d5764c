// MathMode::kFast. What it promises is tested with the rest: its error bounds
// by random_test, its bits by same_bits_test, parts_test and poison_test.
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

TEST(FastMathTest, DiffersIfTheCpuHasTheDotProduct) {
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
