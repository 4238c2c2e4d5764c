// The corners: empty, masked, huge and tiny.
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <limits>
#include <thread>
#include <vector>

#include "kernel/attention.h"
#include "tests/support/attention_case.h"
#include "tests/support/reference.h"
#include "tests/support/run_kernel.h"
#include "tests/support/tensor.h"

namespace attention::test {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kFloatMax = std::numeric_limits<float>::max();

// Mean of the values of head 0, column d.
double MeanValue(const AttentionCase& request, int64_t d) {
  const int64_t keys = request.value.shape()[2];
  double sum = 0;
  for (int64_t j = 0; j < keys; ++j) sum += request.value.Get({0, 0, j, d});
  return sum / static_cast<double>(keys);
}

TEST(EdgesTest, OneKeyReturnsItsValue) {
  Random random(1);
  for (DataType type : kFloatTypes) {
    for (int64_t rows : {1, 20}) {
      const AttentionCase request =
          NormalCase(random, {2, 2, 2, rows, 1, 16, 16}, type);
      const Tensor output = RunKernel(request).output;
      for (int64_t b = 0; b < 2; ++b)
        for (int64_t h = 0; h < 2; ++h)
          for (int64_t i = 0; i < rows; ++i)
            for (int64_t d = 0; d < 16; ++d)
              ASSERT_EQ(output.Get({b, h, i, d}),
                        request.value.Get({b, h, 0, d}));
    }
  }
}

// Each way to mask everything, with NaN behind it.
TEST(EdgesTest, FullyMaskedIsZero) {
  const int64_t keys = 300;
  for (DataType type : kFloatTypes) {
    for (int64_t rows : {1, 15}) {
      AttentionCase plain;
      plain.query = Filled(type, {1, 2, rows, 8}, 1);
      plain.key = Filled(type, {1, 2, keys, 8}, kNan);
      plain.value = Filled(type, {1, 2, keys, 8}, kNan);
      plain.options.return_log_sum_exp = true;
      plain.options.return_scores = Scores::kWeights;
      std::vector<AttentionCase> masked(6, plain);
      masked[0].mask = Filled(DataType::kBool, {keys}, 0);
      masked[1].mask = Filled(DataType::kFloat32, {rows, keys}, -kInf);
      masked[2].mask = Filled(DataType::kFloat16, {1, keys}, -kInf);
      masked[3].valid_lengths = {0};
      masked[4].mask = Tensor(DataType::kFloat64, {0});
      masked[5].options.window_left = masked[5].options.window_right = 0;
      masked[5].mask = Filled(DataType::kBool, {keys}, 0);
      for (AttentionCase& request : masked) {
        KernelResult result = RunKernel(request);
        ExpectAll(result.output, 0);
        ExpectAll(*result.scores, 0);
        ExpectAll(*result.log_sum_exp, -kInf);
        request.options.sinks = {-2, 3};
        result = RunKernel(request);
        ExpectAll(result.output, 0);
        ExpectAll(*result.scores, 0);
        ExpectAll(result.log_sum_exp->Slice(1, 0, 1), -2);
        ExpectAll(result.log_sum_exp->Slice(1, 1, 2), 3);
      }
    }
  }
}

// With more queries than keys, bottom-right masks the first rows whole.
TEST(EdgesTest, NegativeOffsetMasksTheFirstRows) {
  Random random(2);
  AttentionCase request = NormalCase(random, {1, 1, 1, 40, 30, 8, 8});
  request.options.causal = Causal::kBottomRight;
  request.options.return_log_sum_exp = true;
  const KernelResult result = RunKernel(request);
  ExpectAll(result.output.Slice(2, 0, 10), 0);
  ExpectAll(result.log_sum_exp->Slice(2, 0, 10), -kInf);
  EXPECT_TRUE(Matches(result, Reference(request)));
}

TEST(EdgesTest, ZeroSizes) {
  Random random(3);
  for (DataType type : kFloatTypes) {
    for (const Sizes& sizes :
         {Sizes{0, 2, 1, 3, 4, 8, 8}, Sizes{2, 2, 1, 0, 4, 8, 8},
          Sizes{2, 2, 1, 3, 0, 8, 8}, Sizes{2, 2, 1, 0, 0, 8, 8}}) {
      AttentionCase request = NormalCase(random, sizes, type);
      request.options.return_log_sum_exp = true;
      request.options.return_scores = Scores::kWeights;
      request.options.return_present = true;
      const KernelResult result = RunKernel(request, 2);
      ExpectAll(result.output, 0);
      ExpectAll(*result.log_sum_exp, -kInf);
      EXPECT_TRUE(Matches(result, Reference(request)));
    }
  }
}

TEST(EdgesTest, RaggedWithEmptySequences) {
  Random random(4);
  AttentionCase request;
  request.options.layout = Layout::kRagged;
  request.options.return_log_sum_exp = true;
  request.query_starts = {0, 0, 2, 5, 5};
  request.key_starts = {0, 3, 3, 7, 7};
  request.query = random.NormalTensor(DataType::kFloat32, {5, 2, 8});
  request.key = random.NormalTensor(DataType::kFloat32, {7, 1, 8});
  request.value = random.NormalTensor(DataType::kFloat32, {7, 1, 8});
  const KernelResult result = RunKernel(request);
  ExpectAll(result.output.Slice(0, 0, 2), 0);
  ExpectAll(result.log_sum_exp->Slice(0, 0, 2), -kInf);
  EXPECT_TRUE(Matches(result, Reference(request)));
  request.query_starts = request.key_starts = {0};
  request.query = Tensor(DataType::kFloat32, {0, 2, 8});
  request.key = request.value = Tensor(DataType::kFloat32, {0, 1, 8});
  EXPECT_EQ(RunKernel(request).output.shape(), Shape({0, 2, 8}));
}

// An ordinary softmax: -1e4 is not masked.
TEST(EdgesTest, RowsOfMinusTenThousand) {
  Random random(5);
  for (int64_t rows : {1, 20}) {
    AttentionCase request = NormalCase(random, {1, 1, 1, rows, 300, 16, 16});
    const Expected plain = Reference(request).output;
    request.mask = Filled(DataType::kFloat32, {300}, -1e4);
    Expected expected = Reference(request).output;
    expected.values = plain.values;
    EXPECT_TRUE(Matches(RunKernel(request).output, expected));
  }
}

// float32's lowest number absorbs any score: the mean of the values.
TEST(EdgesTest, RowsOfTheLowestNumber) {
  Random random(6);
  for (int64_t rows : {1, 20}) {
    for (int64_t keys : {3, 256, 700}) {
      AttentionCase request = NormalCase(random, {1, 1, 1, rows, keys, 16, 16});
      request.mask = Filled(DataType::kFloat32, {keys}, -kFloatMax);
      request.options.return_log_sum_exp = true;
      const KernelResult result = RunKernel(request);
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t d = 0; d < 16; ++d) {
          // Partial sums of a block are below 40 units; each is rounded.
          ASSERT_NEAR(result.output.Get({0, 0, i, d}), MeanValue(request, d),
                      1e-6);
        }
      }
      ExpectAll(*result.log_sum_exp, -kFloatMax);
    }
  }
}

