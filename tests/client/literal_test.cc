#include "client/cpp/cli/literal.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "client/cpp/cli/literal_parser.h"

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

TEST(ParseLiteral, NumbersAsPythonWritesThem) {
  EXPECT_THAT(Parsed("[1., .5, +1, -.25, 1e-3, 1.E+2]", v1::DATA_TYPE_FLOAT64)
                  .elements<double>(),
              ElementsAre(1, 0.5, 1, -0.25, 0.001, 100));
}

// print(np.array(...)), with the padding that numpy gives its columns.
TEST(ParseLiteral, PrintedByNumpy) {
  const Tensor numbers = Parsed("[[ 1.e+00 -2.5e-01]\n [ 3.e+02  0.e+00]]");
  EXPECT_THAT(numbers.shape(), ElementsAre(2, 2));
  EXPECT_THAT(numbers.elements<float>(), ElementsAre(1, -0.25, 300, 0));
  const Tensor truths = Parsed("[[ True False]\n [False  True]]");
  EXPECT_EQ(truths.type(), v1::DATA_TYPE_BOOL);
  EXPECT_THAT(truths.ToDoubles(), ElementsAre(1, 0, 0, 1));
  EXPECT_THAT(Parsed("[[[1]\n  [2]]\n\n [[3]\n  [4]]]").shape(),
              ElementsAre(2, 2, 1));
  EXPECT_THAT(Parsed("[1 -2]").elements<float>(), ElementsAre(1, -2));
}

// repr(), in numpy, torch and jax.
TEST(ParseLiteral, ArraysWithTheirName) {
  const std::pair<std::string, v1::DataType> cases[] = {
      {"array([[1., 0.],\n       [0., 1.]])", v1::DATA_TYPE_FLOAT32},
      {"array([[1., 0.],\n       [0., 1.]], dtype=float16)",
       v1::DATA_TYPE_FLOAT16},
      {"array([[1, 0],\n       [0, 1]], dtype=uint8)", v1::DATA_TYPE_INT32},
      {"array([[ True, False],\n       [False,  True]])", v1::DATA_TYPE_BOOL},
      {"array([[1, 0], [0, 1]], dtype='bool')", v1::DATA_TYPE_BOOL},
      {"np.array([[1, 0], [0, 1]], np_unused=(1, [2]), dtype=np.float64)",
       v1::DATA_TYPE_FLOAT64},
      {"tensor([[1., 0.],\n        [0., 1.]], dtype=torch.bfloat16, "
       "grad_fn=<AddBackward0>)",
       v1::DATA_TYPE_BFLOAT16},
      {"tensor([[1, 0],\n        [0, 1]], device='cuda:0', dtype=torch.int8)",
       v1::DATA_TYPE_INT8},
      {"Parameter containing:\ntensor([[1., 0.],\n        [0., 1.]], "
       "requires_grad=True)",
       v1::DATA_TYPE_FLOAT32},
      {"Array([[1., 0.],\n       [0., 1.]], dtype=float32, weak_type=True)",
       v1::DATA_TYPE_FLOAT32},
      {"[array([1., 0.]), array([0., 1.])]", v1::DATA_TYPE_FLOAT32},
      {"[[np.float32(1.0), np.float32(0.0)], [np.float32(0.0), "
       "np.float32(1.0)]]",
       v1::DATA_TYPE_FLOAT32},
      {"[[np.True_, np.False_], [np.False_, np.True_]]", v1::DATA_TYPE_BOOL},
      {"[[tensor(1.), tensor(0.)], [tensor(0.), tensor(1.)]]",
       v1::DATA_TYPE_FLOAT32},
  };
  for (const auto& [text, type] : cases) {
    EXPECT_TRUE(BeginsLiteral(text)) << text;
    const Tensor tensor = Parsed(text);
    EXPECT_EQ(tensor.type(), type) << text;
    EXPECT_THAT(tensor.shape(), ElementsAre(2, 2)) << text;
    EXPECT_THAT(tensor.ToDoubles(), ElementsAre(1, 0, 0, 1)) << text;
  }
}

TEST(ParseLiteral, ArraysOfNothing) {
  EXPECT_THAT(Parsed("array([], shape=(2, 0), dtype=float32)").shape(),
              ElementsAre(2, 0));
  EXPECT_THAT(Parsed("tensor([], size=(0, 3))").shape(), ElementsAre(0, 3));
  EXPECT_THAT(Parsed("tensor([])").shape(), ElementsAre(0));
}

