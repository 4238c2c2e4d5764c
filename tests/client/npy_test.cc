#include "client/cpp/cli/npy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <sstream>
#include <string>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace attention::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// A file of version 1 (or as given) with this header and data.
std::string Npy(const std::string& header, const std::string& data,
                char version = 1) {
  std::string file = "\x93NUMPY";
  file += {version, 0, static_cast<char>(header.size() & 0xff),
           static_cast<char>(header.size() >> 8)};
  if (version > 1) file += std::string(2, '\0');
  return file + header + data;
}

std::string Floats(const std::vector<float>& values) {
  return {reinterpret_cast<const char*>(values.data()),
          values.size() * sizeof(float)};
}

absl::StatusOr<Tensor> Read(const std::string& file) {
  std::istringstream in(file);
  return ReadNpy(in);
}

TEST(ReadNpy, WhatNumPyWrites) {
  // numpy.save of numpy.array([[1, 2, 3], [4, 5, 6]], dtype="<f4").
  const std::string header = absl::StrCat(
      "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }",
      std::string(58, ' '), "\n");
  ASSERT_EQ(header.size(), 118);
  const auto tensor = Read(Npy(header, Floats({1, 2, 3, 4, 5, 6})));
  ASSERT_TRUE(tensor.ok()) << tensor.status();
  EXPECT_EQ(tensor->type(), v1::DATA_TYPE_FLOAT32);
  EXPECT_THAT(tensor->shape(), ElementsAre(2, 3));
  EXPECT_THAT(tensor->elements<float>(), ElementsAre(1, 2, 3, 4, 5, 6));
}

TEST(ReadNpy, VersionsTwoAndThree) {
  for (const char version : {2, 3}) {
    const auto tensor =
        Read(Npy("{'descr':'<f4','fortran_order':False,'shape':(1,)}",
                 Floats({7}), version));
    ASSERT_TRUE(tensor.ok()) << tensor.status();
    EXPECT_THAT(tensor->shape(), ElementsAre(1));
    EXPECT_THAT(tensor->elements<float>(), ElementsAre(7));
  }
}

TEST(ReadNpy, FortranOrder) {
  const auto tensor =
      Read(Npy("{'descr': '<f4', 'fortran_order': True, 'shape': (2, 3), }",
               Floats({1, 4, 2, 5, 3, 6})));
  ASSERT_TRUE(tensor.ok()) << tensor.status();
  EXPECT_THAT(tensor->elements<float>(), ElementsAre(1, 2, 3, 4, 5, 6));
}

TEST(ReadNpy, FortranOrderOfRankThree) {
  // a[i][j][k] = 100i + 10j + k of shape (2, 1, 3), first axis fastest.
  const auto tensor =
      Read(Npy("{'descr': '<f4', 'fortran_order': True, 'shape': (2, 1, 3), }",
               Floats({0, 100, 1, 101, 2, 102})));
  ASSERT_TRUE(tensor.ok()) << tensor.status();
  EXPECT_THAT(tensor->elements<float>(), ElementsAre(0, 1, 2, 100, 101, 102));
}

TEST(ReadNpy, ScalarsAndEmptyArrays) {
  const auto scalar = Read(Npy(
      "{'descr': '<f4', 'fortran_order': False, 'shape': (), }", Floats({7})));
  ASSERT_TRUE(scalar.ok()) << scalar.status();
  EXPECT_THAT(scalar->shape(), ElementsAre());
  const auto empty = Read(
      Npy("{'descr': '<f4', 'fortran_order': True, 'shape': (0, 3), }", ""));
  ASSERT_TRUE(empty.ok()) << empty.status();
  EXPECT_THAT(empty->shape(), ElementsAre(0, 3));
}

