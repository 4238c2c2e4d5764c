// Errors against double, bounded by what the specification promises and by what
// the textbook's loop makes in the same precision.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <string>
#include <vector>

#include "kernel/attention.h"
#include "tests/support/attention_case.h"
#include "tests/support/reference.h"
#include "tests/support/run_kernel.h"
#include "tests/support/tensor.h"

namespace attention::test {
namespace {

const std::vector<Sizes> kShapes = {
    {2, 2, 1, 7, 64, 32, 32},    {1, 2, 2, 20, 300, 64, 64},
    {1, 1, 1, 130, 130, 16, 16}, {1, 4, 1, 1, 2048, 128, 128},
    {1, 1, 1, 3, 1000, 256, 80},
};

ReferenceResult Reference(const AttentionCase& request) {
  return ComputeReference(request.inputs(), request.options);
}

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
        ASSERT_NEAR(actual.Get(i), expected.values[i],
                    1e-6 + 2 * UlpAt(expected.values[i], type));
      }
    }
  }
}

TEST(AccuracyTest, Float64OnUnitNormal) {
  Random random(23);
  for (const Sizes& sizes : kShapes) {
    const AttentionCase request = NormalCase(random, sizes, DataType::kFloat64);
    const Expected expected = Reference(request).output;
    const Tensor actual = RunKernel(request).output;
    for (int64_t i = 0; i < actual.size(); ++i) {
      // The float32 promise scaled by 2^-29, twice: the reference computes in
      // double too.
      ASSERT_NEAR(actual.Get(i), expected.values[i],
                  4e-15 + 4e-14 * std::fabs(expected.values[i]));
    }
  }
}

// Of two keys, one of logit 0 and one of a logit x so low that 1 + exp(x) is 1,
// the latter's weight is the kernel's exp(x). From -87 (-708 in double) on,
// below which it is 0 to it.
template <typename Wide>
void ExpectExpWithinTwoUnits(DataType type, double lowest, double highest) {
  constexpr int64_t kRows = 100000;
  AttentionCase request;
  request.query = Tensor(type, {kRows, 1});
  request.key = Tensor(type, {2, 1});
  request.value = Tensor(type, {2, 1});
  request.mask = Tensor(type, {kRows, 2});
  Random random(25);
  for (int64_t i = 0; i < kRows; ++i) {
    request.mask->Set({i, 1}, lowest + (highest - lowest) * random.Real());
  }
  request.options.return_scores = Scores::kWeights;
  const Wide log2e_error =
      std::fabs(static_cast<Wide>(Round(std::numbers::log2e, type)) /
                    std::numbers::log2e_v<Wide> -
                1);
  for (const std::string& name : AllSimdTargets()) {
    const ScopedSimdTarget target(name);
    const Tensor weights = *RunKernel(request).scores;
    for (int64_t i = 0; i < kRows; ++i) {
      const Wide x = static_cast<Wide>(request.mask->Get({i, 1}));
      const Wide exact = std::exp(x);
      const auto actual = static_cast<Wide>(weights.Get({0, 0, i, 1}));
      const auto unit =
          static_cast<Wide>(UlpAt(static_cast<double>(exact), type));
      ASSERT_LE(std::fabs(actual - exact),
                2 * unit + std::fabs(x) * log2e_error * exact)
          << x << " on " << name;
    }
  }
}

TEST(AccuracyTest, ExpIsWithinTwoUnits) {
  ExpectExpWithinTwoUnits<double>(DataType::kFloat32, -87, -17.4);
  ExpectExpWithinTwoUnits<long double>(DataType::kFloat64, -708, -37.4);
}

// The three loops of the textbook in float32. B = Hq = Hkv = 1.
std::vector<float> TextbookInFloat32(const AttentionCase& request,
                                     float scale) {
  const int64_t rows = request.query.shape()[2];
  const int64_t keys = request.key.shape()[2];
  const int64_t size = request.query.shape()[3];
  const int64_t value_size = request.value.shape()[3];
  const auto* q = static_cast<const float*>(request.query.data());
  const auto* k = static_cast<const float*>(request.key.data());
  const auto* v = static_cast<const float*>(request.value.data());
  std::vector<float> output;
  for (int64_t i = 0; i < rows; ++i) {
    std::vector<float> weights(keys);
    float largest = -std::numeric_limits<float>::infinity();
    for (int64_t j = 0; j < keys; ++j) {
      float dot = 0;
      for (int64_t d = 0; d < size; ++d) {
        dot = std::fma(q[i * size + d], k[j * size + d], dot);
      }
      weights[j] = dot * scale;
      largest = std::max(largest, weights[j]);
    }
    float sum = 0;
    for (float& weight : weights) {
      weight = std::exp(weight - largest);
      sum += weight;
    }
    for (int64_t d = 0; d < value_size; ++d) {
      float out = 0;
      for (int64_t j = 0; j < keys; ++j) {
        out = std::fma(weights[j], v[j * value_size + d], out);
      }
      output.push_back(out / sum);
    }
  }
  return output;
}

// At most twice the textbook's error, root mean square and largest.
TEST(AccuracyTest, AtMostTwiceTheTextbooksError) {
  Random random(24);
  for (double query_size : {1e-3, 1.0, 30.0}) {
    for (const auto& [keys, size] :
         {std::pair(100, 16), std::pair(256, 64), std::pair(1000, 128),
          std::pair(4096, 64)}) {
      AttentionCase request =
          NormalCase(random, {1, 1, 1, 16, keys, size, size});
      for (int64_t i = 0; i < request.query.size(); ++i) {
        request.query.Set(i, request.query.Get(i) * query_size);
      }
      const double scale = 1 / std::sqrt(static_cast<double>(size));
      const Expected expected = Reference(request).output;
      const Tensor actual = RunKernel(request).output;
      const std::vector<float> textbook =
          TextbookInFloat32(request, static_cast<float>(scale));
      double squares = 0;
      double textbook_squares = 0;
      double largest = 0;
      double textbook_largest = 0;
      for (int64_t i = 0; i < actual.size(); ++i) {
        const double error = actual.Get(i) - expected.values[i];
        const double textbook_error = textbook[i] - expected.values[i];
        squares += error * error;
        textbook_squares += textbook_error * textbook_error;
        largest = std::max(largest, std::fabs(error));
        textbook_largest =
            std::max(textbook_largest, std::fabs(textbook_error));
      }
      EXPECT_LE(std::sqrt(squares), 2 * std::sqrt(textbook_squares))
          << query_size << " " << keys << " " << size;
      EXPECT_LE(largest, 2 * textbook_largest)
          << query_size << " " << keys << " " << size;
    }
  }
}

}  // namespace
}  // namespace attention::test
