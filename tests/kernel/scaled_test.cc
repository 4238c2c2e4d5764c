// Scaled rows: how they are rounded, and that the kernel computes with them as
// with the FLOAT32 numbers that they stand for.
#include "kernel/scaled.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "base/executor.h"
#include "kernel/attention.h"
#include "kernel/key_values.h"
#include "tests/support/run_kernel.h"

namespace attention {
namespace {

constexpr DataType kTypes[] = {DataType::kInt8, DataType::kFloat8E4M3};

TEST(Float8Test, HasEveryNumberOfTheType) {
  for (int bits = 0; bits < 256; ++bits) {
    if ((bits & 0x7f) == 0x7f) continue;  // NaN
    const int exponent = bits >> 3 & 15;
    const double fraction = (bits & 7) / 8.0;
    const double magnitude = exponent == 0
                                 ? std::ldexp(fraction, -6)
                                 : std::ldexp(1 + fraction, exponent - 7);
    const float value = Float8ToFloat(static_cast<uint8_t>(bits));
    EXPECT_EQ(std::fabs(value), magnitude) << bits;
    EXPECT_EQ(std::signbit(value), bits >= 128) << bits;
    EXPECT_EQ(FloatToFloat8(value), bits);
  }
}

TEST(Float8Test, RoundsToNearestEven) {
  // Between each two neighbours: below, at and above the middle.
  for (int bits = 0; bits < 0x7e; ++bits) {
    const float low = Float8ToFloat(static_cast<uint8_t>(bits));
    const float high = Float8ToFloat(static_cast<uint8_t>(bits + 1));
    const float middle = (low + high) / 2;
    EXPECT_EQ(FloatToFloat8(std::nextafterf(middle, 0)), bits);
    EXPECT_EQ(FloatToFloat8(middle), bits % 2 == 0 ? bits : bits + 1);
    EXPECT_EQ(FloatToFloat8(std::nextafterf(middle, high)), bits + 1);
    EXPECT_EQ(FloatToFloat8(-middle), (bits % 2 == 0 ? bits : bits + 1) | 128);
  }
  EXPECT_EQ(Float8ToFloat(FloatToFloat8(464)), 448);
}

// Of all scales the smallest one that leaves every element within the type.
TEST(ScaledTest, TheScaleIsTheSmallestThatFits) {
  std::mt19937 random(1);
  std::uniform_int_distribution<uint32_t> any;
  for (DataType type : kTypes) {
    const float most = type == DataType::kInt8 ? 127.5f : 464;
    for (int i = 0; i < 20000; ++i) {
      uint32_t bits = any(random) & 0x7fffffff;
      // Near where the scale changes, too.
      if (i % 2 == 0) bits = (bits & 0x7f800000) | (0x7e0000 + bits % 0x40000);
      float largest;
      std::memcpy(&largest, &bits, sizeof(largest));
      const uint8_t scale = ScaleOf(type, largest);
      if (!std::isfinite(largest)) {
        EXPECT_EQ(scale, kNanScale);
        continue;
      }
      if (largest == 0) continue;
      const double fits = largest / std::ldexp(1.0, scale - 127);
      EXPECT_TRUE(type == DataType::kInt8 ? fits < most : fits <= most)
          << largest;
      if (scale > 0) {
        EXPECT_TRUE(type == DataType::kInt8 ? 2 * fits >= most
                                            : 2 * fits > most)
            << largest;
      }
    }
  }
}

TEST(ScaledTest, ElementsAreRoundedToNearestEven) {
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  for (DataType type : kTypes) {
    for (int exponent : {-149, -130, -126, -40, 0, 3, 100, 126}) {
      std::vector<float> row(64);
      for (float& x : row) x = std::ldexp(normal(random) / 8, exponent);
      row[3] = 0;
      float largest = 0;
      for (float x : row) largest = std::max(largest, std::fabs(x));
      const uint8_t scale = ScaleOf(type, largest);
      std::vector<uint8_t> stored(row.size());
      ScaleElements(type, scale, row.data(), 64, stored.data());
      for (int i = 0; i < 64; ++i) {
        // Exact in double.
        const double wanted = std::ldexp(row[i], 127 - scale);
        double step = 1;
        if (type == DataType::kFloat8E4M3) {
          int at = 0;
          std::frexp(wanted, &at);
          step = std::ldexp(1, std::max(at - 4, -9));
        }
        const double rounded = step * std::nearbyint(wanted / step);
        EXPECT_EQ(std::ldexp(ScaledElement(type, scale, stored.data(), i),
                             127 - scale),
                  rounded)
            << row[i];
      }
    }
  }
}

// Where the nearest number would be 2^128 it is the one before.
TEST(ScaledTest, TheLargestRowsStayFinite) {
  constexpr float kMax = std::numeric_limits<float>::max();
  for (DataType type : kTypes) {
    const float step = type == DataType::kInt8 ? 0x1p122f : 0x1p124f;
    const float largest = kMax - step + 0x1p104f;  // 2^128 - step
    const float row[] = {kMax, -kMax, kMax - step / 4, largest, 0x1p127f, 1};
    uint8_t stored[6];
    const uint8_t scale = ScaleOf(type, kMax);
    ScaleElements(type, scale, row, 6, stored);
    const float wanted[] = {largest, -largest, largest, largest, 0x1p127f, 0};
    for (int i = 0; i < 6; ++i) {
      EXPECT_EQ(ScaledElement(type, scale, stored, i), wanted[i]) << i;
    }
  }
}

TEST(ScaledTest, ARowWithoutNumbersIsNaN) {
  const float row[] = {1, std::numeric_limits<float>::infinity()};
  for (DataType type : kTypes) {
    const uint8_t scale = ScaleOf(type, row[1]);
    uint8_t stored[2];
    ScaleElements(type, scale, row, 2, stored);
    EXPECT_TRUE(std::isnan(ScaledElement(type, scale, stored, 0)));
  }
}

// Keys or values of one sequence, [heads][tokens][size], in blocks.
struct ScaledTensor {
  ScaledTensor(DataType type, int64_t heads, int64_t tokens, int64_t size,
               uint32_t seed)
      : size(size) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    const int64_t blocks = (tokens + kKeyBlock - 1) / kKeyBlock;
    rows.resize(blocks * heads * kKeyBlock * size);
    scales.resize(blocks * heads * kKeyBlock);
    std::vector<float> row(size);
    for (int64_t head = 0; head < heads; ++head) {
      for (int64_t t = 0; t < tokens; ++t) {
        float largest = 0;
        const int exponent = static_cast<int>(random() % 12) - 6;
        for (float& x : row) {
          x = std::ldexp(normal(random), exponent);
          largest = std::max(largest, std::fabs(x));
        }
        if (seed % 5 == 4 &&
            t == (seed % 20 < 10 ? tokens / 2
                                 : std::max<int64_t>(0, tokens - 2))) {
          largest = INFINITY;
        }
        const int64_t at =
            (t / kKeyBlock * heads + head) * kKeyBlock + t % kKeyBlock;
        scales[at] = ScaleOf(type, largest);
        ScaleElements(type, scales[at], row.data(), size, &rows[at * size]);
        for (int64_t c = 0; c < size; ++c) {
          numbers.push_back(
              ScaledElement(type, scales[at], &rows[at * size], c));
        }
      }
    }
  }
  int64_t size;
  std::vector<uint8_t> rows, scales;  // [blocks][heads][kKeyBlock]...
  std::vector<float> numbers;         // [heads][tokens][size]
};

ConstTensorView Float32(const Shape& shape, const std::vector<float>& data) {
  ConstTensorView view;
  view.shape = shape;
  view.data = data.data();
  return view;
}

std::string Answer(const AttentionPlan& plan, int threads) {
  std::string bytes;
  std::vector<char> output(plan.output.num_bytes());
  std::vector<char> lse(plan.log_sum_exp ? plan.log_sum_exp->num_bytes() : 0);
  std::vector<char> scores(plan.scores ? plan.scores->num_bytes() : 0);
  Executor executor(threads - 1);
  AttentionOutputs outputs;
  outputs.output = output.data();
  outputs.log_sum_exp = lse.data();
  outputs.scores = scores.data();
  EXPECT_TRUE(RunAttention(plan, outputs, executor).ok());
  for (const auto* part : {&output, &lse, &scores}) {
    bytes.append(part->data(), part->size());
  }
  return bytes;
}

TEST(ScaledTest, HasTheBitsOfTheNumbers) {
  uint32_t seed = 0;
  for (DataType type : kTypes) {
    for (int64_t tokens : {1, 7, 256, 300, 1100}) {
      for (int64_t size : {128, 72, 5}) {
        for (int64_t queries : {1, 3, 40}) {
          ++seed;
          SCOPED_TRACE(seed);
          constexpr int64_t kHeads = 2;
          const int64_t value_size = seed % 2 == 0 ? size : 24;
          const ScaledTensor key(type, kHeads, tokens, size, 10 * seed);
          const ScaledTensor value(type, kHeads, tokens, value_size,
                                   10 * seed + seed % 5);
          std::vector<float> query(2 * kHeads * queries * size);
          std::mt19937 random(seed);
          std::normal_distribution<float> normal;
          for (float& x : query) x = normal(random);
          AttentionInputs inputs;
          inputs.query = Float32({1, 2 * kHeads, queries, size}, query);
          inputs.key = Float32({1, kHeads, tokens, size}, key.numbers);
          inputs.value =
              Float32({1, kHeads, tokens, value_size}, value.numbers);
          AttentionOptions options;
          options.layout = Layout::kBHSD;
          options.causal = Causal::kBottomRight;
          options.return_log_sum_exp = true;
          if (seed % 3 == 0) options.return_scores = Scores::kWeights;
          if (seed % 4 == 0) options.window_left = 100;
          if (seed % 7 == 0) options.softmax_precision = DataType::kFloat64;
          std::vector<int32_t> indices(queries * 70);
          if (seed % 5 < 2) {
            for (int32_t& index : indices) {
              index = static_cast<int32_t>(random() % tokens);
            }
            inputs.indices.emplace();
            inputs.indices->type = DataType::kInt32;
            inputs.indices->shape = {1, queries, 70};
            inputs.indices->data = indices.data();
          }
          const auto wanted = PlanAttention(inputs, options);
          ASSERT_TRUE(wanted.ok()) << wanted.status();
          inputs.key.data = inputs.value.data = nullptr;
          auto plan = PlanAttention(inputs, options);
          ASSERT_TRUE(plan.ok());
          std::vector<KeyValueView::Block> blocks;
          for (int64_t b = 0; b * kKeyBlock < tokens; ++b) {
            const int64_t row = b * kHeads * kKeyBlock;
            KeyValueView::Block block;
            block.key = &key.rows[row * size];
            block.value = &value.rows[row * value_size];
            block.key_head_stride = kKeyBlock * size;
            block.value_head_stride = kKeyBlock * value_size;
            block.key_scales = &key.scales[row];
            block.value_scales = &value.scales[row];
            block.scale_head_stride = kKeyBlock;
            blocks.push_back(block);
          }
          KeyValueView view;
          view.length = tokens;
          view.key_row_stride = size;
          view.value_row_stride = value_size;
          view.blocks = blocks;
          const auto scaled =
              WithKeys(*std::move(plan), absl::MakeConstSpan(&view, 1), type);
          ASSERT_TRUE(scaled.ok()) << scaled.status();
          const std::string bits = Answer(*wanted, 1);
          EXPECT_TRUE(Answer(*scaled, 2) == bits);
          for (const std::string& target : test::AllSimdTargets()) {
            const test::ScopedSimdTarget scope(target);
            EXPECT_TRUE(Answer(*scaled, 1) == bits) << target;
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace attention