// One element, 1, or for bools true, by each of NumPy's names for a type.
TEST(ReadNpy, NamesOfTypes) {
  const std::vector<std::tuple<std::string, std::string, v1::DataType>> cases =
      {{"<f4", {0, 0, '\x80', 0x3f}, v1::DATA_TYPE_FLOAT32},
       {"=f4", {0, 0, '\x80', 0x3f}, v1::DATA_TYPE_FLOAT32},
       {"|f4", {0, 0, '\x80', 0x3f}, v1::DATA_TYPE_FLOAT32},
       {"f4", {0, 0, '\x80', 0x3f}, v1::DATA_TYPE_FLOAT32},
       {"f", {0, 0, '\x80', 0x3f}, v1::DATA_TYPE_FLOAT32},
       {"float32", {0, 0, '\x80', 0x3f}, v1::DATA_TYPE_FLOAT32},
       {">f4", {0x3f, '\x80', 0, 0}, v1::DATA_TYPE_FLOAT32},
       {">e", {0x3c, 0}, v1::DATA_TYPE_FLOAT16},
       {">f8", {0x3f, '\xf0', 0, 0, 0, 0, 0, 0}, v1::DATA_TYPE_FLOAT64},
       {"<b1", {1}, v1::DATA_TYPE_BOOL},
       {">b1", {1}, v1::DATA_TYPE_BOOL},
       {"?", {1}, v1::DATA_TYPE_BOOL},
       {"|i1", {1}, v1::DATA_TYPE_INT8},
       {"b", {1}, v1::DATA_TYPE_INT8},
       {">i4", {0, 0, 0, 1}, v1::DATA_TYPE_INT32},
       {"int", {1, 0, 0, 0, 0, 0, 0, 0}, v1::DATA_TYPE_INT64},
       {"|u1", {1}, v1::DATA_TYPE_INT32},
       {">i2", {0, 1}, v1::DATA_TYPE_INT32},
       {"<u2", {1, 0}, v1::DATA_TYPE_INT32},
       {"<u4", {1, 0, 0, 0}, v1::DATA_TYPE_INT64},
       {"<u8", {1, 0, 0, 0, 0, 0, 0, 0}, v1::DATA_TYPE_INT64}};
  for (const auto& [name, data, type] : cases) {
    const auto tensor = Read(Npy(
        "{'descr': '" + name + "', 'fortran_order': False, 'shape': (1,), }",
        data));
    ASSERT_TRUE(tensor.ok()) << name << ": " << tensor.status();
    EXPECT_EQ(tensor->type(), type) << name;
    EXPECT_THAT(tensor->ToDoubles(), ElementsAre(1)) << name;
  }
}

TEST(ReadNpy, WidenedIntegersKeepTheirValues) {
  const auto read = [](const std::string& name, const std::string& data) {
    return Read(Npy("{'descr': '" + name +
                        "', 'fortran_order': False, 'shape': (2,), }",
                    data))
        ->ToDoubles();
  };
  EXPECT_THAT(read("u1", "\x7f\xff"), ElementsAre(127, 255));
  EXPECT_THAT(read("<i2", "\xff\x7f\xfe\xff"), ElementsAre(32767, -2));
  EXPECT_THAT(read(">u2", "\xff\xfe\x80\x01"), ElementsAre(65534, 32769));
  EXPECT_THAT(read("<u4", "\xff\xff\xff\xff\x01\x01\x01\x01"),
              ElementsAre(4294967295, 16843009));
}

TEST(ReadNpy, Uint64ThatNoTypeOfTheWireHolds) {
  const std::string header =
      "{'descr': '<u8', 'fortran_order': False, 'shape': (1,), }";
  const auto largest = Read(Npy(header, "\xff\xff\xff\xff\xff\xff\xff\x7f"));
  ASSERT_TRUE(largest.ok()) << largest.status();
  EXPECT_THAT(largest->elements<int64_t>(), ElementsAre(INT64_MAX));
  const auto more = Read(Npy(header, std::string("\0\0\0\0\0\0\0\x80", 8)));
  EXPECT_THAT(std::string(more.status().message()),
              HasSubstr("got the uint64 9223372036854775808, wanted at most"));
}

TEST(ReadNpy, BigEndianInFortranOrder) {
  const auto tensor =
      Read(Npy("{'descr': '>i2', 'fortran_order': True, 'shape': (2, 2), }",
               {0, 1, 0, 3, 0, 2, 1, 4}));
  ASSERT_TRUE(tensor.ok()) << tensor.status();
  EXPECT_THAT(tensor->elements<int32_t>(), ElementsAre(1, 2, 3, 260));
}

TEST(ReadNpy, HeadersOfPython2) {
  const std::string header =
      "{'descr': '<f4', 'fortran_order': False, 'shape': (1L, 2L), }";
  const auto tensor = Read(Npy(header, Floats({7, 8})));
  ASSERT_TRUE(tensor.ok()) << tensor.status();
  EXPECT_THAT(tensor->shape(), ElementsAre(1, 2));
  // No Python 2 ever wrote version 3.
  EXPECT_FALSE(Read(Npy(header, Floats({7, 8}), 3)).ok());
}

TEST(ReadNpy, HeadersWrittenInAnotherWay) {
  for (const char* header :
       {"{\"shape\":(2,),\"fortran_order\":False,\"descr\":\"<f4\"}",
        "{'shape': (0x2,),\n 'descr': u'<f4', # C\n"
        " 'fortran_order': (False)\n}\n\n",
        "{'shape': 7, 'descr': '<' 'f4', 'fortran_order': False,"
        " 'shape': (+2,)}"}) {
    const auto tensor = Read(Npy(header, Floats({7, 8})));
    ASSERT_TRUE(tensor.ok()) << tensor.status();
    EXPECT_THAT(tensor->elements<float>(), ElementsAre(7, 8));
  }
}

TEST(ReadNpy, WhatFollowsIsLeftAlone) {
  const auto tensor =
      Read(Npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }",
               Floats({7}) + "\x93NUMPY of the next"));
  ASSERT_TRUE(tensor.ok()) << tensor.status();
  EXPECT_THAT(tensor->elements<float>(), ElementsAre(7));
}

