#include "client/cpp/cli/bench/answer_check.h"

#include <gmock/gmock.h>
#include <grpcpp/support/slice.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "attention/tensor.h"
#include "attention/v1/attention.pb.h"
#include "tests/support/messages.h"

namespace attention::cli {
namespace {

using ::testing::HasSubstr;

// `message` in slices of at most `size` bytes.
grpc::ByteBuffer InSlices(const std::string& message, size_t size) {
  std::vector<grpc::Slice> slices;
  for (size_t i = 0; i < message.size(); i += size) {
    slices.emplace_back(message.substr(i, size));
  }
  return grpc::ByteBuffer(slices.data(), slices.size());
}

v1::ComputeAttentionRequest RequestOf(const CallKind& kind) {
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(kind.request.Dump(&slices).ok());
  v1::ComputeAttentionRequest request;
  EXPECT_EQ(slices.size(), 1);
  EXPECT_TRUE(request.ParseFromArray(slices[0].begin(),
                                     static_cast<int>(slices[0].size())));
  return request;
}

Workload Of(const std::string& shape, v1::DataType type = v1::DATA_TYPE_FLOAT32,
            v1::Causal causal = v1::CAUSAL_UNSPECIFIED) {
  return *MakeWorkload({{*ParseShape(shape), 1}}, type, causal, 1);
}

v1::ComputeAttentionResponse Answer(const Workload& workload) {
  return testing::KernelAnswer(RequestOf(workload.kinds[0]));
}

v1::ComputeAttentionResponse TimedAnswer(int64_t microseconds) {
  v1::ComputeAttentionResponse answer;
  answer.mutable_output()->set_data(std::string(1000, 'x'));
  answer.mutable_output()->add_shape(1000);
  answer.mutable_timing()->set_compute_us(microseconds);
  return answer;
}

TEST(AnswerCheck, IgnoresTimingAndSlices) {
  AnswerCheck check;
  const std::string first = TimedAnswer(7).SerializeAsString();
  EXPECT_TRUE(check.SameAsFirst(InSlices(first, 10'000)));
  for (const size_t size : {1, 7, 900, 10'000}) {
    const std::string other = TimedAnswer(1'000'000).SerializeAsString();
    EXPECT_TRUE(check.SameAsFirst(InSlices(other, size))) << size;
  }
  v1::ComputeAttentionResponse without = TimedAnswer(1);
  without.clear_timing();
  EXPECT_EQ(check.first(), without.SerializeAsString());
}

TEST(AnswerCheck, SeesEveryOtherByte) {
  AnswerCheck check;
  v1::ComputeAttentionResponse answer = TimedAnswer(7);
  answer.clear_timing();
  const std::string bytes = answer.SerializeAsString();
  ASSERT_TRUE(check.SameAsFirst(InSlices(bytes, 64)));
  for (size_t i = 0; i < bytes.size(); ++i) {
    std::string other = bytes;
    other[i] ^= 1;
    EXPECT_FALSE(check.SameAsFirst(InSlices(other, 64))) << i;
  }
  EXPECT_FALSE(check.SameAsFirst(InSlices(bytes.substr(1), 64)));
  EXPECT_FALSE(
      check.SameAsFirst(InSlices(bytes.substr(0, bytes.size() - 1), 64)));
  EXPECT_FALSE(check.SameAsFirst(InSlices(bytes + std::string(2, '\0'), 64)));
}

TEST(AnswerCheck, WhatIsNoMessageIsNotTheFirst) {
  AnswerCheck check;
  EXPECT_FALSE(check.SameAsFirst(InSlices("\x0a\xff\xff\xff\xff\x7f", 4)));
  EXPECT_FALSE(check.has_first());
  EXPECT_TRUE(
      check.SameAsFirst(InSlices(TimedAnswer(1).SerializeAsString(), 64)));
}

TEST(CheckAnswer, TheKernelIsRight) {
  for (const auto type : {v1::DATA_TYPE_FLOAT32, v1::DATA_TYPE_FLOAT16,
                          v1::DATA_TYPE_BFLOAT16, v1::DATA_TYPE_FLOAT64}) {
    for (const auto causal : {v1::CAUSAL_UNSPECIFIED, v1::CAUSAL_TOP_LEFT,
                              v1::CAUSAL_BOTTOM_RIGHT}) {
      const Workload workload =
          Of("B=2,Hq=4,Hkv=2,S=40,T=600,D=24,Dv=7", type, causal);
      const absl::Status status = CheckAnswer(
          workload.kinds[0], workload, Answer(workload).SerializeAsString());
      EXPECT_TRUE(status.ok()) << type << " " << causal << " " << status;
    }
  }
}

// Rows of another head, a causal mask that was forgotten, one wrong number.
TEST(CheckAnswer, SeesWhatIsWrong) {
  const Workload causal =
      Of("S=40,T=40,Hq=4,Hkv=2", v1::DATA_TYPE_FLOAT32, v1::CAUSAL_TOP_LEFT);
  const Workload full = Of("S=40,T=40,Hq=4,Hkv=2");
  const auto wrong = [&](const v1::ComputeAttentionResponse& answer) {
    const absl::Status status =
        CheckAnswer(full.kinds[0], full, answer.SerializeAsString());
    EXPECT_THAT(std::string(status.message()), HasSubstr("output"));
    return !status.ok();
  };
  EXPECT_TRUE(wrong(Answer(causal)));

  v1::ComputeAttentionResponse rotated = Answer(full);
  std::string& data = *rotated.mutable_output()->mutable_data();
  data = data.substr(data.size() / 4) + data.substr(0, data.size() / 4);
  EXPECT_TRUE(wrong(rotated));

  v1::ComputeAttentionResponse off = Answer(full);
  float number = 0;
  std::memcpy(&number, off.output().data().data(), sizeof number);
  number += 1e-3F;
  std::memcpy(off.mutable_output()->mutable_data()->data(), &number,
              sizeof number);
  EXPECT_TRUE(wrong(off));

  v1::ComputeAttentionResponse cut = Answer(full);
  cut.mutable_output()->mutable_data()->pop_back();
  EXPECT_TRUE(wrong(cut));
  EXPECT_FALSE(CheckAnswer(full.kinds[0], full, "\x0a\x7f").ok());
}

TEST(CheckAnswer, HealthMustBeServing) {
  const Workload workload = MakeHealthWorkload();
  EXPECT_TRUE(CheckAnswer(workload.kinds[0], workload, "\x08\x01").ok());
  EXPECT_FALSE(CheckAnswer(workload.kinds[0], workload, "\x08\x02").ok());
  EXPECT_FALSE(CheckAnswer(workload.kinds[0], workload, "").ok());
}

TEST(Workload, NumbersAreThoseSent) {
  for (const auto type : {v1::DATA_TYPE_FLOAT32, v1::DATA_TYPE_BFLOAT16}) {
    const Workload workload = Of("S=3,T=5,D=4", type);
    const v1::ComputeAttentionRequest request = RequestOf(workload.kinds[0]);
    const Tensor key = *Tensor::FromBytes(
        type,
        [&] {
          const auto& data = request.key().data();
          const auto* begin = reinterpret_cast<const std::byte*>(data.data());
          return std::vector<std::byte>(begin, begin + data.size());
        }(),
        {1, 1, 5, 4});
    const std::vector<double> numbers = key.ToDoubles();
    for (size_t i = 0; i < numbers.size(); ++i) {
      EXPECT_EQ(numbers[i],
                workload.numbers.At(Input::kKey, static_cast<int64_t>(i)));
    }
    EXPECT_NE(workload.numbers.At(Input::kKey, 0),
              workload.numbers.At(Input::kValue, 0));
  }
}

// Mean 0 and variance 1: of 100000 numbers within five standard errors.
TEST(Workload, NumbersAreSpread) {
  const InputNumbers numbers(v1::DATA_TYPE_FLOAT64, 1);
  double sum = 0;
  double squares = 0;
  for (int i = 0; i < 100'000; ++i) {
    const double x = numbers.At(Input::kQuery, i);
    sum += x;
    squares += x * x;
  }
  EXPECT_NEAR(sum / 100'000, 0, 5 / std::sqrt(100'000));
  EXPECT_NEAR(squares / 100'000, 1, 5 * 0.9 / std::sqrt(100'000));
}

TEST(Workload, RefusesWhatNoMessageHolds) {
  const auto workload =
      MakeWorkload({{*ParseShape("S=268435456,D=1,T=1"), 1}},
                   v1::DATA_TYPE_FLOAT64, v1::CAUSAL_UNSPECIFIED, 1);
  EXPECT_EQ(workload.status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace attention::cli
