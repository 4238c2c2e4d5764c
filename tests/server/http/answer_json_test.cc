#include "server/http/answer_json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "attention/v1/attention.pb.h"
#include "attention/v1/session.pb.h"
#include "server/http/json_memory.h"
#include "tests/server/http/peak_memory.h"

namespace attention::server {
namespace {

using Json = nlohmann::json;
using testing::Peak;

constexpr int kMebi = 1 << 20;

template <typename Message>
grpc::ByteBuffer BytesOf(const Message& message) {
  const grpc::Slice slice(message.SerializeAsString());
  return grpc::ByteBuffer(&slice, 1);
}

TEST(AnswerJsonTest, IsProto3Json) {
  v1::ComputeAttentionResponse answer;
  answer.mutable_output()->add_float_values(-0.0F);
  answer.mutable_output()->add_float_values(1.5F);
  answer.mutable_log_sum_exp()->set_data("abc");
  answer.mutable_timing()->set_queue_us(7);
  grpc::ByteBuffer bytes = BytesOf(answer);
  const auto json = WriteAnswerJson(bytes, v1::ComputeAttentionResponse());
  EXPECT_EQ(bytes.Length(), 0);
  ASSERT_TRUE(json.has_value());
  EXPECT_EQ(Json::parse(*json), Json::parse(R"({
    "output": {"floatValues": [-0.0, 1.5]}, "logSumExp": {"data": "YWJj"},
    "timing": {"queueUs": "7"}})"));
}

TEST(AnswerJsonTest, WhatIsNoMessageGivesNothing) {
  const grpc::Slice slice("\xff");
  grpc::ByteBuffer bytes(&slice, 1);
  EXPECT_EQ(WriteAnswerJson(bytes, v1::ComputeAttentionResponse()),
            std::nullopt);
}

template <typename Message>
void ExpectBounded(const Message& answer, double least_text) {
#ifdef ATTENTION_SANITIZED
  GTEST_SKIP() << "sanitizers replace the allocator that it counts";
#endif
  grpc::ByteBuffer bytes = BytesOf(answer);
  const auto length = static_cast<int64_t>(bytes.Length());
  int64_t peak;
  std::optional<std::string> json;
  {
    const Peak counted;
    json = WriteAnswerJson(bytes, Message());
    peak = Peak::bytes();
  }
  ASSERT_TRUE(json.has_value());
  EXPECT_GE(static_cast<double>(json->size()), least_text * length);
  // Protobuf's writers have buffers.
  EXPECT_LE(peak, kAnswerFactor * length + (64 << 10));
}

// What kAnswerFactor promises, for the longest numbers that there are: one
// element more than fits a power of two is where a string that grows takes
// most.
TEST(AnswerJsonTest, NumbersTakeWhatTheFactorSays) {
  v1::ComputeAttentionResponse answer;
  answer.mutable_output()->mutable_float_values()->Resize(kMebi + 1,
                                                          -1.00000075e-36F);
  ExpectBounded(answer, 3.9);
}

TEST(AnswerJsonTest, ShortNumbersTakeNoMore) {
  v1::AttendResponse answer;
  answer.mutable_scores()->mutable_float_values()->Resize(kMebi, 1);
  ExpectBounded(answer, 0.4);
}

TEST(AnswerJsonTest, BytesTakeWhatTheFactorSays) {
  v1::ComputeAttentionResponse answer;
  answer.mutable_present_key()->set_data(std::string(4 * kMebi, 'x'));
  ExpectBounded(answer, 1.3);
}

}  // namespace
}  // namespace attention::server
