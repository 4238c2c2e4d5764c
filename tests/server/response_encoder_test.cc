#include "server/response_encoder.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

namespace attention::server {
namespace {

v1::Timing SomeTiming() {
  v1::Timing timing;
  timing.set_queue_us(1);
  timing.set_decode_us(300);
  timing.set_compute_us(70000);
  timing.set_encode_us(std::numeric_limits<int64_t>::max());
  return timing;
}

v1::ComputeAttentionResponse Parse(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(buffer.Dump(&slices).ok());
  std::string bytes;
  for (const grpc::Slice& slice : slices) {
    bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  v1::ComputeAttentionResponse response;
  EXPECT_TRUE(response.ParseFromString(bytes));
  // Exactly what protobuf would have written.
  EXPECT_EQ(response.SerializeAsString(), bytes);
  return response;
}

template <typename T>
void Fill(void* target, const std::vector<T>& values) {
  std::memcpy(target, values.data(), values.size() * sizeof(T));
}

std::vector<int64_t> ShapeOf(const v1::Tensor& tensor) {
  return {tensor.shape().begin(), tensor.shape().end()};
}

TEST(ResponseEncoderTest, WritesTensorsInPlace) {
  AttentionPlan plan;
  plan.output = {DataType::kFloat32, {1, 2}};
  plan.log_sum_exp = TensorSpec{DataType::kFloat64, {1}};
  ResponseEncoder encoder(plan, /*float_values=*/false);
  const auto pool = BufferPool::Create(0);
  const AttentionOutputs outputs = encoder.Allocate(*pool);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(outputs.output) % Buffer::kAlignment,
            0u);
  EXPECT_EQ(outputs.scores, nullptr);
  Fill<float>(outputs.output, {1.5, -2});
  Fill<double>(outputs.log_sum_exp, {0.25});
  const grpc::ByteBuffer message = encoder.Finish(SomeTiming()).Finish();
  EXPECT_LE(message.Length(), encoder.bytes());

  std::vector<grpc::Slice> slices;
  ASSERT_TRUE(message.Dump(&slices).ok());
  ASSERT_EQ(slices.size(), 2u);
  // The kernel's memory is what is sent.
  const auto* written = static_cast<const uint8_t*>(outputs.output);
  EXPECT_GE(written, slices[0].begin());
  EXPECT_LE(written + 8, slices[0].end());

  const v1::ComputeAttentionResponse response = Parse(message);
  EXPECT_EQ(response.output().data_type(), v1::DATA_TYPE_FLOAT32);
  EXPECT_EQ(ShapeOf(response.output()), (std::vector<int64_t>{1, 2}));
  float output[2];
  ASSERT_EQ(response.output().data().size(), sizeof(output));
  std::memcpy(output, response.output().data().data(), sizeof(output));
  EXPECT_EQ(output[0], 1.5f);
  EXPECT_EQ(output[1], -2.f);
  EXPECT_EQ(response.log_sum_exp().data_type(), v1::DATA_TYPE_FLOAT64);
  EXPECT_EQ(response.log_sum_exp().data().size(), 8u);
  EXPECT_FALSE(response.has_scores());
  EXPECT_EQ(response.timing().SerializeAsString(),
            SomeTiming().SerializeAsString());
}

TEST(ResponseEncoderTest, SendsAllTensorsAsFloatValues) {
  AttentionPlan plan;
  plan.output = {DataType::kFloat32, {2}};
  plan.log_sum_exp = TensorSpec{DataType::kFloat64, {1}};
  plan.present_value = TensorSpec{DataType::kBFloat16, {1}};
  ResponseEncoder encoder(plan, /*float_values=*/true);
  const auto pool = BufferPool::Create(0);
  const AttentionOutputs outputs = encoder.Allocate(*pool);
  Fill<float>(outputs.output, {1.5, -2});
  Fill<double>(outputs.log_sum_exp, {0.25});
  Fill<uint16_t>(outputs.present_value, {0x3f80});
  const v1::ComputeAttentionResponse response =
      Parse(encoder.Finish(SomeTiming()).Finish());
  const auto expect = [](const v1::Tensor& tensor, std::vector<float> wanted) {
    EXPECT_EQ(tensor.data_type(), v1::DATA_TYPE_FLOAT32);
    EXPECT_TRUE(tensor.data().empty());
    EXPECT_EQ(std::vector<float>(tensor.float_values().begin(),
                                 tensor.float_values().end()),
              wanted);
  };
  expect(response.output(), {1.5, -2});
  expect(response.log_sum_exp(), {0.25});
  expect(response.present_value(), {1});
}

TEST(ResponseEncoderTest, EmptyTensorsHaveAShapeOnly) {
  AttentionPlan plan;
  plan.output = {DataType::kFloat16, {0, 8}};
  ResponseEncoder encoder(plan, /*float_values=*/false);
  const auto pool = BufferPool::Create(0);
  encoder.Allocate(*pool);
  const v1::ComputeAttentionResponse response =
      Parse(encoder.Finish(v1::Timing()).Finish());
  EXPECT_TRUE(response.has_output());
  EXPECT_EQ(response.output().data_type(), v1::DATA_TYPE_FLOAT16);
  EXPECT_EQ(ShapeOf(response.output()), (std::vector<int64_t>{0, 8}));
  EXPECT_TRUE(response.has_timing());
}

TEST(ResponseEncoderTest, LongestHeadersFit) {
  AttentionPlan plan;
  constexpr int64_t kHuge = std::numeric_limits<int64_t>::max();
  plan.output = {DataType::kFloat32, {0, kHuge, kHuge, kHuge}};
  ResponseEncoder encoder(plan, /*float_values=*/false);
  const auto pool = BufferPool::Create(0);
  encoder.Allocate(*pool);
  const v1::ComputeAttentionResponse response =
      Parse(encoder.Finish(SomeTiming()).Finish());
  EXPECT_EQ(ShapeOf(response.output()),
            (std::vector<int64_t>{0, kHuge, kHuge, kHuge}));
}

TEST(ResponseEncoderTest, SizeSaturates) {
  AttentionPlan plan;
  plan.output = {DataType::kFloat32, {int64_t{1} << 60}};
  plan.scores = plan.output;
  EXPECT_EQ(ResponseEncoder(plan, false).bytes(),
            std::numeric_limits<int64_t>::max());
}

}  // namespace
}  // namespace attention::server
