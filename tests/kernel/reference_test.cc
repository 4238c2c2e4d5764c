// The reference checked by hand: what the other tests lean on.
#include "tests/support/reference.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "tests/support/attention_case.h"
#include "tests/support/tensor.h"

namespace attention::test {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

uint16_t Bits16(DataType type, double x) {
  uint16_t bits;
  Encode(type, x, &bits);
  return bits;
}

TEST(TensorTest, RoundsToFloat16) {
  EXPECT_EQ(Bits16(DataType::kFloat16, 1), 0x3C00);
  EXPECT_EQ(Bits16(DataType::kFloat16, -2), 0xC000);
  EXPECT_EQ(Bits16(DataType::kFloat16, 65504), 0x7BFF);
  EXPECT_EQ(Bits16(DataType::kFloat16, 65519.9), 0x7BFF);
  EXPECT_EQ(Bits16(DataType::kFloat16, 65520), 0x7C00);
  EXPECT_EQ(Bits16(DataType::kFloat16, -kInf), 0xFC00);
  EXPECT_EQ(Bits16(DataType::kFloat16, 0x1p-24), 0x0001);
  EXPECT_EQ(Bits16(DataType::kFloat16, 0x1p-25), 0x0000);      // tie to even
  EXPECT_EQ(Bits16(DataType::kFloat16, 0x1.8p-24), 0x0002);    // tie to even
  EXPECT_EQ(Bits16(DataType::kFloat16, 0x1.ff8p-15), 0x03FF);  // subnormal
  EXPECT_EQ(Bits16(DataType::kFloat16, 1 + 0x1p-11), 0x3C00);  // tie to even
  EXPECT_EQ(Bits16(DataType::kFloat16, 1 + 0x3p-11), 0x3C02);
  EXPECT_EQ(Bits16(DataType::kFloat16, -0.0), 0x8000);
}

TEST(TensorTest, RoundsToBFloat16) {
  EXPECT_EQ(Bits16(DataType::kBFloat16, 1), 0x3F80);
  EXPECT_EQ(Bits16(DataType::kBFloat16, 1 + 0x1p-8), 0x3F80);  // tie to even
  EXPECT_EQ(Bits16(DataType::kBFloat16, 1 + 0x3p-8), 0x3F82);
  EXPECT_EQ(Bits16(DataType::kBFloat16, 0x1p-133), 0x0001);
  EXPECT_EQ(Bits16(DataType::kBFloat16, 0x1.ffp127), 0x7F80);
  EXPECT_EQ(Bits16(DataType::kBFloat16, kInf), 0x7F80);
}

TEST(TensorTest, DecodesEveryHalfItEncodes) {
  for (DataType type : {DataType::kFloat16, DataType::kBFloat16}) {
    for (int bits = 0; bits <= 0xFFFF; ++bits) {
      const auto half = static_cast<uint16_t>(bits);
      const double value = Decode(type, &half);
      if (std::isnan(value)) continue;
      ASSERT_EQ(Bits16(type, value), bits);
    }
  }
}

TEST(TensorTest, RoundsFloat32AsTheCompilerDoes) {
  Random random(1);
  for (int i = 0; i < 10000; ++i) {
    const double x = random.Normal() * std::exp2(random.Integer(-150, 128));
    ASSERT_EQ(Round(x, DataType::kFloat32), static_cast<float>(x)) << x;
  }
}

TEST(TensorTest, PlacesRowsWhereStridesSay) {
  const Tensor plain(DataType::kFloat32, {2, 2, 3},
                     {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11});
  const Tensor placed = plain.PlacedAs({{11, 4, 1}, 1, 8});
  EXPECT_EQ(placed.values(), plain.values());
  const auto* data = static_cast<const float*>(placed.data());
  EXPECT_EQ(data[11 + 4 + 2], 11);
  EXPECT_TRUE(std::isnan(data[3]));
  EXPECT_TRUE(placed.GuardsIntact());
  EXPECT_EQ(plain.Slice(1, 1, 2).values(),
            (std::vector<double>{3, 4, 5, 9, 10, 11}));
  EXPECT_EQ(
      Concatenate({plain.Slice(1, 0, 1), plain.Slice(1, 1, 2)}, 1).values(),
      plain.values());
}

AttentionCase Matrices(Tensor query, Tensor key, Tensor value) {
  AttentionCase result;
  result.query = std::move(query);
  result.key = std::move(key);
  result.value = std::move(value);
  return result;
}

Tensor Floats(Shape shape, const std::vector<double>& values) {
  return Tensor(DataType::kFloat32, std::move(shape), values);
}

using Values = std::vector<Wide>;

ReferenceResult Compute(const AttentionCase& request) {
  return ComputeReference(request.inputs(), request.options);
}

void ExpectNear(const Values& actual, const std::vector<double>& expected,
                double tolerance = 1e-6) {
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < actual.size(); ++i) {
    if (std::isinf(expected[i])) {
      EXPECT_EQ(actual[i], expected[i]) << i;
    } else {
      EXPECT_NEAR(actual[i], expected[i], tolerance) << i;
    }
  }
}

