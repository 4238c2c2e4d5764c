#include "client/cpp/cli/literal.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <utility>
#include <vector>

namespace attention::cli {
namespace {

using ::testing::ElementsAre;

Tensor Parsed(const std::string& text,
              v1::DataType type = v1::DATA_TYPE_FLOAT32) {
  absl::StatusOr<Tensor> tensor = ParseLiteral(text, type);
  EXPECT_TRUE(tensor.ok()) << text << ": " << tensor.status();
  return tensor.ok() ? *tensor : Tensor();
}

TEST(ParseLiteral, Numbers) {
  const Tensor tensor = Parsed(" [[1, -2.5e-1],\n[3E2, 0]] ");
  EXPECT_EQ(tensor.type(), v1::DATA_TYPE_FLOAT32);
  EXPECT_THAT(tensor.shape(), ElementsAre(2, 2));
  EXPECT_THAT(tensor.elements<float>(), ElementsAre(1, -0.25, 300, 0));
}

TEST(ParseLiteral, Ranks) {
  EXPECT_THAT(Parsed("[1,2,3]").shape(), ElementsAre(3));
  EXPECT_THAT(Parsed("[[[[1]],[[2]]]]").shape(), ElementsAre(1, 2, 1, 1));
  EXPECT_THAT(Parsed("[]").shape(), ElementsAre(0));
  EXPECT_THAT(Parsed("[[],[]]").shape(), ElementsAre(2, 0));
}

TEST(ParseLiteral, Types) {
  EXPECT_EQ(Parsed("[0.1]", v1::DATA_TYPE_FLOAT64).elements<double>()[0], 0.1);
  EXPECT_THAT(Parsed("[1]", v1::DATA_TYPE_BFLOAT16).elements<uint16_t>(),
              ElementsAre(0x3f80));
}

TEST(ParseLiteral, SpecialNumbers) {
  const Tensor tensor =
      Parsed("[NaN, nan, inf, -inf, Infinity, -Infinity, +inf]");
  const std::vector<double> numbers = tensor.ToDoubles();
  ASSERT_EQ(numbers.size(), 7);
  EXPECT_TRUE(std::isnan(numbers[0]));
  EXPECT_TRUE(std::isnan(numbers[1]));
  constexpr double kInf = std::numeric_limits<double>::infinity();
  EXPECT_THAT(std::vector<double>(numbers.begin() + 2, numbers.end()),
              ElementsAre(kInf, -kInf, kInf, -kInf, kInf));
}

TEST(ParseLiteral, TruthValues) {
  const Tensor tensor = Parsed("[[true, false], [True, False]]");
  EXPECT_EQ(tensor.type(), v1::DATA_TYPE_BOOL);
  EXPECT_THAT(tensor.ToDoubles(), ElementsAre(1, 0, 1, 0));
}

TEST(ParseLiteral, Errors) {
  const std::string syntax =
      "not a literal such as [[1, 0], [0, 1]]: wrong at character ";
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"[[1,2],[3]]",
       "rows of different length: got 1 elements, wanted 2 at [1]"},
      {"[[[1],[2]],[[3],[4,5]]]",
       "rows of different length: got 2 elements, wanted 1 at [1][1]"},
      {"[[1,2],3]", "got 3, wanted an array of 2 elements at [1]"},
      {"[1,[2]]", "got an array, wanted a number at [1]"},
      {"[[],[1]]", "rows of different length: got 1 elements, wanted 0 at [1]"},
      {"[[],1]", "got 1, wanted an array of 0 elements at [1]"},
      {"[[[]],[[]],[1]]", "got 1, wanted an array of 0 elements at [2][0]"},
      {"[1,true]",
       "got true, wanted numbers or truth values alone, not both at [1]"},
      {"[1,null]", "got null, wanted a number, true or false at [1]"},
      {"[\"a\"]", "got \"a\", wanted a number, true or false at [0]"},
      {"[[[[[[[[[1]]]]]]]]]",
       "nested more than 8 deep at [0][0][0][0][0][0][0][0]"},
      {"[1 2]", syntax + "4 (2])"},
      {"[inf 2]", syntax + "6 (2])"},
      {"[[1]", syntax + "5 (the end)"},
      {"[one]", syntax + "2 (one])"},
      {"", syntax + "1 (the end)"},
  };
  for (const auto& [text, error] : cases) {
    const auto tensor = ParseLiteral(text, v1::DATA_TYPE_FLOAT32);
    EXPECT_EQ(tensor.status(), absl::InvalidArgumentError(error)) << text;
  }
}

TEST(FormatLiteral, Rows) {
  EXPECT_EQ(FormatLiteral(Parsed("[[1,0.1],[-3e-9,2]]")),
            "[[1, 0.1],\n [-3e-09, 2]]");
  EXPECT_EQ(FormatLiteral(Parsed("[[[1],[2]],[[3],[4]]]")),
            "[[[1],\n  [2]],\n [[3],\n  [4]]]");
  EXPECT_EQ(FormatLiteral(Parsed("[[],[]]")), "[[],\n []]");
}

TEST(FormatLiteral, Elements) {
  EXPECT_EQ(FormatLiteral(Parsed("[nan,inf,-inf]")), "[NaN, inf, -inf]");
  EXPECT_EQ(FormatLiteral(Parsed("[true,false]")), "[true, false]");
  EXPECT_EQ(FormatLiteral(Parsed("[0.1,inf]", v1::DATA_TYPE_FLOAT16)),
            "[0.1, inf]");
  EXPECT_EQ(FormatLiteral(Parsed("[0.1,300]", v1::DATA_TYPE_BFLOAT16)),
            "[0.1, 300]");
  EXPECT_EQ(FormatLiteral(Parsed("[0.1]", v1::DATA_TYPE_FLOAT64)), "[0.1]");
  EXPECT_EQ(FormatLiteral(Parsed("[-7]", v1::DATA_TYPE_INT8)), "[-7]");
  EXPECT_EQ(FormatLiteral(Parsed("[-7]", v1::DATA_TYPE_INT64)), "[-7]");
}

TEST(FormatLiteral, ReadsBackToTheSameBits) {
  for (const v1::DataType type :
       {v1::DATA_TYPE_FLOAT16, v1::DATA_TYPE_BFLOAT16}) {
    for (uint32_t bits = 0; bits <= 0xffff; bits += 7) {
      const auto low = static_cast<std::byte>(bits & 0xff);
      const auto high = static_cast<std::byte>(bits >> 8);
      const Tensor tensor = *Tensor::FromBytes(type, {low, high}, {1});
      if (std::isnan(tensor.ToDoubles()[0])) continue;
      const std::string text = FormatLiteral(tensor);
      ASSERT_THAT(Parsed(text, type).elements<uint16_t>(), ElementsAre(bits))
          << text;
    }
  }
}

}  // namespace
}  // namespace attention::cli
