#include "server/http/tensor_lists.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "attention/v1/attention.pb.h"
#include "attention/v1/session.pb.h"
#include "base/field_error.h"
#include "google/protobuf/util/json_util.h"

namespace attention::server {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

template <typename T>
T Parse(const std::string& json) {
  const auto expanded = ExpandTensorLists(json, *T::descriptor());
  EXPECT_TRUE(expanded.ok()) << expanded.status();
  T message;
  if (expanded.ok()) {
    const auto status =
        google::protobuf::util::JsonStringToMessage(*expanded, &message);
    EXPECT_TRUE(status.ok()) << *expanded << status.ToString();
  }
  return message;
}

v1::Tensor Query(const std::string& list) {
  return Parse<v1::ComputeAttentionRequest>(
             absl::StrCat(R"({"query": )", list, "}"))
      .query();
}

absl::Status ErrorOf(const std::string& json) {
  return ExpandTensorLists(json, *v1::ComputeAttentionRequest::descriptor())
      .status();
}

TEST(TensorListsTest, NumbersBecomeFloatValues) {
  const v1::Tensor tensor = Query("[[1, -2.5, 1e-3], [4, 5, 6]]");
  EXPECT_THAT(tensor.shape(), ElementsAre(2, 3));
  EXPECT_THAT(tensor.float_values(), ElementsAre(1, -2.5f, 1e-3f, 4, 5, 6));
  EXPECT_EQ(tensor.data_type(), v1::DATA_TYPE_UNSPECIFIED);
}

TEST(TensorListsTest, EveryDepthIsARank) {
  EXPECT_THAT(Query("[7]").shape(), ElementsAre(1));
  EXPECT_THAT(Query("[[[[7], [8]]]]").shape(), ElementsAre(1, 1, 2, 1));
}

TEST(TensorListsTest, ListsWithoutElementsHaveAShape) {
  EXPECT_THAT(Query("[]").shape(), ElementsAre(0));
  EXPECT_THAT(Query("[[], []]").shape(), ElementsAre(2, 0));
  EXPECT_THAT(Query("[[[], []], [[], []]]").shape(), ElementsAre(2, 2, 0));
  EXPECT_THAT(Query("[[], []]").float_values(), IsEmpty());
}

TEST(TensorListsTest, WhatIsNotFiniteIsAString) {
  const v1::Tensor tensor = Query(R"(["NaN", "Infinity", "-Infinity"])");
  EXPECT_TRUE(std::isnan(tensor.float_values(0)));
  EXPECT_EQ(tensor.float_values(1), HUGE_VALF);
  EXPECT_EQ(tensor.float_values(2), -HUGE_VALF);
}

TEST(TensorListsTest, BooleansBecomeData) {
  const v1::Tensor tensor = Parse<v1::ComputeAttentionRequest>(
                                R"({"mask": [[true, false], [false, true]]})")
                                .mask();
  EXPECT_EQ(tensor.data_type(), v1::DATA_TYPE_BOOL);
  EXPECT_THAT(tensor.shape(), ElementsAre(2, 2));
  EXPECT_EQ(tensor.data(), std::string("\1\0\0\1", 4));
}

TEST(TensorListsTest, ZeroKeepsItsSign) {
  for (const char* zero : {"-0", "-0.0", "-0e0"}) {
    const v1::Tensor tensor = Query(absl::StrCat("[0, ", zero, "]"));
    EXPECT_FALSE(std::signbit(tensor.float_values(0))) << zero;
    EXPECT_TRUE(std::signbit(tensor.float_values(1))) << zero;
  }
}

v1::Tensor Indices(const std::string& list) {
  return Parse<v1::ComputeAttentionRequest>(
             absl::StrCat(R"({"indices": )", list, "}"))
      .indices();
}

TEST(TensorListsTest, IndicesAreIntegers) {
  const v1::Tensor tensor = Indices("[[0, -1, 258], [-0, 2.0, 2e0]]");
  EXPECT_EQ(tensor.data_type(), v1::DATA_TYPE_INT32);
  EXPECT_THAT(tensor.shape(), ElementsAre(2, 3));
  EXPECT_EQ(tensor.data(), std::string("\0\0\0\0\xff\xff\xff\xff\2\1\0\0"
                                       "\0\0\0\0\2\0\0\0\2\0\0\0",
                                       24));
  EXPECT_EQ(Indices(R"(["7", "-1"])").data(),
            std::string("\7\0\0\0\xff\xff\xff\xff", 8));
  EXPECT_EQ(Indices("[2147483647, -2147483648]").data(),
            std::string("\xff\xff\xff\x7f\0\0\0\x80", 8));
}

TEST(TensorListsTest, IndicesMayBeNone) {
  const v1::Tensor tensor = Indices("[[], []]");
  EXPECT_EQ(tensor.data_type(), v1::DATA_TYPE_INT32);
  EXPECT_THAT(tensor.shape(), ElementsAre(2, 0));
  EXPECT_EQ(tensor.data(), "");
}

TEST(TensorListsTest, IndicesAreNothingElse) {
  const struct {
    std::string list, got;
  } cases[] = {
      {"[[1.5]]", "1.5"},
      {"[0, 1e-9]", "1e-9"},
      {"[2147483648]", "2147483648"},
      {"[-2147483649]", "-2147483649"},
      {"[4294967296]", "4294967296"},
      {"[9007199254740993]", "9007199254740993"},
      {"[18446744073709551616]", "18446744073709551616"},
      {"[1e300]", "1e300"},
      {"[true]", "true"},
      {"[0, false]", "false"},
      {"[null]", "null"},
      {"[\"NaN\"]", "a string"},
      {"[\"1.0\"]", "a string"},
      {"[\"\"]", "a string"},
      {"[{}]", "an object"},
  };
  for (const auto& [list, got] : cases) {
    const absl::Status status =
        ErrorOf(absl::StrCat(R"({"indices": )", list, "}"));
    EXPECT_EQ(status.message(),
              absl::StrCat("indices: got ", got,
                           " in a list of integers of 32 bits"));
    EXPECT_EQ(ErrorField(status), "indices");
  }
  EXPECT_EQ(ErrorOf(R"({"indices": [[0], 1]})").message(),
            "indices: a number stands where a list should");
}

TEST(TensorListsTest, TheRestStays) {
  const auto message = Parse<v1::ComputeAttentionRequest>(
      R"({"query": {"shape": ["1", 2], "floatValues": [1, 2]}, "past_key": [[1]],
          "validLengths": [3, "4"], "query_starts": [],
          "options": {"scale": 0.125, "alibiSlopes": [0.5, 0.25],
                      "causal": "CAUSAL_TOP_LEFT",
                      "window": {"left": "9007199254740993"}},
          "pastValue": [[2]]})");
  EXPECT_THAT(message.query().shape(), ElementsAre(1, 2));
  EXPECT_THAT(message.past_key().float_values(), ElementsAre(1));
  EXPECT_THAT(message.past_value().float_values(), ElementsAre(2));
  EXPECT_THAT(message.valid_lengths(), ElementsAre(3, 4));
  EXPECT_EQ(message.options().scale(), 0.125);
  EXPECT_THAT(message.options().alibi_slopes(), ElementsAre(0.5, 0.25));
  EXPECT_EQ(message.options().causal(), v1::CAUSAL_TOP_LEFT);
  EXPECT_EQ(message.options().window().left(), 9007199254740993);
}