TEST(ParseLiteral, Errors) {
  const std::string syntax =
      "not a literal such as [[1, 0], [0, 1]]: wrong at character ";
  const std::string mixed =
      "elements are separated by commas or by spaces, not by both: wrong at "
      "character ";
  const std::string number = ", wanted a number, true or false at ";
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"[[1,2],[3]]",
       "rows of different length: got 1 elements, wanted 2 at [1]"},
      {"[[1 2]\n [3]]",
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
      {"[1,null]", "got null" + number + "[1]"},
      {"[\"a\"]", "got \"a\"" + number + "[0]"},
      {"[one]", "got one" + number + "[0]"},
      {"[[1, 2], [3, 4x]]", "got 4x" + number + "[1][1]"},
      {"[1_000]", "got 1_000" + number + "[0]"},
      {"[1-2]", "got 1-2" + number + "[0]"},
      {"[1.+0.j]", "got 1.+0.j" + number + "[0]"},
      {"[1 - 2]", "got -" + number + "[1]"},
      {"[" + std::string(100, '9') + "x]",
       "got " + std::string(40, '9') + "..." + number + "[0]"},
      {"[[1, -1e999]]",
       "got -1e999, wanted a number that FLOAT64 holds at "
       "[0][1]"},
      {"[[[[[[[[[1]]]]]]]]]",
       "nested more than 8 deep at [0][0][0][0][0][0][0][0]"},
      {"[1, 2 3]", mixed + "7 (3])"},
      {"[1 2, 3]", mixed + "5 (, 3])"},
      {"[[1]", syntax + "5 (the end)"},
      {"[1 ", syntax + "4 (the end)"},
      {"[1,]", syntax + "4 (])"},
      {"[,1]", syntax + "2 (,1])"},
      {"[[1][2]]", syntax + "5 ([2]])"},
      {"[1]]", syntax + "4 (])"},
      {"", syntax + "1 (the end)"},
      {"array([1]", syntax + "10 (the end)"},
      {"array([1], 2)", syntax + "12 (2))"},
      {"array([1], dtype=", syntax + "18 (the end)"},
      {"masked_array(data=[1])",
       "got masked_array(, wanted array(, tensor( or a number"},
      {"[float(1)]", "got float(, wanted array(, tensor( or a number at [0]"},
      {"array(array(array(array(array([1])))))",
       "more than 4 calls within each other"},
      {"array([1], dtype=complex64)",
       "dtype: got complex64, wanted float32, float16, bfloat16, float64, "
       "bool, int8, int16, int32, int64 or uint8"},
      {"[array([1], dtype=float32), array([1], dtype=float16)]",
       "dtype: got float16 after FLOAT32 in the same literal"},
      {"array([], shape=(2, 3))",
       "shape: got (2, 3), wanted one without elements, as the array is"},
      {"array([], shape=(0, -1))",
       "shape: got (0, -1), wanted one without elements, as the array is"},
  };
  for (const auto& [text, error] : cases) {
    const auto tensor = ParseLiteral(text, v1::DATA_TYPE_FLOAT32);
    EXPECT_EQ(tensor.status(), absl::InvalidArgumentError(error)) << text;
  }
}

TEST(ParseLiteral, NumbersThatWereNotPrinted) {
  for (const std::string text :
       {"[0. 1. 2. ... 997. 998. 999.]", "[0, 1, 2, ..., 997, 998, 999]"}) {
    EXPECT_THAT(
        std::string(
            ParseLiteral(text, v1::DATA_TYPE_FLOAT32).status().message()),
        ::testing::MatchesRegex(
            "got \\.\\.\\., which stands for numbers that were not "
            "printed: .* at \\[3\\]"));
  }
}

TEST(ParseLiteral, NumbersThatTheTypeCannotHold) {
  const std::tuple<std::string, v1::DataType, std::string> cases[] = {
      {"[[1, 7e4]]", v1::DATA_TYPE_FLOAT16,
       "7e4, wanted a number that FLOAT16 "
       "holds at [0][1]"},
      {"[[1, 2], [3, -1e39]]", v1::DATA_TYPE_FLOAT32,
       "-1e39, wanted a number that FLOAT32 holds at [1][1]"},
      {"[1e39]", v1::DATA_TYPE_BFLOAT16,
       "1e39, wanted a number that BFLOAT16 holds at [0]"},
      {"array([1, 2], dtype=bool)", v1::DATA_TYPE_FLOAT32,
       "2, wanted a number that BOOL holds at [1]"},
      {"array([128], dtype=int8)", v1::DATA_TYPE_FLOAT32,
       "128, wanted a number that INT8 holds at [0]"},
      {"array([1.5], dtype=int32)", v1::DATA_TYPE_FLOAT32,
       "1.5, wanted a number that INT32 holds at [0]"},
      {"array([9007199254740994], dtype=int64)", v1::DATA_TYPE_FLOAT32,
       "9007199254740994, wanted a number that INT64 holds at [0]"},
  };
  for (const auto& [text, type, error] : cases) {
    EXPECT_EQ(ParseLiteral(text, type).status(),
              absl::InvalidArgumentError("got " + error))
        << text;
  }
  // The largest there are.
  EXPECT_THAT(
      Parsed("[65504, -inf]", v1::DATA_TYPE_FLOAT16).elements<uint16_t>(),
      ElementsAre(0x7bff, 0xfc00));
  EXPECT_THAT(Parsed("[127, -128]", v1::DATA_TYPE_INT8).elements<int8_t>(),
              ElementsAre(127, -128));
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
