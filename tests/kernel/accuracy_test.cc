// Errors, bounded by what the specification promises, by what docs/numerics.md
// derives, and by what the textbook's loops make in the same precision.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "kernel/attention.h"
#include "tests/support/attention_case.h"
#include "tests/support/reference.h"
#include "tests/support/run_kernel.h"
#include "tests/support/tensor.h"
#include "tests/support/textbook.h"

namespace attention::test {
namespace {

const std::vector<Sizes> kShapes = {
    {2, 2, 1, 7, 64, 32, 32},    {1, 2, 2, 20, 300, 64, 64},
    {1, 1, 1, 130, 130, 16, 16}, {1, 4, 1, 1, 2048, 128, 128},
    {1, 1, 1, 3, 1000, 256, 80},
};

// What the specification promises on unit-normal inputs.
TEST(AccuracyTest, Float32OnUnitNormal) {
  Random random(21);
  for (const Sizes& sizes : kShapes) {
    const AttentionCase request = NormalCase(random, sizes);
    const Expected expected = Reference(request).output;
    const Tensor actual = RunKernel(request).output;
    for (int64_t i = 0; i < actual.size(); ++i) {
      ASSERT_NEAR(actual.Get(i), expected.values[i],
                  1e-6 + 1e-5 * std::fabs(expected.values[i]));
    }
  }
}

// Two units in the last place; the absolute error that outputs near 0 keep is
// that of the float32 computation.
TEST(AccuracyTest, HalvesOnUnitNormal) {
  Random random(22);
  for (DataType type : {DataType::kFloat16, DataType::kBFloat16}) {
    for (const Sizes& sizes : kShapes) {
      const AttentionCase request = NormalCase(random, sizes, type);
      const Expected expected = Reference(request).output;
      const Tensor actual = RunKernel(request).output;
      for (int64_t i = 0; i < actual.size(); ++i) {
        const auto wanted = static_cast<double>(expected.values[i]);
        ASSERT_NEAR(actual.Get(i), wanted, 1e-6 + 2 * UlpAt(wanted, type));
      }
    }
  }
}

// The float32 promise scaled by 2^-29.
TEST(AccuracyTest, Float64OnUnitNormal) {
  Random random(23);
  for (const Sizes& sizes : kShapes) {
    const AttentionCase request = NormalCase(random, sizes, DataType::kFloat64);
    const Expected expected = Reference(request).output;
    const Tensor actual = RunKernel(request).output;
    for (int64_t i = 0; i < actual.size(); ++i) {
      ASSERT_LE(std::fabs(actual.Get(i) - expected.values[i]),
                0x1p-29 * (1e-6 + 1e-5 * std::fabs(expected.values[i])));
    }
  }
}

// Inputs on which errors differ in kind. One batch entry, one head, and enough
// rows that the largest error is not a matter of luck.
struct Kind {
  std::string name;
  std::function<AttentionCase(Random&, DataType)> make;
};

AttentionCase Normal(Random& random, DataType type, int64_t rows, int64_t keys,
                     int64_t size) {
  return NormalCase(random, {1, 1, 1, rows, keys, size, size}, type);
}

void Multiply(Tensor& tensor, double factor) {
  for (int64_t i = 0; i < tensor.size(); ++i) {
    tensor.Set(i, tensor.Get(i) * factor);
  }
}

// Rows of logits around +-1e4, the upper ones about 1 apart.
AttentionCase HugeLogits(Random& random, DataType type) {
  constexpr int64_t kSize = 64;
  AttentionCase request = Normal(random, type, 64, 400, kSize);
  const Tensor direction = random.NormalTensor(DataType::kFloat64, {kSize});
  double norm = 0;
  for (double x : direction.values()) norm += x * x;
  request.options.scale = 0.125;
  for (int64_t i = 0; i < request.query.size(); ++i) {
    request.query.Set(i,
                      direction.Get(i % kSize) + 0.01 * request.query.Get(i));
  }
  for (int64_t i = 0; i < request.key.size(); ++i) {
    const double sign = i / kSize % 2 == 0 ? 1 : -1;
    request.key.Set(
        i, sign * direction.Get(i % kSize) * 8e4 / norm + request.key.Get(i));
  }
  return request;
}

AttentionCase SubnormalInputs(Random& random, DataType type) {
  AttentionCase request = Normal(random, type, 64, 200, 32);
  const double tiny = std::ldexp(1.0, FormatOf(type).min_exponent - 2);
  Multiply(request.query, tiny);
  Multiply(request.value, tiny);
  // As much as the precision, float32 or wider, has.
  request.options.scale =
      type == DataType::kFloat64 ? 1e307 : std::min(1e38, 0.1 / tiny);
  return request;
}

// Values whose weighted sums are much smaller than they.
AttentionCase CancellingValues(Random& random, DataType type) {
  AttentionCase request = Normal(random, type, 64, 512, 32);
  Multiply(request.query, 0.01);
  const int64_t size = request.value.shape()[3];
  for (int64_t j = 1; j < 512; j += 2) {
    for (int64_t d = 0; d < size; ++d) {
      request.value.Set({0, 0, j, d}, -request.value.Get({0, 0, j - 1, d}));
    }
  }
  return request;
}

const std::vector<Kind> kKinds = {
    {"unit normal, 256 keys",
     [](Random& random, DataType type) {
       return Normal(random, type, 128, 256, 64);
     }},
    {"unit normal, 4096 keys",
     [](Random& random, DataType type) {
       return Normal(random, type, 64, 4096, 128);
     }},
    {"unit normal, 100000 keys",
     [](Random& random, DataType type) {
       return Normal(random, type, 24, 100000, 16);
     }},
    {"logits around 10000 and -10000", HugeLogits},
    {"an offset of 1000 in all scores",
     [](Random& random, DataType type) {
       AttentionCase request = Normal(random, type, 64, 300, 64);
       request.mask = Tensor(DataType::kFloat32, {64, 300},
                             std::vector<double>(64 * 300, 1000));
       return request;
     }},
    {"scale 30",
     [](Random& random, DataType type) {
       AttentionCase request = Normal(random, type, 64, 300, 64);
       request.options.scale = 30;
       return request;
     }},
    {"scale 1e-30",
     [](Random& random, DataType type) {
       AttentionCase request = Normal(random, type, 64, 300, 64);
       request.options.scale = 1e-30;
       return request;
     }},
    {"soft cap 2",
     [](Random& random, DataType type) {
       AttentionCase request = Normal(random, type, 64, 300, 64);
       request.options.softcap = 2;
       return request;
     }},
    {"subnormal queries and values", SubnormalInputs},
    {"values that cancel", CancellingValues},
};

// Distances of an output from the reference.
struct Errors {
  Wide largest = 0;
  Wide root_mean_square = 0;
  Wide largest_of_bound = 0;  // as a share of the derived bound
};

Errors ErrorsOf(const Tensor& actual, const Expected& expected) {
  Errors errors;
  for (int64_t i = 0; i < actual.size(); ++i) {
    const Wide wanted = expected.values[i];
    const Wide error = std::fabs(actual.Get(i) - wanted);
    const Wide rounding =
        UlpAt(static_cast<double>(wanted), actual.type()) / Wide{2};
    errors.largest = std::max(errors.largest, error);
    errors.root_mean_square += error * error;
    errors.largest_of_bound = std::max(errors.largest_of_bound,
                                       error / (expected.errors[i] + rounding));
  }
  errors.root_mean_square =
      std::sqrt(errors.root_mean_square / static_cast<Wide>(actual.size()));
  return errors;
}

Wide LargestOf(const Expected& expected) {
  Wide largest = 0;
  for (Wide value : expected.values) {
    largest = std::max(largest, std::fabs(value));
  }
  return largest;
}

// Within the derived bounds, and at most twice the textbook's error, largest
// and root mean square. Prints the table of docs/numerics.md.
TEST(AccuracyTest, AtMostTwiceTheTextbooksError) {
  std::printf(
      "| type | inputs | largest error | in u of the largest output | of the "
      "bound | of the textbook's: largest | root mean square |\n"
      "|---|---|---|---|---|---|---|\n");
  for (DataType type : {DataType::kFloat32, DataType::kFloat16,
                        DataType::kBFloat16, DataType::kFloat64}) {
    Random random(24);
    for (const Kind& kind : kKinds) {
      const AttentionCase request = kind.make(random, type);
      const Expected expected = Reference(request).output;
      const Tensor actual = RunKernel(request).output;
      EXPECT_TRUE(Matches(actual, expected)) << Name(type) << kind.name;
      const Errors ours = ErrorsOf(actual, expected);
      const Errors textbook = ErrorsOf(Textbook(request), expected);
      EXPECT_LE(ours.largest, 2 * textbook.largest) << Name(type) << kind.name;
      EXPECT_LE(ours.root_mean_square, 2 * textbook.root_mean_square)
          << Name(type) << kind.name;
      std::printf("| %s | %s | %.1Le | %.2Lf | %.2Lf | %.2Lf | %.2Lf |\n",
                  std::string(Name(type)).c_str(), kind.name.c_str(),
                  ours.largest,
                  ours.largest / LargestOf(expected) / UnitRoundoff(type),
                  ours.largest_of_bound, ours.largest / textbook.largest,
                  ours.root_mean_square / textbook.root_mean_square);
    }
  }
}

}  // namespace
}  // namespace attention::test