TEST(TensorListsTest, ListsOfMessagesAreNoTensors) {
  const auto message = Parse<v1::StepRequest>(
      R"({"items": [{"id": "a", "query": [[1, 2]]},
                    {"id": "a \" \\ \u00e4", "key": [[3]]}]})");
  ASSERT_EQ(message.items_size(), 2);
  EXPECT_THAT(message.items(0).query().float_values(), ElementsAre(1, 2));
  EXPECT_THAT(message.items(1).key().float_values(), ElementsAre(3));
  EXPECT_EQ(message.items(1).id(), "a \" \\ ä");
}

// The JSON of a message with a list for each of its tensors, named as the
// .proto file has them or in lowerCamelCase.
std::string WithAllTensors(const google::protobuf::Descriptor& type,
                           bool as_in_the_file) {
  std::string json = "{";
  for (int i = 0; i < type.field_count(); ++i) {
    const auto& field = *type.field(i);
    if (field.message_type() != v1::Tensor::descriptor()) continue;
    absl::StrAppend(&json, json == "{" ? "" : ", ", "\"",
                    as_in_the_file ? field.name() : field.json_name(),
                    R"(": [[1, 2, 3]])");
  }
  return json + "}";
}

template <typename T>
int ExpectAllTensors(bool as_in_the_file) {
  const T message = Parse<T>(WithAllTensors(*T::descriptor(), as_in_the_file));
  int tensors = 0;
  for (int i = 0; i < T::descriptor()->field_count(); ++i) {
    const auto& field = *T::descriptor()->field(i);
    if (field.message_type() != v1::Tensor::descriptor()) continue;
    ++tensors;
    const auto& tensor = static_cast<const v1::Tensor&>(
        message.GetReflection()->GetMessage(message, &field));
    EXPECT_THAT(tensor.shape(), ElementsAre(1, 3)) << field.full_name();
    if (field.name() == "indices") {
      EXPECT_EQ(tensor.data().size(), 12) << field.full_name();
    } else {
      EXPECT_THAT(tensor.float_values(), ElementsAre(1, 2, 3))
          << field.full_name();
    }
  }
  return tensors;
}

