#include "client/cpp/cli/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sstream>
#include <string>
#include <utility>
#include <vector>

namespace attention::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string Length(uint64_t length) {
  return {reinterpret_cast<const char*>(&length), sizeof(length)};
}

std::string File(const std::string& header, const std::string& data) {
  return Length(header.size()) + header + data;
}

absl::StatusOr<Tensor> Read(const std::string& file,
                            const std::string& name = "") {
  std::istringstream in(file);
  return ReadSafetensors(in, name);
}

constexpr char kTwo[] =
    R"({"__metadata__":{"format":"pt"},)"
    R"("a":{"dtype":"I8","shape":[2],"data_offsets":[0,2]},)"
    R"("b":{"dtype":"BF16","shape":[1,1],"data_offsets":[2,4]}})";

TEST(ReadSafetensors, ByName) {
  const std::string file = File(kTwo, {1, 2, '\x80', '\x3f'});
  const auto a = Read(file, "a");
  ASSERT_TRUE(a.ok()) << a.status();
  EXPECT_THAT(a->elements<int8_t>(), ElementsAre(1, 2));
  const auto b = Read(file, "b");
  ASSERT_TRUE(b.ok()) << b.status();
  EXPECT_EQ(b->type(), v1::DATA_TYPE_BFLOAT16);
  EXPECT_THAT(b->shape(), ElementsAre(1, 1));
  EXPECT_THAT(b->ToDoubles(), ElementsAre(1));
}

TEST(ReadSafetensors, TheOnlyTensorNeedsNoName) {
  const auto tensor = Read(File(
      R"({"__metadata__":{},"x":{"dtype":"I8","shape":[],"data_offsets":[0,1]}})",
      "\x05"));
  ASSERT_TRUE(tensor.ok()) << tensor.status();
  EXPECT_THAT(tensor->ToDoubles(), ElementsAre(5));
}

TEST(ReadSafetensors, MissingNamesAreListed) {
  const std::string file = File(kTwo, "1234");
  EXPECT_EQ(
      Read(file, "c").status(),
      absl::NotFoundError("no tensor 'c'; the file holds 2 tensors: a, b"));
  EXPECT_EQ(Read(file).status(),
            absl::NotFoundError("name one as file.safetensors:name; the file "
                                "holds 2 tensors: a, b"));
  EXPECT_EQ(Read(file, "__metadata__").status().code(),
            absl::StatusCode::kNotFound);
}

TEST(ReadSafetensors, Errors) {
  const auto entry = [](const std::string& fields) {
    return File("{\"x\":{" + fields + "}}", "12345678");
  };
  const std::string shape = R"("dtype":"F32","shape":)";
  const std::string offsets = R"("dtype":"F32","shape":[2],"data_offsets":)";
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "shorter than 8 bytes"},
      {"1234567", "shorter than 8 bytes"},
      {Length(1), "header of 1 bytes in a file of 8"},
      {Length(~uint64_t{0}) + "{}", "header of 18446744073709551615 bytes"},
      {File("{", ""), "not a JSON object"},
      {File("[]", ""), "not a JSON object"},
      {File("\xff", ""), "not a JSON object"},
      {File(R"({"x":1})", ""), "entry is not an object"},
      {entry(""), "no dtype"},
      {entry(R"("dtype":7)"), "no dtype"},
      {entry(R"("dtype":"U8","shape":[],"data_offsets":[0,1])"),
       "got U8, wanted one of F32"},
      {entry(shape + "7"), "shape is not"},
      {entry(shape + "[-1]"), "shape is not"},
      {entry(shape + "[1.5]"), "shape is not"},
      {entry(shape + "[9223372036854775808]"), "shape is not"},
      {entry(shape + "[2]"), "data_offsets are not within the 8 bytes"},
      {entry(offsets + "[0]"), "data_offsets"},
      {entry(offsets + "[8,0]"), "data_offsets"},
      {entry(offsets + "[0,9]"), "data_offsets"},
      {entry(offsets + "[0,18446744073709551615]"), "data_offsets"},
      {entry(offsets + "[0,4]"),
       "shape (2) of 4-byte elements does not fit the 4 bytes of 'x'"},
      {entry(offsets + "[0,7]"), "does not fit the 7 bytes"},
      // Products that wrap around to what is there.
      {entry(shape + R"([4611686018427387904,4],"data_offsets":[0,0])"),
       "does not fit"},
      {entry(shape + R"([4611686018427387904],"data_offsets":[0,0])"),
       "does not fit"},
  };
  for (const auto& [file, error] : cases) {
    const auto tensor = Read(file);
    EXPECT_EQ(tensor.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(tensor.status().message()), HasSubstr(error));
  }
}

TEST(WriteSafetensors, ReadsBack) {
  const std::vector<double> numbers = {0, 1, 2, 3};
  std::map<std::string, const Tensor*> named;
  std::map<std::string, Tensor> tensors;
  for (const v1::DataType type :
       {v1::DATA_TYPE_FLOAT32, v1::DATA_TYPE_FLOAT16, v1::DATA_TYPE_BFLOAT16,
        v1::DATA_TYPE_FLOAT64, v1::DATA_TYPE_BOOL, v1::DATA_TYPE_INT8,
        v1::DATA_TYPE_INT32, v1::DATA_TYPE_INT64}) {
    const std::string name = TypeName(type);
    tensors[name] = Tensor::Rounded(type, numbers, {2, 2});
    named[name] = &tensors[name];
  }
  std::ostringstream out;
  WriteSafetensors(named, out);
  uint64_t header_length = 0;
  out.str().copy(reinterpret_cast<char*>(&header_length), 8);
  EXPECT_EQ(header_length % 8, 0);
  for (const auto& [name, tensor] : tensors) {
    const auto back = Read(out.str(), name);
    ASSERT_TRUE(back.ok()) << back.status();
    EXPECT_EQ(back->type(), tensor.type());
    EXPECT_EQ(back->shape(), tensor.shape());
    EXPECT_EQ(back->ToDoubles(), tensor.ToDoubles());
  }
}

TEST(WriteSafetensors, EveryTruncationIsAnError) {
  const std::vector<float> values = {1, 2};
  const Tensor tensor = Tensor::Of<float>(values, {2});
  std::ostringstream out;
  WriteSafetensors({{"x", &tensor}}, out);
  const std::string file = out.str();
  for (size_t length = 0; length < file.size(); ++length) {
    EXPECT_FALSE(Read(file.substr(0, length)).ok()) << length;
  }
  EXPECT_TRUE(Read(file).ok());
}

}  // namespace
}  // namespace attention::cli
