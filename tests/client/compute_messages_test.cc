#include "attention/internal/compute_messages.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "attention/v1/attention.pb.h"
#include "tests/wire/differential.h"

namespace attention::internal {
namespace {

using ::testing::ElementsAre;
using wire::BytesOf;

// As AnyRequest(), of tensors that are large as well as small.
v1::ComputeAttentionRequest AnyMessage(std::mt19937& random) {
  v1::ComputeAttentionRequest message = wire::AnyRequest(random);
  const auto prepare = [&](v1::Tensor* tensor) {
    // A client sends `data` alone, or says where it lies.
    tensor->clear_float_values();
    if (!tensor->shared_memory().region().empty()) {
      tensor->clear_data();
      return;
    }
    tensor->clear_shared_memory();
    if (random() % 3 == 0) {
      tensor->mutable_data()->resize(kLentBytes - 2 + random() % 5000, 'x');
    }
  };
  // These a client always sends.
  prepare(message.mutable_query());
  prepare(message.mutable_key());
  prepare(message.mutable_value());
  message.mutable_options();
  if (message.has_mask()) prepare(message.mutable_mask());
  if (message.has_past_key()) prepare(message.mutable_past_key());
  if (message.has_past_value()) prepare(message.mutable_past_value());
  if (message.has_indices()) prepare(message.mutable_indices());
  if (message.has_sinks()) prepare(message.mutable_sinks());
  // Nor does it name places that are none.
  v1::OutputMemory& outputs = *message.mutable_outputs();
  if (outputs.output().region().empty()) outputs.clear_output();
  if (outputs.log_sum_exp().region().empty()) outputs.clear_log_sum_exp();
  if (outputs.scores().region().empty()) outputs.clear_scores();
  if (outputs.present_key().region().empty()) outputs.clear_present_key();
  if (outputs.present_value().region().empty()) outputs.clear_present_value();
  if (outputs.ByteSizeLong() == 0) message.clear_outputs();
  return message;
}

SharedPlaces PlacesOf(const v1::ComputeAttentionRequest& message) {
  SharedPlaces places;
  const auto place = [](const v1::SharedMemory& memory,
                        SharedPlaces::Input& input) {
    input.region = memory.region();
    input.offset = memory.offset();
  };
  place(message.query().shared_memory(), places.query);
  place(message.key().shared_memory(), places.key);
  place(message.value().shared_memory(), places.value);
  place(message.mask().shared_memory(), places.mask);
  place(message.past_key().shared_memory(), places.past_key);
  place(message.past_value().shared_memory(), places.past_value);
  place(message.indices().shared_memory(), places.indices);
  place(message.sinks().shared_memory(), places.sinks);
  place(message.outputs().output(), places.output);
  place(message.outputs().log_sum_exp(), places.log_sum_exp);
  place(message.outputs().scores(), places.scores);
  place(message.outputs().present_key(), places.present_key);
  place(message.outputs().present_value(), places.present_value);
  return places;
}

TensorSpan Lent(const v1::Tensor& tensor) {
  return {tensor.data_type(),
          {tensor.shape().begin(), tensor.shape().end()},
          std::as_bytes(std::span<const char>(tensor.data()))};
}

ComputeRequest RequestOf(const v1::ComputeAttentionRequest& message) {
  ComputeRequest request;
  request.query = Lent(message.query());
  request.key = Lent(message.key());
  request.value = Lent(message.value());
  if (message.has_mask()) request.mask = Lent(message.mask());
  if (message.has_past_key()) request.past_key = Lent(message.past_key());
  if (message.has_past_value()) request.past_value = Lent(message.past_value());
  if (message.has_indices()) request.indices = Lent(message.indices());
  if (message.has_sinks()) request.sinks = Lent(message.sinks());
  const auto list = [](const auto& numbers) {
    return std::vector<int64_t>(numbers.begin(), numbers.end());
  };
  request.valid_lengths = list(message.valid_lengths());
  request.query_starts = list(message.query_starts());
  request.key_starts = list(message.key_starts());
  request.options = message.options();
  return request;
}

TEST(EncodeRequestTest, WritesTheBytesThatProtobufWrites) {
  std::mt19937 random(1);
  for (int i = 0; i < 2000; ++i) {
    SCOPED_TRACE(i);
    const v1::ComputeAttentionRequest message = AnyMessage(random);
    Lease lease;
    ASSERT_EQ(
        BytesOf(EncodeRequest(RequestOf(message), lease, PlacesOf(message))),
        message.SerializeAsString());
    EXPECT_EQ(lease.lent(), 0);
  }
}

TEST(EncodeRequestTest, LendsLargeTensorsAndCopiesSmallOnes) {
  const std::vector<std::byte> small(kLentBytes - 1);
  const std::vector<std::byte> large(kLentBytes);
  ComputeRequest request;
  request.query = {v1::DATA_TYPE_BOOL, {1}, small};
  request.key = {v1::DATA_TYPE_BOOL, {1}, large};
  Lease lease;
  const grpc::ByteBuffer message = EncodeRequest(request, lease);
  EXPECT_EQ(lease.lent(), 1);
  std::vector<grpc::Slice> slices;
  ASSERT_TRUE(message.Dump(&slices).ok());
  // Up to the key, the key, what follows.
  ASSERT_EQ(slices.size(), 3u);
  EXPECT_EQ(static_cast<const void*>(slices[1].begin()), large.data());
  EXPECT_EQ(slices[1].size(), large.size());
}

v1::Tensor Floats(const std::vector<float>& values,
                  const std::vector<int64_t>& shape) {
  v1::Tensor tensor;
  tensor.set_data_type(v1::DATA_TYPE_FLOAT32);
  tensor.mutable_shape()->Assign(shape.begin(), shape.end());
  tensor.set_data(values.data(), values.size() * sizeof(float));
  return tensor;
}

v1::ComputeAttentionResponse SomeResponse() {
  v1::ComputeAttentionResponse response;
  *response.mutable_output() = Floats({1, 2, 3, 4}, {2, 2});
  *response.mutable_log_sum_exp() = Floats({5, 6}, {2});
  *response.mutable_scores() = Floats({7}, {1, 1});
  *response.mutable_present_key() = Floats({8}, {1});
  *response.mutable_present_value() = Floats({}, {0, 3});
  response.mutable_timing()->set_compute_us(9);
  return response;
}

void ExpectSomeResponse(const ComputeResult& result) {
  EXPECT_THAT(result.output.elements<float>(), ElementsAre(1, 2, 3, 4));
  EXPECT_THAT(result.output.shape(), ElementsAre(2, 2));
  EXPECT_THAT(result.log_sum_exp->elements<float>(), ElementsAre(5, 6));
  EXPECT_THAT(result.scores->elements<float>(), ElementsAre(7));
  EXPECT_THAT(result.present_key->elements<float>(), ElementsAre(8));
  EXPECT_THAT(result.present_value->shape(), ElementsAre(0, 3));
  EXPECT_TRUE(result.present_value->bytes().empty());
  EXPECT_EQ(result.timing.compute_us(), 9);
}

grpc::ByteBuffer Buffer(const std::vector<grpc::Slice>& slices) {
  return grpc::ByteBuffer(slices.data(), slices.size());
}

TEST(DecodeResponseTest, AnySlicesAtAnyAlignment) {
  const std::string bytes = SomeResponse().SerializeAsString();
  std::mt19937 random(1);
  for (size_t offset = 0; offset < 8; ++offset) {
    // A slice that begins at any address.
    std::string shifted(offset, ' ');
    shifted += bytes;
    const grpc::Slice whole = grpc::Slice(shifted).sub(offset, shifted.size());
    const auto result = DecodeResponse(Buffer({whole}), {});
    ASSERT_TRUE(result.ok()) << result.status();
    ExpectSomeResponse(*result);
    for (const Tensor* tensor : {&result->output, &*result->log_sum_exp}) {
      EXPECT_EQ(reinterpret_cast<uintptr_t>(tensor->bytes().data()) % 4, 0u);
    }
    const auto cut = DecodeResponse(Buffer(wire::Cut(bytes, &random)), {});
    ASSERT_TRUE(cut.ok()) << cut.status();
    ExpectSomeResponse(*cut);
  }
}

TEST(DecodeResponseTest, BorrowsFromTheAnswerWhereItCan) {
  const std::vector<float> values(10000, 1.5f);
  v1::ComputeAttentionResponse response;
  *response.mutable_output() = Floats(values, {10000});
  const std::string bytes = response.SerializeAsString();
  // Elements that are aligned in a slice of their own.
  const size_t header = bytes.size() - 40000;
  bool released = false;
  Tensor kept;
  {
    std::vector<grpc::Slice> slices = {
        grpc::Slice(bytes.substr(0, header)),
        grpc::Slice(
            const_cast<float*>(values.data()), 40000,
            [](void* flag) { *static_cast<bool*>(flag) = true; }, &released)};
    auto result = DecodeResponse(Buffer(slices), {});
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(static_cast<const void*>(result->output.bytes().data()),
              values.data());
    kept = result->output;
  }
  EXPECT_FALSE(released);
  kept = Tensor();
  EXPECT_TRUE(released);
}

TEST(DecodeResponseTest, FillsTheCallersMemory) {
  std::vector<float> output(5, -1), scores(1);
  const auto result = DecodeResponse(
      Buffer(wire::Cut(SomeResponse().SerializeAsString(), nullptr)),
      {.output = std::as_writable_bytes(std::span(output)),
       .log_sum_exp = {},
       .scores = std::as_writable_bytes(std::span(scores)),
       .present_key = {},
       .present_value = {}});
  ASSERT_TRUE(result.ok()) << result.status();
  ExpectSomeResponse(*result);
  EXPECT_THAT(output, ElementsAre(1, 2, 3, 4, -1));
  EXPECT_EQ(static_cast<const void*>(result->output.bytes().data()),
            output.data());
  EXPECT_EQ(static_cast<const void*>(result->scores->bytes().data()),
            scores.data());
}

TEST(DecodeResponseTest, MemoryThatIsTooSmallIsNamed) {
  std::vector<float> scores(1), log_sum_exp(1);
  const absl::Status status =
      DecodeResponse(
          Buffer(wire::Cut(SomeResponse().SerializeAsString(), nullptr)),
          {.output = {},
           .log_sum_exp = std::as_writable_bytes(std::span(log_sum_exp)),
           .scores = std::as_writable_bytes(std::span(scores)),
           .present_key = {},
           .present_value = {}})
          .status();
  EXPECT_EQ(status,
            absl::InvalidArgumentError("outputs.log_sum_exp: got 4 bytes, "
                                       "wanted 8 for shape (2) of FLOAT32"));
}

TEST(DecodeResponseTest, MalformedAnswersAreInternal) {
  v1::ComputeAttentionResponse wrong = SomeResponse();
  wrong.mutable_scores()->add_shape(2);
  EXPECT_EQ(
      DecodeResponse(Buffer(wire::Cut(wrong.SerializeAsString(), nullptr)), {})
          .status(),
      absl::InternalError("malformed answer: scores has 4 bytes of type "
                          "FLOAT32, which do not fit its shape"));
  wrong = SomeResponse();
  wrong.clear_output();
  EXPECT_EQ(
      DecodeResponse(Buffer(wire::Cut(wrong.SerializeAsString(), nullptr)), {})
          .status()
          .code(),
      absl::StatusCode::kInternal);
  wrong = SomeResponse();
  for (int i = 0; i < 20; ++i) wrong.mutable_output()->add_shape(1);
  EXPECT_EQ(
      DecodeResponse(Buffer(wire::Cut(wrong.SerializeAsString(), nullptr)), {})
          .status()
          .code(),
      absl::StatusCode::kInternal);
  EXPECT_EQ(
      DecodeResponse(Buffer({grpc::Slice("\x0a\x7f")}), {}).status(),
      absl::InternalError("malformed answer: the answer is not a valid "
                          "attention.v1.ComputeAttentionResponse message"));
}

}  // namespace
}  // namespace attention::internal