TEST(ReferenceTest, IdentityMatrices) {
  const Tensor identity = Floats({2, 2}, {1, 0, 0, 1});
  AttentionCase request = Matrices(identity, identity, identity);
  ExpectNear(Compute(request).output.values,
             {0.669762, 0.330238, 0.330238, 0.669762});
}

TEST(ReferenceTest, WorkedExample) {
  AttentionCase request =
      Matrices(Floats({1, 2}, {1, 0}), Floats({2, 2}, {0.5, 0.5, 0.3, 0.7}),
               Floats({2, 2}, {1, 0, 0.5, 0.5}));
  request.options.return_scores = Scores::kWeights;
  const ReferenceResult result = Compute(request);
  ExpectNear(result.output.values, {0.767648, 0.232352});
  ExpectNear(result.scores->values, {0.535297, 0.464703});
}

// With D = 1, scale 1 and a query of 1, key j is the score of key j.
AttentionCase ScoresOf(const std::vector<double>& scores,
                       const std::vector<double>& values, int64_t rows = 1) {
  const auto keys = static_cast<int64_t>(scores.size());
  AttentionCase request =
      Matrices(Floats({rows, 1}, std::vector<double>(rows, 1)),
               Floats({keys, 1}, scores), Floats({keys, 1}, values));
  request.options.scale = 1;
  request.options.return_log_sum_exp = true;
  return request;
}

TEST(ReferenceTest, StagesOfScores) {
  AttentionCase request = ScoresOf({1, 2, 30}, {1, 2, 3});
  request.options.scale = 0.5;
  request.options.softcap = 2;
  request.mask = Floats({2}, {-0.25, 1});  // padded
  const std::vector<double> capped = {2 * std::tanh(0.25), 2 * std::tanh(0.5),
                                      2 * std::tanh(7.5)};
  const double a = std::exp(capped[0] - 0.25);
  const double b = std::exp(capped[1] + 1);
  const std::vector<std::vector<double>> stages = {
      {0.5, 1, 15},
      capped,
      {capped[0] - 0.25, capped[1] + 1, -kInf},
      {a / (a + b), b / (a + b), 0}};
  for (int stage = 0; stage < 4; ++stage) {
    request.options.return_scores = static_cast<Scores>(stage + 1);
    const ReferenceResult result = Compute(request);
    EXPECT_EQ(result.scores->shape, Shape({1, 1, 1, 3}));
    ExpectNear(result.scores->values, stages[stage], 1e-12);
    ExpectNear(result.log_sum_exp->values, {std::log(a + b)}, 1e-12);
    ExpectNear(result.output.values, {(a + 2 * b) / (a + b)}, 1e-12);
  }
}

// Which of four keys of weight 1 each row attends.
std::vector<double> Visible(AttentionCase request) {
  request.options.return_scores = Scores::kBiased;
  std::vector<double> seen;
  const ReferenceResult result = Compute(request);
  for (Wide score : result.scores->values) {
    seen.push_back(score == -kInf ? 0 : 1);
  }
  return seen;
}

TEST(ReferenceTest, CausalAlignments) {
  AttentionCase request = ScoresOf({0, 0, 0}, {1, 2, 3}, 2);
  request.options.causal = Causal::kTopLeft;
  EXPECT_EQ(Visible(request), (std::vector<double>{1, 0, 0, 1, 1, 0}));
  request.options.causal = Causal::kBottomRight;
  EXPECT_EQ(Visible(request), (std::vector<double>{1, 1, 0, 1, 1, 1}));
  request.valid_lengths = {1};
  EXPECT_EQ(Visible(request), (std::vector<double>{0, 0, 0, 1, 0, 0}));
  request.options.causal = Causal::kTopLeft;
  EXPECT_EQ(Visible(request), (std::vector<double>{0, 0, 0, 1, 0, 0}));
  request.options.causal = Causal::kNone;
  EXPECT_EQ(Visible(request), (std::vector<double>{1, 0, 0, 1, 0, 0}));
}