TEST(TensorListsTest, EveryTensorOfARequestMayBeLists) {
  for (const bool as_in_the_file : {false, true}) {
    EXPECT_EQ(ExpectAllTensors<v1::ComputeAttentionRequest>(as_in_the_file), 8);
    EXPECT_EQ(ExpectAllTensors<v1::AppendKeyValuesRequest>(as_in_the_file), 2);
    EXPECT_EQ(ExpectAllTensors<v1::AttendRequest>(as_in_the_file), 4);
    EXPECT_EQ(ExpectAllTensors<v1::StepItem>(as_in_the_file), 6);
  }
}

TEST(TensorListsTest, NamesTheTensorThatIsNone) {
  const struct {
    std::string list, wanted;
  } cases[] = {
      {"[[1], [2, 3]]", "key: lists of one level have lengths 1 and 2"},
      {"[[], [2]]", "key: lists of one level have lengths 0 and 1"},
      {"[1, [2]]", "key: a list stands where a number should"},
      {"[[1], 2]", "key: a number stands where a list should"},
      {"[[], 2]", "key: a number stands where a list should"},
      {"[[1], []]", "key: lists of one level have lengths 1 and 0"},
      {"[[[1]], [[[2]]]]", "key: a list stands where a number should"},
      {"[[[[[[[[[1]]]]]]]]]", "key: the lists are nested too deeply"},
      {"[1, true]", "key: numbers and booleans stand beside each other"},
      {"[true, \"NaN\"]", "key: numbers and booleans stand beside each other"},
      {"[null]", "key: got null in a list of numbers or booleans"},
      {"[\"1\"]", "key: got a string in a list of numbers or booleans"},
      {"[[{}]]", "key: got an object in a list of numbers or booleans"},
  };
  for (const auto& [list, wanted] : cases) {
    const absl::Status status =
        ErrorOf(absl::StrCat(R"({"query": [[1]], "key": )", list, "}"));
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << list;
    EXPECT_EQ(status.message(), wanted) << list;
    EXPECT_EQ(ErrorField(status), "key");
  }
}

TEST(TensorListsTest, SaysWhereItIsNoJson) {
  for (const char* text : {"", "{", "{\"query\": [1,]}", "{}x",
                           "{\"a\": 1e999}", "\xff", "{\"query\": [[1, 2"}) {
    const absl::Status status = ErrorOf(text);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(status.message()), HasSubstr("at byte ")) << text;
    EXPECT_EQ(ErrorField(status), "") << text;
  }
}

TEST(TensorListsTest, DeepNestingIsRefusedAtOnce) {
  const std::string deep(100'000, '[');
  EXPECT_EQ(ErrorOf(absl::StrCat("{\"query\": ", deep)).message(),
            "query: the lists are nested too deeply");
  EXPECT_EQ(ErrorOf(deep).message(), "got more than 100 levels");
  EXPECT_EQ(ErrorOf(absl::StrCat("{\"other\": ", deep)).message(),
            "got more than 100 levels");
}

TEST(TensorListsTest, ATensorComesOnce) {
  const absl::Status status = ErrorOf(R"({"key": [[1]], "key": [[2]]})");
  EXPECT_EQ(status.message(), "key: got it twice");
  EXPECT_EQ(ErrorField(ErrorOf(R"({"pastKey": {}, "past_key": {}})")),
            "past_key");
}

}  // namespace
}  // namespace attention::server
