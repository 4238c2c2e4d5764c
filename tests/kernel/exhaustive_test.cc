// All small shapes, and lengths around every boundary of the kernel, on every
// SIMD target against the reference.
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "kernel/attention.h"
#include "tests/support/attention_case.h"
#include "tests/support/run_kernel.h"

namespace attention::test {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

class ShapesTest : public ::testing::TestWithParam<DataType> {};

std::string NameOfType(const ::testing::TestParamInfo<DataType>& info) {
  return std::string(Name(info.param));
}

INSTANTIATE_TEST_SUITE_P(Types, ShapesTest,
                         ::testing::Values(DataType::kFloat32,
                                           DataType::kFloat16,
                                           DataType::kBFloat16,
                                           DataType::kFloat64),
                         NameOfType);

// Query heads and key/value heads.
const std::vector<std::pair<int64_t, int64_t>> kHeads = {
    {1, 1}, {2, 1}, {2, 2}, {3, 1}, {4, 2}};

TEST_P(ShapesTest, AllSmall) {
  Random random(1);
  Sizes sizes;
  for (sizes.query_length = 0; sizes.query_length <= 3; ++sizes.query_length)
    for (sizes.key_length = 0; sizes.key_length <= 5; ++sizes.key_length)
      for (sizes.head_size = 1; sizes.head_size <= 4; ++sizes.head_size)
        for (sizes.value_head_size = 1; sizes.value_head_size <= 4;
             ++sizes.value_head_size)
          for (const auto& [query_heads, kv_heads] : kHeads)
            for (sizes.batch = 0; sizes.batch <= 2; ++sizes.batch) {
              sizes.query_heads = query_heads;
              sizes.kv_heads = kv_heads;
              AttentionCase request = NormalCase(random, sizes, GetParam());
              request.options.return_log_sum_exp = true;
              request.options.causal = random.Pick<Causal>(
                  {Causal::kNone, Causal::kTopLeft, Causal::kBottomRight});
              ASSERT_TRUE(IsRightOnAllTargets(request));
            }
}

// Around N lanes, for every number of lanes there is.
std::vector<int64_t> LengthsAroundVectors() {
  std::set<int64_t> lengths;
  for (int64_t n : {2, 4, 8, 16, 32}) {
    lengths.insert({1, n - 1, n, n + 1, 3 * n, 8 * n + 2});
  }
  return {lengths.begin(), lengths.end()};
}

void ExpectRight(Random& random, const Sizes& sizes, DataType type) {
  AttentionCase request = NormalCase(random, sizes, type);
  request.options.return_log_sum_exp = true;
  ASSERT_TRUE(IsRightOnAllTargets(request));
  request.options.causal = Causal::kBottomRight;
  ASSERT_TRUE(IsRightOnAllTargets(request));
}

TEST_P(ShapesTest, HeadSizes) {
  Random random(2);
  for (int64_t size : LengthsAroundVectors()) {
    ExpectRight(random, {1, 2, 1, 3, 20, size, 5}, GetParam());
    ExpectRight(random, {1, 2, 1, 3, 20, 5, size}, GetParam());
    ExpectRight(random, {1, 1, 1, 17, 18, size, size}, GetParam());
  }
}

TEST_P(ShapesTest, QueryLengths) {
  Random random(3);
  for (int64_t length : LengthsAroundVectors()) {
    ExpectRight(random, {1, 2, 1, length, 19, 8, 8}, GetParam());
  }
  // Around the rows of a register tile and of a task.
  for (int64_t length : {5, 6, 7, 11, 12, 13, 14, 27, 28, 29, 96, 111, 112, 113,
                         127, 128, 129, 225}) {
    ExpectRight(random, {1, 1, 1, length, 33, 16, 16}, GetParam());
  }
}

TEST_P(ShapesTest, KeyLengths) {
  Random random(4);
  std::vector<int64_t> lengths = LengthsAroundVectors();
  lengths.insert(lengths.end(), {255, 256, 257, 511, 512, 513, 767, 768, 769,
                                 1023, 1024, 1025, 1281});
  for (int64_t length : lengths) {
    ExpectRight(random, {1, 1, 1, 1, length, 16, 16}, GetParam());
    ExpectRight(random, {1, 4, 1, 1, length, 8, 8}, GetParam());
    ExpectRight(random, {1, 1, 1, 15, length, 9, 10}, GetParam());
  }
}

TEST_P(ShapesTest, GroupSizes) {
  Random random(5);
  for (int64_t group : {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 32}) {
    ExpectRight(random, {1, 2 * group, 2, 1, 40, 16, 16}, GetParam());
    ExpectRight(random, {1, group, 1, 3, 40, 16, 16}, GetParam());
  }
}

// One feature at a time, with everything else plain.
struct Feature {
  std::string name;
  std::function<void(Random&, const Sizes&, AttentionCase&)> apply;
};

Shape FullMask(const Sizes& s) {
  return {s.batch, s.query_heads, s.query_length, s.key_length};
}

void AddPast(Random& random, const Sizes& s, AttentionCase& request) {
  const DataType type = request.query.type();
  request.past_key = random.NormalTensor(
      type, {s.batch, s.kv_heads, s.key_length / 2 + 1, s.head_size});
  request.past_value = random.NormalTensor(
      type, {s.batch, s.kv_heads, s.key_length / 2 + 1, s.value_head_size});
}

Feature MaskOf(DataType type, int64_t rank) {
  return {"mask_" + std::string(Name(type)) + "_" + std::to_string(rank),
          [=](Random& random, const Sizes& s, AttentionCase& request) {
            const Shape full = FullMask(s);
            request.mask =
                random.NormalTensor(type, Shape(full.end() - rank, full.end()));
          }};
}

Feature ScoresOf(const std::string& name, Scores scores) {
  return {"scores_" + name,
          [=](Random& random, const Sizes& s, AttentionCase& request) {
            request.options.return_scores = scores;
            request.options.softcap = 1.5;
            request.mask = random.NormalTensor(DataType::kBool,
                                               {s.query_length, s.key_length});
          }};
}

std::vector<Feature> Features() {
  std::vector<Feature> features = {
      {"top_left",
       [](Random&, const Sizes&, AttentionCase& request) {
         request.options.causal = Causal::kTopLeft;
       }},
      {"past_causal",
       [](Random& random, const Sizes& s, AttentionCase& request) {
         AddPast(random, s, request);
         request.options.causal = Causal::kTopLeft;
         request.options.return_present = true;
       }},
      {"past", [](Random& random, const Sizes& s,
                  AttentionCase& request) { AddPast(random, s, request); }},
      {"valid",
       [](Random& random, const Sizes& s, AttentionCase& request) {
         for (int64_t b = 0; b < s.batch; ++b) {
           request.valid_lengths.push_back(random.Integer(0, s.key_length));
         }
       }},
      {"valid_causal",
       [](Random& random, const Sizes& s, AttentionCase& request) {
         for (int64_t b = 0; b < s.batch; ++b) {
           request.valid_lengths.push_back(random.Integer(0, s.key_length));
         }
         request.options.causal = Causal::kTopLeft;
       }},
      {"window",
       [](Random&, const Sizes&, AttentionCase& request) {
         request.options.window_left = 3;
         request.options.window_right = 1;
       }},
      {"window_left",
       [](Random&, const Sizes&, AttentionCase& request) {
         request.options.window_left = 0;
         request.options.causal = Causal::kBottomRight;
       }},
      {"window_right",
       [](Random&, const Sizes&, AttentionCase& request) {
         request.options.window_right = 0;
       }},
      {"window_long",
       [](Random&, const Sizes& s, AttentionCase& request) {
         request.options.window_left = s.key_length - 2;
         request.options.window_right = std::numeric_limits<int64_t>::max();
       }},
      {"softcap",
       [](Random&, const Sizes&, AttentionCase& request) {
         request.options.softcap = 0.5;
       }},
      {"alibi",
       [](Random&, const Sizes& s, AttentionCase& request) {
         for (int64_t h = 0; h < s.query_heads; ++h) {
           request.options.alibi_slopes.push_back(0.5 / (h + 1));
         }
       }},
      {"alibi_bottom_right",
       [](Random&, const Sizes& s, AttentionCase& request) {
         request.options.alibi_slopes.assign(s.query_heads, 0.25);
         request.options.causal = Causal::kBottomRight;
       }},
      {"sinks",
       [](Random& random, const Sizes& s, AttentionCase& request) {
         for (int64_t h = 0; h < s.query_heads; ++h) {
           request.options.sinks.push_back(h == 1 ? -kInf : random.Normal());
         }
       }},
      {"sinks_masked",
       [](Random&, const Sizes& s, AttentionCase& request) {
         request.options.sinks.assign(s.query_heads, 0.7);
         request.valid_lengths.assign(s.batch, 0);
       }},
      {"scale", [](Random&, const Sizes&,
                   AttentionCase& request) { request.options.scale = -1.7; }},
      {"scale_zero", [](Random&, const Sizes&,
                        AttentionCase& request) { request.options.scale = 0; }},
      {"precision",
       [](Random&, const Sizes&, AttentionCase& request) {
         request.options.softmax_precision = DataType::kFloat64;
       }},
      {"mask_short",
       [](Random& random, const Sizes& s, AttentionCase& request) {
         if (s.key_length < 3) return;
         request.mask = random.NormalTensor(DataType::kFloat32,
                                            {1, 1, s.key_length / 2 + 1});
       }},
      {"mask_empty",
       [](Random&, const Sizes&, AttentionCase& request) {
         request.mask = Tensor(DataType::kFloat32, {0});
       }},
      {"mask_batch_broadcast",
       [](Random& random, const Sizes& s, AttentionCase& request) {
         request.mask = random.NormalTensor(
             DataType::kBool, {s.batch, 1, s.query_length, s.key_length});
       }},
      ScoresOf("raw", Scores::kRaw),
      ScoresOf("capped", Scores::kCapped),
      ScoresOf("biased", Scores::kBiased),
      ScoresOf("weights", Scores::kWeights),
  };
  for (DataType type :
       {DataType::kBool, DataType::kInt8, DataType::kInt32, DataType::kInt64,
        DataType::kFloat16, DataType::kBFloat16, DataType::kFloat32,
        DataType::kFloat64}) {
    for (int64_t rank : {1, 2, 3, 4}) features.push_back(MaskOf(type, rank));
  }
  return features;
}

class FeatureTest : public ::testing::TestWithParam<Feature> {};

std::ostream& operator<<(std::ostream& out, const Feature& feature) {
  return out << feature.name;
}

INSTANTIATE_TEST_SUITE_P(Each, FeatureTest, ::testing::ValuesIn(Features()),
                         [](const ::testing::TestParamInfo<Feature>& info) {
                           return info.param.name;
                         });

TEST_P(FeatureTest, OnShapesOfEachKind) {
  Random random(6);
  const std::vector<Sizes> shapes = {
      {1, 1, 1, 1, 1, 1, 1},     {2, 2, 1, 1, 7, 3, 4},
      {2, 4, 2, 1, 300, 8, 8},   {1, 2, 2, 5, 16, 4, 9},
      {2, 4, 2, 17, 31, 16, 5},  {1, 1, 1, 30, 260, 5, 8},
      {1, 2, 1, 40, 20, 17, 16}, {2, 3, 1, 6, 513, 8, 17}};
  for (DataType type : {DataType::kFloat32, DataType::kFloat16,
                        DataType::kBFloat16, DataType::kFloat64}) {
    for (const Sizes& sizes : shapes) {
      AttentionCase request = NormalCase(random, sizes, type);
      request.options.return_log_sum_exp = true;
      GetParam().apply(random, sizes, request);
      ASSERT_TRUE(IsRightOnAllTargets(request));
    }
  }
}

// Value types other than the query's.
TEST(TypesTest, EveryPair) {
  Random random(7);
  const std::vector<DataType> types = {DataType::kFloat32, DataType::kFloat16,
                                       DataType::kBFloat16, DataType::kFloat64};
  for (DataType type : types) {
    for (DataType value_type : types) {
      for (int64_t rows : {1, 20}) {
        AttentionCase request =
            NormalCase(random, {2, 2, 1, rows, 270, 19, 21}, type);
        request.value = request.value.ConvertedTo(value_type);
        request.options.return_log_sum_exp = true;
        request.options.return_present = true;
        ASSERT_TRUE(IsRightOnAllTargets(request));
      }
    }
  }
}

}  // namespace
}  // namespace attention::test