// A FLOAT64 mask may hold finite numbers that float32 does not: they are its
// largest ones, not infinite.
TEST(EdgesTest, MasksBeyondFloat32) {
  Random random(26);
  for (int64_t rows : {1, 20}) {
    AttentionCase lowest = NormalCase(random, {1, 1, 1, rows, 300, 16, 16});
    lowest.mask = Filled(DataType::kFloat32, {300}, -kFloatMax);
    lowest.options.return_scores = Scores::kBiased;
    AttentionCase beyond = lowest;
    for (double value : {-1e300, -3.5e38, -kFloatMax}) {
      beyond.mask = Filled(DataType::kFloat64, {300}, value);
      EXPECT_TRUE(SameBits(RunKernel(beyond), RunKernel(lowest))) << value;
      EXPECT_TRUE(IsRightOnAllTargets(beyond)) << value;
    }
    lowest.mask->Set(200, kFloatMax);
    beyond.mask->Set(200, 1e300);
    EXPECT_TRUE(SameBits(RunKernel(beyond), RunKernel(lowest)));
    lowest.mask->Set(100, -kInf);
    beyond.mask->Set(100, -kInf);
    EXPECT_TRUE(SameBits(RunKernel(beyond), RunKernel(lowest)));
  }
}

TEST(EdgesTest, LowestNumberBesideOthersWeighsNothing) {
  Random random(7);
  AttentionCase request = NormalCase(random, {1, 1, 1, 20, 600, 16, 16});
  AttentionCase masked = request;
  request.mask = random.NormalTensor(DataType::kFloat32, {600});
  masked.mask = request.mask;
  for (int64_t j = 0; j < 600; j += 2) {
    request.mask->Set(j, -kFloatMax);
    masked.mask->Set(j, -kInf);
  }
  EXPECT_TRUE(SameBits(RunKernel(request), RunKernel(masked)));
}

