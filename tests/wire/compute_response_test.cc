// The decoder against protobuf's own parser, on good messages and on damaged
// ones.
#include "wire/compute_response.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "tests/wire/differential.h"

namespace attention::wire {
namespace {

using v1::ComputeAttentionResponse;

std::string AnyResponse(std::mt19937& random) {
  ComputeAttentionResponse response;
  if (random() % 8 != 0) *response.mutable_output() = AnyTensor(random);
  if (random() % 2 != 0) *response.mutable_log_sum_exp() = AnyTensor(random);
  if (random() % 2 != 0) *response.mutable_scores() = AnyTensor(random);
  if (random() % 2 != 0) *response.mutable_present_key() = AnyTensor(random);
  if (random() % 2 != 0) *response.mutable_present_value() = AnyTensor(random);
  if (random() % 8 != 0) {
    response.mutable_timing()->set_queue_us(random() % 3);
    response.mutable_timing()->set_compute_us(random());
  }
  return response.SerializeAsString();
}

bool CompareResponses(const std::string& bytes, std::mt19937* random) {
  static const auto pool = BufferPool::Create(0);
  ComputeAttentionResponse want;
  const bool valid = want.ParseFromString(bytes);
  const std::vector<grpc::Slice> slices = Cut(bytes, random);
  MemoryMeter meter;
  const auto got = DecodeResponse(slices, *pool, meter);
  EXPECT_EQ(got.ok(), valid) << got.status();
  if (!got.ok() || !valid) return valid;
  ExpectTensor(got->output, want.has_output(), want.output());
  ExpectTensor(got->log_sum_exp, want.has_log_sum_exp(), want.log_sum_exp());
  ExpectTensor(got->scores, want.has_scores(), want.scores());
  ExpectTensor(got->present_key, want.has_present_key(), want.present_key());
  ExpectTensor(got->present_value, want.has_present_value(),
               want.present_value());
  EXPECT_EQ(got->timing.SerializeAsString(), want.timing().SerializeAsString());
  return valid;
}

TEST(ResponseDecoderTest, AgreesWithProtobuf) {
  ExpectAgreement(AnyResponse, CompareResponses);
}

TEST(ResponseDecoderTest, MalformedBytesAreAnInvalidArgument) {
  const auto pool = BufferPool::Create(0);
  MemoryMeter meter;
  EXPECT_EQ(DecodeResponse(Cut("\x0a\x7f", nullptr), *pool, meter).status(),
            absl::InvalidArgumentError(
                "the answer is not a valid "
                "attention.v1.ComputeAttentionResponse message"));
}

}  // namespace
}  // namespace attention::wire
