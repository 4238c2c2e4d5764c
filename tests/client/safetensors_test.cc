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

TEST(ReadSafetensors, WidenedIntegersKeepTheirValues) {
  const std::string header =
      R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
      R"("b":{"dtype":"I16","shape":[1],"data_offsets":[2,4]},)"
      R"("c":{"dtype":"U32","shape":[1],"data_offsets":[4,8]}})";
  const std::string file = File(header, "\x01\xff\xfe\xff\xff\xff\xff\xff");
  EXPECT_THAT(Read(file, "a")->elements<int32_t>(), ElementsAre(1, 255));
  EXPECT_THAT(Read(file, "b")->elements<int32_t>(), ElementsAre(-2));
  EXPECT_THAT(Read(file, "c")->elements<int64_t>(), ElementsAre(4294967295));
}

TEST(ReadSafetensors, TypesThatAreNotReadMayStandBesideOthers) {
  const std::string file =
      File(R"({"a":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]},)"
           R"("b":{"dtype":"I8","shape":[1],"data_offsets":[2,3]}})",
           {1, 2, 3});
  EXPECT_THAT(Read(file, "b")->ToDoubles(), ElementsAre(3));
  EXPECT_THAT(std::string(Read(file, "a").status().message()),
              HasSubstr("got F8_E4M3, wanted one of F32"));
}

// Each is an error whichever tensor is asked for.
TEST(ReadSafetensors, TheWholeFileIsChecked) {
  const auto file = [](const std::string& before, const std::string& b_offsets,
                       const std::string& data) {
    return File("{" + before +
                    R"("a":{"dtype":"I8","shape":[2],"data_offsets":[0,2]},)"
                    R"("b":{"dtype":"I8","shape":[2],"data_offsets":)" +
                    b_offsets + "}}",
                data);
  };
  EXPECT_TRUE(Read(file("", "[2,4]", "1234"), "a").ok());
  const std::string a =
      R"("a":{"dtype":"I8","shape":[2],"data_offsets":[0,2]})";
  const std::vector<std::pair<std::string, std::string>> cases = {
      {file("", "[1,3]", "123"), "two tensors have the byte 1"},
      {file("", "[0,2]", "12"), "two tensors have the byte 0"},
      {file("", "[3,5]", "12345"), "no tensor has the byte 2 of the 5 bytes"},
      {file("", "[2,4]", "12345"), "no tensor has the byte 4 of the 5 bytes"},
      {file(a + ",", "[2,4]", "1234"), "header has the name 'a' twice"},
      {file(R"("__metadata__":{},"__metadata__":{},)", "[2,4]", "1234"),
       "header has the name '__metadata__' twice"},
      {file(
           R"("c":{"dtype":"I8","shape":[0],"shape":[0],"data_offsets":[4,4]},)",
           "[2,4]", "1234"),
       "header has the name 'shape' twice"},
      {file(R"("__metadata__":{"x":1},)", "[2,4]", "1234"),
       "__metadata__ is not an object of strings"},
      {file(R"("__metadata__":[],)", "[2,4]", "1234"),
       "__metadata__ is not an object of strings"},
      {file(R"("c":{"dtype":"i8","shape":[0],"data_offsets":[4,4]},)", "[2,4]",
            "1234"),
       "unknown dtype 'i8'"},
      {File("\xEF\xBB\xBF{" + a + "}", "12"), "byte order mark"},
      {File("{" + a + "}" + std::string(1, '\0'), "12"), "not a JSON object"},
      {File("{" + a + "} {", "12"), "not a JSON object"},
      {File("{" + a + R"(,"b":)" + std::string(127, '[') +
                std::string(127, ']') + "}",
            "12"),
       "not a JSON object"},
  };
  for (const auto& [file, error] : cases) {
    EXPECT_THAT(std::string(Read(file, "a").status().message()),
                HasSubstr(error));
  }
}