// Logits of about +-1e4; float32 knows them to 1e-3, as the bounds say.
TEST(EdgesTest, HugeLogits) {
  Random random(8);
  for (DataType type : {DataType::kFloat32, DataType::kFloat64}) {
    for (double scale : {2e3, -2e3}) {
      AttentionCase request =
          NormalCase(random, {1, 2, 1, 20, 400, 16, 16}, type);
      request.options.scale = scale;
      request.options.return_log_sum_exp = true;
      EXPECT_TRUE(IsRightOnAllTargets(request));
      request.mask = random.NormalTensor(DataType::kFloat32, {20, 400});
      for (int64_t i = 0; i < request.mask->size(); ++i) {
        request.mask->Set(i, request.mask->Get(i) * 1e4);
      }
      EXPECT_TRUE(IsRightOnAllTargets(request));
    }
  }
}

// Logits far beyond what exp can take: the largest wins.
TEST(EdgesTest, SoftmaxDoesNotOverflow) {
  for (DataType type : {DataType::kFloat32, DataType::kFloat64}) {
    AttentionCase request;
    request.query = Filled(type, {1, 1, 1, 1}, 1e18);
    request.key = Tensor(type, {1, 1, 4, 1}, {-1e18, 1e18, 3, -2});
    request.value = Tensor(type, {1, 1, 4, 2}, {1, 2, 3, 4, 5, 6, 7, 8});
    request.options.scale = 1;
    request.options.return_log_sum_exp = true;
    const KernelResult result = RunKernel(request);
    EXPECT_EQ(result.output.values(), (std::vector<double>{3, 4}));
    EXPECT_NEAR(result.log_sum_exp->Get(0), 1e36, 1e30);
  }
}

TEST(EdgesTest, AHundredThousandKeys) {
  Random random(9);
  for (DataType type : {DataType::kFloat32, DataType::kFloat16}) {
    AttentionCase request =
        NormalCase(random, {1, 1, 1, 2, 100000, 8, 8}, type);
    request.options.return_log_sum_exp = true;
    EXPECT_TRUE(IsRightOnAllTargets(request));
  }
}

// Sums of a hundred thousand equal terms do not drift.
TEST(EdgesTest, AHundredThousandEqualKeys) {
  AttentionCase request;
  request.query = Filled(DataType::kFloat32, {1, 8}, 0);
  request.key = Filled(DataType::kFloat32, {100000, 8}, 1);
  request.value = Filled(DataType::kFloat32, {100000, 8}, 0.1);
  request.options.return_log_sum_exp = true;
  const KernelResult result = RunKernel(request);
  for (int64_t d = 0; d < 8; ++d) {
    EXPECT_NEAR(result.output.Get(d), 0.1, 0.1 * 300 * 0x1p-24);
  }
  EXPECT_NEAR(result.log_sum_exp->Get(0), std::log(1e5), 1e-5);
}