TEST(ReadNpy, Errors) {
  const std::string one = "{'descr': '<f4', 'fortran_order': False, 'shape': ";
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "does not begin with"},
      {"PK\x03\x04 a zip file", "does not begin with"},
      {std::string("\x93NUMPY\x01\x00", 8), "ends within the header"},
      {std::string("\x93NUMPY\x04\x00\x00\x00", 10), "version is 4.0"},
      {std::string("\x93NUMPY\x01\x01\x00\x00", 10), "version is 1.1"},
      {std::string("\x93NUMPY\x01\x00\xff\xff{", 11),
       "header of 65535 bytes, of which 1 are there"},
      {std::string("\x93NUMPY\x02\x00\xff\xff\xff\xff{", 13),
       "header of 4294967295 bytes, of which 1 are there"},
      {Npy("[]", ""), "not a dict"},
      {Npy("{", ""), "wrong at character 2 (the end)"},
      {Npy("{'descr'", ""), "wrong at character 9 (the end)"},
      {Npy("{'descr': '<f4'", ""), "wrong at character 16 (the end)"},
      {Npy("{'descr': '<f4'}", ""), "lacks fortran_order"},
      {Npy(one + "(), 'color': 1}", "1234"), "unknown key 'color'"},
      {Npy("{1: 2}", ""), "a key is not a string"},
      {Npy("{'descr': [('x', '<f4')]}", ""), "structured"},
      {Npy("{'descr': '<V2'}", ""), "use .safetensors"},
      {Npy("{'descr': '<c8'}", ""), "got '<c8', wanted one of f2"},
      {Npy("{'descr': '<f4', 'fortran_order': 1}", ""),
       "neither True nor False"},
      {Npy(one + "3}", ""), "shape is not a tuple"},
      {Npy(one + "(3", ""), "wrong at character 53 (the end)"},
      {Npy(one + "(3, x)}", ""), "wrong at character 55 (x)})"},
      {Npy(one + "(-1,)}", ""), "shape holds what is not a number >= 0"},
      {Npy(one + "(True,)}", ""), "shape holds what is not a number >= 0"},
      {Npy(one + "(99999999999999999999,)}", ""), "wrong at character 52"},
      {Npy(one + "(" + absl::StrJoin(std::vector<int>(65, 1), ",") + ")}", ""),
       "shape has 65 axes, of which NumPy has at most 64"},
      {Npy(one + "(1,)}" + std::string(10000, ' '), "1234"),
       "header of 10055 bytes, of which NumPy reads at most 10000"},
      {Npy(one + "(2,)}", "1234567"),
       "shape (2) of 4-byte elements does not fit the 7 bytes of data"},
      // Products that wrap around to what is there.
      {Npy(one + "(4611686018427387904, 4)}", ""), "does not fit"},
      {Npy(one + "(4611686018427387904,)}", ""), "does not fit"},
  };
  for (const auto& [file, error] : cases) {
    const auto tensor = Read(file);
    EXPECT_EQ(tensor.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(tensor.status().message()), HasSubstr(error));
  }
}

TEST(ReadNpy, EveryTruncationIsAnError) {
  std::ostringstream out;
  const std::vector<float> values = {1, 2};
  ASSERT_TRUE(WriteNpy(Tensor::Of<float>(values, {2}), out).ok());
  const std::string file = out.str();
  for (size_t length = 0; length < file.size(); ++length) {
    EXPECT_FALSE(Read(file.substr(0, length)).ok()) << length;
  }
  EXPECT_TRUE(Read(file).ok());
}

TEST(WriteNpy, ReadsBack) {
  const std::vector<double> numbers = {0, 1, 2, 3, 4, 5};
  for (const v1::DataType type :
       {v1::DATA_TYPE_FLOAT32, v1::DATA_TYPE_FLOAT16, v1::DATA_TYPE_FLOAT64,
        v1::DATA_TYPE_BOOL, v1::DATA_TYPE_INT8, v1::DATA_TYPE_INT32,
        v1::DATA_TYPE_INT64}) {
    const Tensor tensor = Tensor::Rounded(type, numbers, {3, 2});
    std::ostringstream out;
    ASSERT_TRUE(WriteNpy(tensor, out).ok());
    EXPECT_EQ((out.str().size() - tensor.bytes().size()) % 64, 0);
    const auto back = Read(out.str());
    ASSERT_TRUE(back.ok()) << back.status();
    EXPECT_EQ(back->type(), type);
    EXPECT_EQ(back->shape(), tensor.shape());
    EXPECT_EQ(back->ToDoubles(), tensor.ToDoubles());
  }
}

TEST(WriteNpy, RefusesBFloat16) {
  const std::vector<double> one = {1};
  std::ostringstream out;
  EXPECT_EQ(WriteNpy(Tensor::Rounded(v1::DATA_TYPE_BFLOAT16, one, {1}), out),
            absl::InvalidArgumentError(
                ".npy has no BFLOAT16: write a .safetensors file instead"));
  EXPECT_EQ(out.str(), "");
}

}  // namespace
}  // namespace attention::cli