TEST(ReadSafetensors, BytesOfHalfAnElement) {
  const auto status =
      Read(
          File(R"({"x":{"dtype":"F4","shape":[3],"data_offsets":[0,1]}})", "1"))
          .status();
  EXPECT_THAT(std::string(status.message()), HasSubstr("does not fit"));
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
      {entry(shape + "7"), "shape is not"},
      {entry(shape + "[-1]"), "shape is not"},
      {entry(shape + "[1.5]"), "shape is not"},
      {entry(shape + "[9223372036854775808]"), "shape is not"},
      {entry(shape + "[2]"), "data_offsets of 'x' are not within the 8 bytes"},
      {entry(offsets + "[0]"), "data_offsets"},
      {entry(offsets + "[8,0]"), "data_offsets"},
      {entry(offsets + "[0,9]"), "data_offsets"},
      {entry(offsets + "[0,18446744073709551615]"), "data_offsets"},
      {entry(offsets + "[0,4]"),
       "shape (2) of 32-bit elements does not fit the 4 bytes of 'x'"},
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
  ASSERT_TRUE(WriteSafetensors(named, nullptr, out).ok());
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

TEST(WriteSafetensors, KeepsWhatItDoesNotName) {
  const std::vector<float> values = {5};
  const Tensor five = Tensor::Of<float>(values, {1});
  std::istringstream kept(
      File(R"({"__metadata__":{"format":"pt"},)"
           R"("a":{"dtype":"I8","shape":[2],"data_offsets":[0,2]},)"
           R"("f8":{"dtype":"F8_E5M2","shape":[1],"data_offsets":[2,3]},)"
           R"("wide":{"dtype":"BF16","shape":[1],"data_offsets":[3,5]}})",
           {1, 2, 3, '\x80', '\x3f'}));
  std::ostringstream out;
  ASSERT_TRUE(WriteSafetensors({{"a", &five}, {"b", &five}}, &kept, out).ok());
  // 4-byte elements first, then 2, then 1: each begins at its own multiple.
  EXPECT_EQ(out.str().substr(8),
            R"({"__metadata__":{"format":"pt"},)"
            R"("a":{"data_offsets":[0,4],"dtype":"F32","shape":[1]},)"
            R"("b":{"data_offsets":[4,8],"dtype":"F32","shape":[1]},)"
            R"("f8":{"data_offsets":[10,11],"dtype":"F8_E5M2","shape":[1]},)"
            R"("wide":{"data_offsets":[8,10],"dtype":"BF16","shape":[1]}})" +
                std::string(out.str().size() - out.str().rfind('}') - 12, ' ') +
                std::string("\0\0\xa0\x40\0\0\xa0\x40\x80\x3f\x03", 11));
  EXPECT_TRUE(Read(out.str(), "wide").ok());
}

TEST(WriteSafetensors, AddsToNothingThatIsMalformed) {
  const std::vector<float> values = {5};
  const Tensor five = Tensor::Of<float>(values, {1});
  std::istringstream kept("{}");
  std::ostringstream out;
  EXPECT_FALSE(WriteSafetensors({{"a", &five}}, &kept, out).ok());
  EXPECT_EQ(out.str(), "");
}

TEST(WriteSafetensors, Names) {
  EXPECT_TRUE(CheckSafetensorsName("h.0.attn/ü").ok());
  EXPECT_FALSE(CheckSafetensorsName("__metadata__").ok());
  EXPECT_FALSE(CheckSafetensorsName("\xff").ok());
}

TEST(WriteSafetensors, EveryTruncationIsAnError) {
  const std::vector<float> values = {1, 2};
  const Tensor tensor = Tensor::Of<float>(values, {2});
  std::ostringstream out;
  ASSERT_TRUE(WriteSafetensors({{"x", &tensor}}, nullptr, out).ok());
  const std::string file = out.str();
  for (size_t length = 0; length < file.size(); ++length) {
    EXPECT_FALSE(Read(file.substr(0, length)).ok()) << length;
  }
  EXPECT_TRUE(Read(file).ok());
}

}  // namespace
}  // namespace attention::cli