TEST(ReferenceTest, CausalWithPast) {
  AttentionCase request = ScoresOf({0, 0}, {3, 4}, 2);
  request.past_key = Floats({1, 1, 2, 1}, {0, 0});
  request.past_value = Floats({1, 1, 2, 1}, {1, 2});
  request.options.causal = Causal::kTopLeft;
  EXPECT_EQ(Visible(request), (std::vector<double>{1, 1, 1, 0, 1, 1, 1, 1}));
  ExpectNear(Compute(request).output.values, {2, 2.5}, 1e-12);
  request.options.return_present = true;
  EXPECT_EQ(Compute(request).present_value->values, (Values{1, 2, 3, 4}));
}

TEST(ReferenceTest, Windows) {
  AttentionCase request = ScoresOf({0, 0, 0, 0}, {1, 2, 3, 4}, 3);
  request.options.window_left = 1;
  EXPECT_EQ(Visible(request),
            (std::vector<double>{1, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1}));
  request.options.window_right = 0;
  EXPECT_EQ(Visible(request),
            (std::vector<double>{1, 0, 0, 0, 1, 1, 0, 0, 0, 1, 1, 0}));
  request.options.causal = Causal::kBottomRight;
  EXPECT_EQ(Visible(request),
            (std::vector<double>{1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 1, 1}));
}

TEST(ReferenceTest, Chunks) {
  AttentionCase request = ScoresOf({0, 0, 0, 0, 0}, {1, 2, 3, 4, 5}, 3);
  request.options.chunk_size = 2;
  EXPECT_EQ(Visible(request),
            (std::vector<double>{1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 1, 1, 0}));
  request.options.causal = Causal::kBottomRight;
  EXPECT_EQ(Visible(request),
            (std::vector<double>{0, 0, 1, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 1}));
  // Queries that stand before all keys share a chunk with none of them.
  request = ScoresOf({0}, {1}, 3);
  request.options.causal = Causal::kBottomRight;
  request.options.chunk_size = 2;
  EXPECT_EQ(Visible(request), (std::vector<double>{0, 0, 1}));
}

TEST(ReferenceTest, Alibi) {
  AttentionCase request = ScoresOf({0, 0, 0}, {1, 2, 3}, 2);
  request.options.alibi_slopes = {0.5};
  request.options.return_scores = Scores::kBiased;
  EXPECT_EQ(Compute(request).scores->values,
            (Values{0, -0.5, -1, -0.5, 0, -0.5}));
}

TEST(ReferenceTest, Sinks) {
  AttentionCase request = ScoresOf({0, 0}, {1, 3});
  request.options.sinks = {std::log(2.0)};
  ReferenceResult result = Compute(request);
  ExpectNear(result.output.values, {1}, 1e-12);
  ExpectNear(result.log_sum_exp->values, {std::log(4.0)}, 1e-12);
  request.options.sinks = {-kInf};
  result = Compute(request);
  ExpectNear(result.output.values, {2}, 1e-12);
  ExpectNear(result.log_sum_exp->values, {std::log(2.0)}, 1e-12);
  request.mask = Tensor(DataType::kBool, {2}, {0, 0});
  request.options.sinks = {5};
  result = Compute(request);
  EXPECT_EQ(result.output.values, (Values{0}));
  EXPECT_EQ(result.log_sum_exp->values, Values{5});
}

TEST(ReferenceTest, FullyMaskedRow) {
  AttentionCase request = ScoresOf({0, NAN}, {INFINITY, NAN});
  request.mask = Floats({2}, {-kInf, -kInf});
  request.options.return_scores = Scores::kWeights;
  const ReferenceResult result = Compute(request);
  EXPECT_EQ(result.output.values, (Values{0}));
  EXPECT_EQ(result.scores->values, (Values{0, 0}));
  EXPECT_EQ(result.log_sum_exp->values, Values{-kInf});
}

TEST(ReferenceTest, MaskRankThreeIsHeadsFirst) {
  AttentionCase request;
  request.query = Floats({2, 3, 1, 1}, std::vector<double>(6, 1));
  request.key = Floats({2, 3, 2, 1}, std::vector<double>(12, 0));
  request.value = request.key;
  request.mask = Tensor(DataType::kBool, {3, 1, 2}, {1, 0, 0, 1, 1, 1});
  EXPECT_EQ(Visible(request),
            (std::vector<double>{1, 0, 0, 1, 1, 1, 1, 0, 0, 1, 1, 1}));
}

