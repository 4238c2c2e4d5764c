#include "server/http/tensor_lists.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

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
