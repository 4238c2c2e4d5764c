#include "client/cpp/cli/npy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"

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

TEST(ReadNpy, Errors) {
  const std::string one = "{'descr': '<f4', 'fortran_order': False, 'shape': ";
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "does not begin with"},
      {"PK\x03\x04 a zip file", "does not begin with"},
      {std::string("\x93NUMPY\x01\x00", 8), "ends within the header"},
      {std::string("\x93NUMPY\x04\x00\x00\x00", 10), "version is 4"},
      {std::string("\x93NUMPY\x01\x00\xff\xff{", 11),
       "header of 65535 bytes, of which 1 are there"},
      {std::string("\x93NUMPY\x02\x00\xff\xff\xff\xff{", 13),
       "header of 4294967295 bytes, of which 1 are there"},
      {Npy("[]", ""), "not a dict"},
      {Npy("{", ""), "no key"},
      {Npy("{'descr'", ""), "no key"},
      {Npy("{'descr': '<f4'", ""), "no '}'"},
      {Npy("{'descr': '<f4'}", ""), "lacks"},
      {Npy("{'color': 1}", ""), "unknown key 'color'"},
      {Npy("{'descr': [('x', '<f4')]}", ""), "structured"},
      {Npy("{'descr': '>f4'}", ""), "big-endian"},
      {Npy("{'descr': '<V2'}", ""), "use .safetensors"},
      {Npy("{'descr': '<c8'}", ""), "got '<c8', wanted one of <f4"},
      {Npy("{'fortran_order': 1}", ""), "neither True nor False"},
      {Npy(one + "3}", ""), "shape is not a tuple"},
      {Npy(one + "(3", ""), "shape has no ')'"},
      {Npy(one + "(3, x)}", ""), "shape holds ' x'"},
      {Npy(one + "(-1,)}", ""), "shape holds '-1'"},
      {Npy(one + "(99999999999999999999,)}", ""), "shape holds"},
      {Npy(one + "(2,)}", "1234567"),
       "shape (2) of 4-byte elements does not fit the 7 bytes of data"},
      {Npy(one + "(2,)}", "12345678 "), "does not fit the 9 bytes"},
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
