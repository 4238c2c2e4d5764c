// The decoders against protobuf's own parser, on good messages and on damaged
// ones.
#include "wire/session_response.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "attention/v1/session.pb.h"
#include "tests/wire/differential.h"

namespace attention::wire {
namespace {

// More than a test's messages have.
constexpr size_t kMost = 1 << 20;

template <typename Message>
void SetTensors(std::mt19937& random, Message* message) {
  if (random() % 8 != 0) *message->mutable_output() = AnyTensor(random);
  if (random() % 2 != 0) *message->mutable_log_sum_exp() = AnyTensor(random);
  if (random() % 2 != 0) *message->mutable_scores() = AnyTensor(random);
  if (random() % 4 != 0) message->set_length(random());
}

std::string AnyAttendResponse(std::mt19937& random) {
  v1::AttendResponse response;
  SetTensors(random, &response);
  if (random() % 2 != 0) response.mutable_timing()->set_compute_us(random());
  for (unsigned left = random() % 3; left > 0; --left) {
    v1::Partial& partial = *response.add_partials();
    partial.set_block_begin(random() % 3);
    partial.set_block_end(random());
    if (random() % 4 != 0) *partial.mutable_max() = AnyTensor(random);
    if (random() % 4 != 0) *partial.mutable_sum() = AnyTensor(random);
    if (random() % 4 != 0) *partial.mutable_output() = AnyTensor(random);
  }
  return response.SerializeAsString();
}

std::string AnyStepResponse(std::mt19937& random) {
  v1::StepResponse response;
  for (unsigned left = random() % 4; left > 0; --left) {
    v1::StepResult& result = *response.add_results();
    if (random() % 4 != 0) {
      SetTensors(random, &result);
    } else {
      result.set_code(static_cast<int32_t>(random() % 17));
      result.set_message("x");
      result.set_status_details(std::string(random() % 100, '\1'));
    }
  }
  if (random() % 2 != 0) response.mutable_timing()->set_compute_us(random());
  return response.SerializeAsString();
}

template <typename Message>
void ExpectTensors(const AttendResultFields& got, const Message& want) {
  ExpectTensor(got.output, want.has_output(), want.output());
  ExpectTensor(got.log_sum_exp, want.has_log_sum_exp(), want.log_sum_exp());
  ExpectTensor(got.scores, want.has_scores(), want.scores());
  EXPECT_EQ(got.length, want.length());
}

bool CompareAttend(const std::string& bytes, std::mt19937* random) {
  static const auto pool = BufferPool::Create(0);
  v1::AttendResponse want;
  const bool valid = want.ParseFromString(bytes);
  const std::vector<grpc::Slice> slices = Cut(bytes, random);
  MemoryMeter meter;
  const auto got = DecodeAttendResponse(slices, *pool, meter, kMost);
  EXPECT_EQ(got.ok(), valid) << got.status();
  if (!got.ok() || !valid) return valid;
  ExpectTensors(*got, want);
  EXPECT_EQ(got->timing.SerializeAsString(), want.timing().SerializeAsString());
  EXPECT_EQ(got->partials.size(), static_cast<size_t>(want.partials_size()));
  for (int i = 0; i < want.partials_size(); ++i) {
    const PartialFields& partial = got->partials[i];
    const v1::Partial& wanted = want.partials(i);
    EXPECT_EQ(partial.block_begin, wanted.block_begin());
    EXPECT_EQ(partial.block_end, wanted.block_end());
    ExpectTensor(partial.max, wanted.has_max(), wanted.max());
    ExpectTensor(partial.sum, wanted.has_sum(), wanted.sum());
    ExpectTensor(partial.output, wanted.has_output(), wanted.output());
  }
  return valid;
}

// Protobuf refuses text that is not UTF-8, and writes so to standard error. The
// decoder takes any.
bool HasOddText(const StepResponseFields& fields) {
  for (const AttendResultFields& result : fields.results) {
    for (const char c : result.message) {
      if (static_cast<unsigned char>(c) > 127) return true;
    }
  }
  return false;
}

bool CompareStep(const std::string& bytes, std::mt19937* random) {
  static const auto pool = BufferPool::Create(0);
  const std::vector<grpc::Slice> slices = Cut(bytes, random);
  MemoryMeter meter;
  const auto got = DecodeStepResponse(slices, *pool, meter, kMost);
  if (got.ok() && HasOddText(*got)) return true;
  v1::StepResponse want;
  const bool valid = want.ParseFromString(bytes);
  EXPECT_EQ(got.ok(), valid) << got.status();
  if (!got.ok() || !valid) return valid;
  EXPECT_EQ(got->results.size(), static_cast<size_t>(want.results_size()));
  for (int i = 0; i < want.results_size(); ++i) {
    ExpectTensors(got->results[i], want.results(i));
    EXPECT_EQ(got->results[i].code, want.results(i).code());
    EXPECT_EQ(got->results[i].message, want.results(i).message());
    EXPECT_EQ(got->results[i].status_details, want.results(i).status_details());
  }
  EXPECT_EQ(got->timing.SerializeAsString(), want.timing().SerializeAsString());
  return valid;
}

TEST(AttendResponseTest, AgreesWithProtobuf) {
  ExpectAgreement(AnyAttendResponse, CompareAttend);
}

TEST(StepResponseTest, AgreesWithProtobuf) {
  ExpectAgreement(AnyStepResponse, CompareStep);
}

TEST(AttendResponseTest, NoMorePartialsThanWanted) {
  const auto pool = BufferPool::Create(0);
  v1::AttendResponse response;
  for (int i = 0; i < 3; ++i) response.add_partials();
  const auto slices = Cut(response.SerializeAsString(), nullptr);
  MemoryMeter meter;
  EXPECT_TRUE(DecodeAttendResponse(slices, *pool, meter, 3).ok());
  EXPECT_EQ(
      DecodeAttendResponse(slices, *pool, meter, 2).status(),
      absl::InvalidArgumentError("got more than 2 partials, the most wanted"));
}

TEST(StepResponseTest, NoMoreResultsThanWanted) {
  const auto pool = BufferPool::Create(0);
  v1::StepResponse response;
  for (int i = 0; i < 3; ++i) response.add_results()->set_length(i);
  const auto slices = Cut(response.SerializeAsString(), nullptr);
  MemoryMeter meter;
  EXPECT_TRUE(DecodeStepResponse(slices, *pool, meter, 3).ok());
  EXPECT_EQ(
      DecodeStepResponse(slices, *pool, meter, 2).status(),
      absl::InvalidArgumentError("got more than 2 results, the most wanted"));
}

}  // namespace
}  // namespace attention::wire
