#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "client/cpp/cli/explain.h"

namespace attention::cli {
namespace {

using ::testing::HasSubstr;

constexpr double kInf = std::numeric_limits<double>::infinity();

Explanation Identity() {
  Explanation explanation;
  explanation.head_size = 2;
  explanation.scale = 0.70710678;
  explanation.similarity = {2, 2, {1, 0, 0, 1}};
  explanation.scaled = {2, 2, {0.70710678, 0, 0, 0.70710678}};
  explanation.weights = {2, 2, {0.669762, 0.330238, 0.330238, 0.669762}};
  explanation.output = explanation.weights;
  return explanation;
}

TEST(Render, FourSteps) {
  EXPECT_EQ(
      Render(Identity(), /*ascii=*/false),
      R"(Batch 0, head 0. Queries: 2. Keys: 2, of size 2. Values of size 2.

1. Similarity: the dot product of each query with each key
              key 0     key 1
  query 0  1.000000  0.000000
  query 1  0.000000  1.000000

2. Scaling: times 0.707107 = 1 / sqrt(2)
              key 0     key 1
  query 0  0.707107  0.000000
  query 1  0.000000  0.707107

3. Softmax: each query's scores become weights
              key 0     key 1
  query 0  0.669762  0.330238
  query 1  0.330238  0.669762

   The same, shaded by the share of the row's largest
  query 0  │██▒▒│
  query 1  │▒▒██│

4. Weighted sum: the values, by those weights
           column 0  column 1
  query 0  0.669762  0.330238
  query 1  0.330238  0.669762
)");
}

TEST(Render, Ascii) {
  const std::string text = Render(Identity(), /*ascii=*/true);
  EXPECT_THAT(text, HasSubstr("  query 0  |##++|\n  query 1  |++##|\n"));
  for (const char c : text) EXPECT_GE(c, 0) << "not ASCII";
}

TEST(Render, GivenScaleCapAndMask) {
  Explanation explanation = Identity();
  explanation.default_scale = false;
  explanation.scale = -2;
  explanation.softcap = 30;
  explanation.capped = Matrix{2, 2, {9, 8, 7, 6}};
  explanation.biased = Matrix{2, 2, {0.5, -kInf, 1.5, 2.5}};
  explanation.weights = {2, 2, {1, 0, 0.25, 0.75}};
  const std::string text = Render(explanation, /*ascii=*/true);
  EXPECT_THAT(text, HasSubstr("2. Scaling: times -2, as asked for\n"));
  EXPECT_THAT(text, HasSubstr(R"(
   Soft cap: 30 * tanh(score / 30)
              key 0     key 1
  query 0  9.000000  8.000000
  query 1  7.000000  6.000000

   Bias and masks: -inf hides a key from a query
              key 0     key 1
  query 0  0.500000      -inf
  query 1  1.500000  2.500000
)"));
  EXPECT_THAT(text, HasSubstr("  query 0  |##  |\n  query 1  |++##|\n"));
}

TEST(Render, LargeTablesAreCutInTheMiddle) {
  Explanation explanation = Identity();
  Matrix large{20, 130, std::vector<double>(20 * 130)};
  for (int64_t i = 0; i < 20 * 130; ++i) large.values[i] = i % 130;
  explanation.similarity = large;
  explanation.scaled = large;
  explanation.weights = large;
  const std::string text = Render(explanation, /*ascii=*/true);
  EXPECT_THAT(text, HasSubstr(R"(
               key 0     key 1     key 2     key 3  ...     key 128     key 129
   query 0  0.000000  1.000000  2.000000  3.000000  ...  128.000000  129.000000
)"));
  EXPECT_THAT(text, HasSubstr(R"(
   query 7  0.000000  1.000000  2.000000  3.000000  ...  128.000000  129.000000
       ...       ...       ...       ...       ...  ...         ...         ...
  query 16  0.000000  1.000000  2.000000  3.000000  ...  128.000000  129.000000
)"));
  // The shade grows with the key.
  EXPECT_THAT(text, HasSubstr("largest; 3 keys a character\n"));
  EXPECT_THAT(text, HasSubstr("   query 8  |...........++++++++++***********"
                              "############|\n"));
}

TEST(Render, LargeNumbersStayReadable) {
  Explanation explanation = Identity();
  explanation.similarity = {2, 2, {1e30, -0.125, kInf, std::nan("")}};
  EXPECT_THAT(Render(explanation, /*ascii=*/true), HasSubstr(R"(
           key 0   key 1
  query 0  1e+30  -0.125
  query 1    inf     NaN
)"));
}

TEST(Render, SinksAreMentioned) {
  Explanation explanation = Identity();
  explanation.has_sink = true;
  EXPECT_THAT(Render(explanation, /*ascii=*/true),
              HasSubstr("scores become weights; the sink takes the rest\n"));
}

TEST(Render, FullyMaskedRowsAreBlank) {
  Explanation explanation = Identity();
  explanation.weights = {2, 2, {0, 0, 0.5, 0.5}};
  EXPECT_THAT(Render(explanation, /*ascii=*/true),
              HasSubstr("  query 0  |    |\n  query 1  |####|\n"));
}

TEST(Render, NothingToShow) {
  Explanation explanation;
  EXPECT_THAT(Render(explanation, /*ascii=*/true),
              HasSubstr("Queries: 0. Keys: 0"));
}

}  // namespace
}  // namespace attention::cli