TEST(EdgesTest, Subnormals) {
  Random random(10);
  for (DataType type : kFloatTypes) {
    const FloatFormat format = FormatOf(type);
    const double tiny = std::ldexp(1.0, format.min_exponent - 2);
    AttentionCase request = NormalCase(random, {1, 1, 1, 5, 40, 8, 8}, type);
    for (int64_t i = 0; i < request.value.size(); ++i) {
      request.value.Set(i, random.Normal() * tiny);
    }
    EXPECT_TRUE(IsRightOnAllTargets(request)) << "subnormal values";
    // One key: not a bit may be lost.
    AttentionCase one = request;
    one.key = request.key.Slice(2, 0, 1);
    one.value = request.value.Slice(2, 0, 1);
    const Tensor output = RunKernel(one).output;
    for (int64_t d = 0; d < 8; ++d) {
      EXPECT_EQ(output.Get({0, 0, 0, d}), one.value.Get({0, 0, 0, d}));
    }
    for (int64_t i = 0; i < request.query.size(); ++i) {
      request.query.Set(i, random.Normal() * tiny);
    }
    request.options.scale = type == DataType::kFloat16 ? 1e5 : 1e30;
    request.options.return_scores = Scores::kRaw;
    EXPECT_TRUE(IsRightOnAllTargets(request)) << "subnormal queries";
  }
}

TEST(EdgesTest, ScalesOfEverySize) {
  Random random(11);
  for (DataType type : kFloatTypes) {
    for (double scale : {0.0, -0.0, -1.0, 1e-30, 1e-10, 100.0, -100.0, 0.001}) {
      AttentionCase request =
          NormalCase(random, {1, 2, 1, 15, 300, 8, 8}, type);
      request.options.scale = scale;
      request.options.return_log_sum_exp = true;
      EXPECT_TRUE(IsRightOnAllTargets(request));
    }
  }
}

TEST(EdgesTest, SoftcapsOfEverySize) {
  Random random(12);
  for (DataType type : kFloatTypes) {
    for (double softcap : {1e-30, 1e-3, 1.0, 50.0, 1e4}) {
      AttentionCase request =
          NormalCase(random, {1, 2, 1, 15, 300, 8, 8}, type);
      request.options.softcap = softcap;
      request.options.scale = 3;
      request.options.return_scores = Scores::kCapped;
      EXPECT_TRUE(IsRightOnAllTargets(request));
      request.options.scale = 1e-6;  // tanh near 0
      EXPECT_TRUE(IsRightOnAllTargets(request));
    }
  }
}

TEST(EdgesTest, SinksOfEverySize) {
  Random random(13);
  AttentionCase request = NormalCase(random, {1, 4, 1, 3, 300, 8, 8});
  request.options.return_log_sum_exp = true;
  request.options.sinks = {1e30, -1e30, 100, -100};
  EXPECT_TRUE(IsRightOnAllTargets(request));
  const KernelResult result = RunKernel(request);
  ExpectAll(result.output.Slice(1, 0, 1), 0);
}

TEST(EdgesTest, DoublePrecisionOfFloat32Inputs) {
  Random random(14);
  AttentionCase request = NormalCase(random, {1, 2, 1, 15, 300, 64, 64});
  request.options.softmax_precision = DataType::kFloat64;
  request.options.return_log_sum_exp = true;
  request.options.return_scores = Scores::kWeights;
  EXPECT_TRUE(IsRightOnAllTargets(request));
  // The output is the double's nearest float32.
  const Expected expected = Reference(request).output;
  const Tensor output = RunKernel(request).output;
  int64_t nearest = 0;
  for (int64_t i = 0; i < output.size(); ++i) {
    nearest += output.Get(i) == Round(expected.values[i], DataType::kFloat32);
  }
  EXPECT_GE(nearest, output.size() - 1);
}