TEST(ReferenceTest, HeadsOfAGroupAreNeighbours) {
  AttentionCase request;
  request.query = Floats({1, 4, 1, 1}, {1, 1, 1, 1});
  request.key = Floats({1, 2, 1, 1}, {1, 1});
  request.value = Floats({1, 2, 1, 1}, {10, 20});
  EXPECT_EQ(Compute(request).output.values, (Values{10, 10, 20, 20}));
}

TEST(ReferenceTest, LayoutsAgree) {
  Random random(2);
  const Sizes sizes = {2, 4, 2, 3, 5, 3, 2};
  const AttentionCase bhsd = NormalCase(random, sizes);
  const ReferenceResult expected = Compute(bhsd);
  const auto swap = [](const Tensor& t) {  // axes 1 and 2
    const Shape& s = t.shape();
    Tensor result(t.type(), {s[0], s[2], s[1], s[3]});
    for (int64_t i = 0; i < t.size(); ++i) {
      const int64_t d = i % s[3], r = i / s[3] % s[2],
                    h = i / s[3] / s[2] % s[1], b = i / s[3] / s[2] / s[1];
      result.Set({b, r, h, d}, t.Get(i));
    }
    return result;
  };
  AttentionCase bshd = bhsd;
  bshd.options.layout = Layout::kBSHD;
  bshd.query = swap(bhsd.query);
  bshd.key = swap(bhsd.key);
  bshd.value = swap(bhsd.value);
  const Expected output = Compute(bshd).output;
  EXPECT_EQ(output.shape, Shape({2, 3, 4, 2}));
  const auto tensor = [](const Expected& values) {
    return Tensor(DataType::kFloat64, values.shape,
                  {values.values.begin(), values.values.end()});
  };
  EXPECT_EQ(swap(tensor(output)).values(), tensor(expected.output).values());

  const auto reshaped = [](const Tensor& t, Shape shape) {
    return Tensor(t.type(), std::move(shape), t.values());
  };
  AttentionCase packed = bhsd;
  packed.options.query_heads = 4;
  packed.options.kv_heads = 2;
  packed.query = reshaped(bshd.query, {2, 3, 12});
  packed.key = reshaped(bshd.key, {2, 5, 6});
  packed.value = reshaped(bshd.value, {2, 5, 4});
  EXPECT_EQ(Compute(packed).output.shape, Shape({2, 3, 8}));
  EXPECT_EQ(Compute(packed).output.values, output.values);

  AttentionCase ragged = bhsd;
  ragged.options.layout = Layout::kRagged;
  ragged.query = reshaped(bshd.query, {6, 4, 3});
  ragged.key = reshaped(bshd.key, {10, 2, 3});
  ragged.value = reshaped(bshd.value, {10, 2, 2});
  ragged.query_starts = {0, 3, 6};
  ragged.key_starts = {0, 5, 10};
  EXPECT_EQ(Compute(ragged).output.shape, Shape({6, 4, 2}));
  EXPECT_EQ(Compute(ragged).output.values, output.values);
}

TEST(ReferenceTest, NothingToAttend) {
  AttentionCase request = ScoresOf({}, {}, 2);
  request.options.return_scores = Scores::kWeights;
  ReferenceResult result = Compute(request);
  EXPECT_EQ(result.output.values, (Values{0, 0}));
  EXPECT_EQ(result.log_sum_exp->values, (Values{-kInf, -kInf}));
  EXPECT_EQ(result.scores->shape, Shape({1, 1, 2, 0}));
  request = ScoresOf({1, 2}, {1, 2}, 0);
  result = Compute(request);
  EXPECT_EQ(result.output.shape, Shape({0, 1}));
}

TEST(ReferenceTest, ErrorIsFlaggedBeyondTheBound) {
  Expected expected{DataType::kFloat16, {1}, {1.0}, {1e-3}};
  EXPECT_TRUE(IsExpected(1 + 0x1p-10, expected, 0));
  EXPECT_FALSE(IsExpected(1 + 0x1p-9, expected, 0));
  EXPECT_FALSE(IsExpected(NAN, expected, 0));
  EXPECT_FALSE(IsExpected(INFINITY, expected, 0));
  expected.values = {65519};
  expected.errors = {1};
  EXPECT_TRUE(IsExpected(INFINITY, expected, 0));
  EXPECT_FALSE(IsExpected(-INFINITY, expected, 0));
  expected.values = {65000};
  EXPECT_FALSE(IsExpected(INFINITY, expected, 0));
}

}  // namespace
}  // namespace attention::test