// The value of a single key comes out rounded once, ties to even, also from
// double: rounding to float32 on the way would turn what is just beside a tie
// into one.
TEST(EdgesTest, OutputsRoundOnceToNearestEven) {
  Random random(22);
  for (DataType type : {DataType::kFloat16, DataType::kBFloat16}) {
    for (DataType value_type : {DataType::kFloat32, DataType::kFloat64}) {
      AttentionCase request = NormalCase(random, {1, 1, 1, 1, 1, 1, 600}, type);
      request.value = Tensor(value_type, {1, 1, 1, 600});
      for (int64_t i = 0; i < 600; ++i) {
        // Magnitudes from subnormal to overflowing.
        const double x = Round(
            std::exp2(random.Integer(-26, 15)) * (1 + random.Real()), type);
        const double tie = x + UlpAt(x, type) / 2;
        const double beside = tie * (1 + 0x1p-40 * random.Integer(-1, 1));
        request.value.Set(i, random.Chance(0.5) ? beside : -beside);
      }
      const Tensor output = RunKernel(request).output;
      for (int64_t i = 0; i < 600; ++i) {
        ASSERT_EQ(output.Get(i), Round(request.value.Get(i), type))
            << request.value.Get(i);
      }
    }
  }
}

TEST(EdgesTest, OutputsBeyondTheTypeAreInfinite) {
  AttentionCase request;
  request.query = Filled(DataType::kFloat16, {1, 4}, 200);
  request.key = Filled(DataType::kFloat16, {3, 4}, 200);
  request.value = Filled(DataType::kFloat16, {3, 1}, 65504);
  request.options.scale = 1;
  request.options.return_scores = Scores::kRaw;
  KernelResult result = RunKernel(request);
  ExpectAll(*result.scores, kInf);
  ExpectAll(result.output, 65504);
  request.value = Filled(DataType::kFloat32, {3, 1}, -1e6);
  ExpectAll(RunKernel(request).output, -kInf);
}

TEST(EdgesTest, CancelledStops) {
  Random random(20);
  const AttentionCase request = NormalCase(random, {1, 1, 1, 40, 600, 16, 16});
  const AttentionPlan plan =
      PlanAttention(request.inputs(), request.options).value();
  std::vector<float> output(plan.output.num_elements());
  AttentionOutputs outputs;
  outputs.output = output.data();
  for (int threads : {1, 2}) {
    Executor executor(threads - 1);
    std::atomic<bool> cancelled{true};
    EXPECT_EQ(RunAttention(plan, outputs, executor, &cancelled).code(),
              absl::StatusCode::kCancelled);
    cancelled = false;
    EXPECT_TRUE(RunAttention(plan, outputs, executor, &cancelled).ok());
  }
}

TEST(EdgesTest, NullOutputsWhereThereIsNothing) {
  AttentionCase request;
  request.query = Tensor(DataType::kFloat32, {0, 4});
  request.key = request.value = Tensor(DataType::kFloat32, {3, 4});
  const AttentionPlan plan =
      PlanAttention(request.inputs(), request.options).value();
  Executor executor(1);
  EXPECT_TRUE(RunAttention(plan, {}, executor).ok());
}

TEST(EdgesTest, ManyCallsShareAPool) {
  Random random(21);
  const AttentionCase request = NormalCase(random, {1, 4, 2, 60, 300, 16, 16});
  const KernelResult expected = RunKernel(request);
  const AttentionPlan plan =
      PlanAttention(request.inputs(), request.options).value();
  Executor executor(1);
  constexpr int kCallers = 4;
  std::vector<Tensor> outputs(kCallers,
                              Tensor(plan.output.type, plan.output.shape));
  std::vector<std::thread> callers;
  for (Tensor& output : outputs) {
    callers.emplace_back([&] {
      for (int round = 0; round < 5; ++round) {
        AttentionOutputs to;
        to.output = output.data();
        EXPECT_TRUE(RunAttention(plan, to, executor).ok());
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  for (const Tensor& output : outputs) {
    EXPECT_TRUE(SameBits(output, expected.output));
  }
}

}  // namespace
}  // namespace attention::test
