#include "server/convert.h"

#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "base/field_error.h"
#include "server/shared_memory/region_table.h"
#include "tests/support/messages.h"
#include "tests/support/shared_memory.h"

namespace attention::server {
namespace {

using attention::testing::FloatTensor;
using attention::testing::Packed;
using attention::testing::RandomTensor;
using attention::testing::SmallRequest;

constexpr size_t kMostNumbers = 1000;

// The request through bytes, as it would come.
absl::StatusOr<KernelRequest> Convert(
    const v1::ComputeAttentionRequest& request) {
  static const auto pool = BufferPool::Create(0);
  const std::string bytes = request.SerializeAsString();
  // Small pieces: payloads lie across slices.
  std::vector<grpc::Slice> slices;
  for (size_t begin = 0; begin < bytes.size(); begin += 7) {
    slices.emplace_back(bytes.substr(begin, 7));
  }
  wire::MemoryMeter meter;
  auto fields = wire::DecodeRequest(slices, *pool, meter, kMostNumbers);
  if (!fields.ok()) return fields.status();
  auto converted = ToKernel(*std::move(fields), *pool, meter);
  if (!converted.ok()) return converted.status();
  for (PayloadCopy& copy : converted->copies) copy.Run();
  return converted;
}

TEST(ConvertTest, LargePayloadsAreCopiedInPieces) {
  v1::ComputeAttentionRequest request = SmallRequest();
  *request.mutable_key() =
      RandomTensor(v1::DATA_TYPE_FLOAT32, {1, 1, (9 << 20) / 16, 4}, 1);
  const auto pool = BufferPool::Create(0);
  const std::string bytes = request.SerializeAsString();
  std::vector<grpc::Slice> slices;
  for (size_t begin = 0; begin < bytes.size(); begin += 100000) {
    slices.emplace_back(bytes.substr(begin, 100000));
  }
  wire::MemoryMeter meter;
  auto converted =
      ToKernel(wire::DecodeRequest(slices, *pool, meter, kMostNumbers).value(),
               *pool, meter)
          .value();
  // One for query and value, three for the key.
  ASSERT_EQ(converted.copies.size(), 5u);
  // In any order.
  for (size_t i = converted.copies.size(); i-- > 0;) converted.copies[i].Run();
  EXPECT_EQ(std::memcmp(converted.inputs.key.data, request.key().data().data(),
                        request.key().data().size()),
            0);
  EXPECT_GE(converted.bytes, static_cast<int64_t>(request.key().data().size()));
}

TEST(ConvertTest, AsksForThePayloadsMemory) {
  const auto pool = BufferPool::Create(0);
  const std::string bytes = SmallRequest().SerializeAsString();
  const std::vector<grpc::Slice> slices = {grpc::Slice(bytes)};
  const absl::Status busy = absl::ResourceExhaustedError("busy");
  // The query alone has 96 bytes.
  wire::MemoryMeter meter(95, [&](int64_t) { return busy; });
  auto fields = wire::DecodeRequest(slices, *pool, meter, kMostNumbers);
  ASSERT_TRUE(fields.ok());
  EXPECT_EQ(ToKernel(*std::move(fields), *pool, meter).status(), busy);
}

// What is checked of a mask of BOOL must still be so when it is used. All else
// decides nothing but numbers.
TEST(ConvertTest, SharedTensorsAreLeftWhereTheyAreButMasksOfBool) {
  constexpr int64_t kMost = 1 << 20;
  RegionTable table(kMost);
  const auto added =
      table.Add(attention::testing::NewMemory(4096), /*tenant=*/1, kMost);
  ASSERT_TRUE(added.ok()) << added.status();
  const RegionPtr region = table.Find(added->id, 1);
  const auto pool = BufferPool::Create(0);
  for (const v1::DataType type : {v1::DATA_TYPE_BOOL, v1::DATA_TYPE_INT8}) {
    v1::ComputeAttentionRequest request = SmallRequest();
    *request.mutable_mask() = RandomTensor(type, {3, 5}, 1);
    for (v1::Tensor* tensor : {request.mutable_key(), request.mutable_mask()}) {
      tensor->clear_data();
      tensor->mutable_shared_memory()->set_region(added->id);
      tensor->mutable_shared_memory()->set_offset(128);
    }
    request.mutable_outputs()->mutable_output()->set_region(added->id);
    const std::vector<grpc::Slice> slices = {
        grpc::Slice(request.SerializeAsString())};
    wire::MemoryMeter meter;
    auto converted = ToKernel(
        wire::DecodeRequest(slices, *pool, meter, kMostNumbers).value(), *pool,
        meter, {.table = &table, .tenant = 1});
    ASSERT_TRUE(converted.ok()) << converted.status();
    EXPECT_EQ(converted->inputs.key.data, region->data() + 128);
    EXPECT_EQ(converted->inputs.mask->data == region->data() + 128,
              type != v1::DATA_TYPE_BOOL);
    EXPECT_EQ(converted->outputs.output.region, region);
    EXPECT_EQ(converted->outputs.scores.region, nullptr);
    region->data()[130] = std::byte{1};
    for (PayloadCopy& copy : converted->copies) copy.Run();
    region->data()[130] = std::byte{2};
    EXPECT_EQ(static_cast<const char*>(converted->inputs.mask->data)[2],
              type == v1::DATA_TYPE_BOOL ? 1 : 2);
  }
}

std::string BytesOf(const ConstTensorView& view, int64_t bytes) {
  return {static_cast<const char*>(view.data), static_cast<size_t>(bytes)};
}

TEST(ConvertTest, BitsAreBoolsWithoutGapsBetweenRows) {
  v1::ComputeAttentionRequest request = SmallRequest();
  v1::Tensor& mask = *request.mutable_mask();
  mask.set_data_type(v1::DATA_TYPE_BITS);
  mask.add_shape(3);
  mask.add_shape(5);
  // Elements 0, 2, 7, 8 and 14; what stands behind the last one is nothing.
  mask.set_data("\x85\xc1");
  const auto converted = Convert(request);
  ASSERT_TRUE(converted.ok()) << converted.status();
  const ConstTensorView& view = *converted->inputs.mask;
  EXPECT_EQ(view.type, DataType::kBool);
  EXPECT_EQ(view.shape, (Shape{3, 5}));
  EXPECT_EQ(BytesOf(view, 15),
            std::string("\1\0\1\0\0\0\0\1\1\0\0\0\0\0\1", 15));
}

TEST(ConvertTest, BitsOfAllLengths) {
  for (int64_t length = 0; length < 40; ++length) {
    v1::ComputeAttentionRequest request = SmallRequest();
    const v1::Tensor bools = RandomTensor(v1::DATA_TYPE_BOOL, {length}, 1);
    *request.mutable_mask() = Packed(bools);
    const auto converted = Convert(request);
    ASSERT_TRUE(converted.ok()) << converted.status();
    EXPECT_EQ(BytesOf(*converted->inputs.mask, length), bools.data());
    // Neither more nor less.
    std::string* const data = request.mutable_mask()->mutable_data();
    data->push_back('\0');
    EXPECT_EQ(ErrorField(Convert(request).status()), "mask.data");
    if (length == 0) continue;
    data->resize(data->size() - 2);
    EXPECT_EQ(ErrorField(Convert(request).status()), "mask.data");
  }
}

TEST(ConvertTest, BitsComeFromOnePlace) {
  v1::ComputeAttentionRequest request = SmallRequest();
  *request.mutable_mask() = Packed(RandomTensor(v1::DATA_TYPE_BOOL, {3, 5}, 1));
  request.mutable_mask()->mutable_shared_memory();
  const absl::Status status = Convert(request).status();
  EXPECT_EQ(status.message(),
            "mask: got both shared_memory and data, wanted one");
}

TEST(ConvertTest, LargeMasksOfBitsAreUnpackedInPieces) {
  constexpr int64_t kLength = (9 << 20) + 3;
  const v1::Tensor bools = RandomTensor(v1::DATA_TYPE_BOOL, {kLength}, 1);
  const v1::Tensor packed = Packed(bools);
  constexpr int64_t kMost = 4 << 20;
  RegionTable table(kMost);
  const auto added =
      table.Add(attention::testing::NewMemory(2 << 20), /*tenant=*/1, kMost);
  ASSERT_TRUE(added.ok()) << added.status();
  constexpr int64_t kOffset = 131;
  std::memcpy(table.Find(added->id, 1)->data() + kOffset, packed.data().data(),
              packed.data().size());
  const auto pool = BufferPool::Create(0);
  for (const bool shared : {false, true}) {
    SCOPED_TRACE(shared);
    v1::ComputeAttentionRequest request = SmallRequest();
    *request.mutable_mask() = packed;
    if (shared) {
      request.mutable_mask()->clear_data();
      request.mutable_mask()->mutable_shared_memory()->set_region(added->id);
      request.mutable_mask()->mutable_shared_memory()->set_offset(kOffset);
    }
    const std::string bytes = request.SerializeAsString();
    std::vector<grpc::Slice> slices;
    for (size_t begin = 0; begin < bytes.size(); begin += 100'003) {
      slices.emplace_back(bytes.substr(begin, 100'003));
    }
    wire::MemoryMeter meter;
    auto converted = ToKernel(
        wire::DecodeRequest(slices, *pool, meter, kMostNumbers).value(), *pool,
        meter, {.table = &table, .tenant = 1});
    ASSERT_TRUE(converted.ok()) << converted.status();
    EXPECT_GE(meter.taken(), kLength);
    // What is shared stays while it is read.
    EXPECT_EQ(converted->regions.size(), shared ? 1u : 0u);
    // Three for the mask; of query, key and value one each. In any order.
    ASSERT_EQ(converted->copies.size(), 6u);
    for (size_t i = converted->copies.size(); i-- > 0;) {
      converted->copies[i].Run();
    }
    EXPECT_TRUE(BytesOf(*converted->inputs.mask, kLength) == bools.data());
  }
}

TEST(ConvertTest, PayloadsAreCopiedAligned) {
  const v1::ComputeAttentionRequest request = SmallRequest();
  const auto converted = Convert(request);
  ASSERT_TRUE(converted.ok()) << converted.status();
  const AttentionInputs& inputs = converted->inputs;
  EXPECT_EQ(inputs.query.type, DataType::kFloat32);
  EXPECT_EQ(inputs.query.shape, (Shape{1, 2, 3, 4}));
  EXPECT_EQ(reinterpret_cast<uintptr_t>(inputs.value.data) % 64, 0u);
  EXPECT_EQ(std::memcmp(inputs.value.data, request.value().data().data(),
                        request.value().data().size()),
            0);
  EXPECT_FALSE(inputs.mask.has_value());
  EXPECT_FALSE(inputs.past_key.has_value());
  EXPECT_FALSE(converted->float_values);
}

TEST(ConvertTest, FloatValuesAreFloat32) {
  v1::ComputeAttentionRequest request;
  *request.mutable_query() = FloatTensor({1, 2}, {1, 2});
  *request.mutable_key() = FloatTensor({1, 2}, {3, 4});
  *request.mutable_value() = RandomTensor(v1::DATA_TYPE_FLOAT16, {1, 2}, 1);
  const auto converted = Convert(request);
  ASSERT_TRUE(converted.ok()) << converted.status();
  EXPECT_TRUE(converted->float_values);
  EXPECT_EQ(converted->inputs.query.type, DataType::kFloat32);
  EXPECT_EQ(static_cast<const float*>(converted->inputs.key.data)[1], 4);
}

TEST(ConvertTest, EmptyTensorsNeedNoPayload) {
  v1::ComputeAttentionRequest request = SmallRequest();
  request.mutable_query()->set_shape(2, 0);
  request.mutable_query()->clear_data();
  request.mutable_mask()->add_shape(0);
  const auto converted = Convert(request);
  ASSERT_TRUE(converted.ok()) << converted.status();
  EXPECT_EQ(converted->inputs.query.data, nullptr);
  EXPECT_EQ(converted->inputs.mask->type, DataType::kFloat32);
}

TEST(ConvertTest, EveryOptionArrives) {
  v1::ComputeAttentionRequest request = SmallRequest();
  request.add_valid_lengths(4);
  request.add_query_starts(5);
  request.add_key_starts(6);
  v1::AttentionOptions* options = request.mutable_options();
  options->set_layout(v1::LAYOUT_BSHD);
  options->set_query_heads(7);
  options->set_kv_heads(8);
  options->set_scale(0.5);
  options->set_softcap(30);
  options->set_causal(v1::CAUSAL_TOP_LEFT);
  options->mutable_window()->set_left(9);
  options->mutable_window()->set_right(0);
  options->set_chunk_size(11);
  options->add_alibi_slopes(0.25);
  options->add_sinks(-1);
  options->set_math_mode(v1::MATH_MODE_FAST);
  options->set_softmax_precision(v1::DATA_TYPE_FLOAT64);
  options->set_return_log_sum_exp(true);
  options->set_return_scores(v1::SCORES_BIASED);
  options->set_return_present(true);
  const auto converted = Convert(request);
  ASSERT_TRUE(converted.ok()) << converted.status();
  EXPECT_EQ(converted->inputs.valid_lengths[0], 4);
  EXPECT_EQ(converted->inputs.query_starts[0], 5);
  EXPECT_EQ(converted->inputs.key_starts[0], 6);
  const AttentionOptions& got = converted->options;
  EXPECT_EQ(got.layout, Layout::kBSHD);
  EXPECT_EQ(got.query_heads, 7);
  EXPECT_EQ(got.kv_heads, 8);
  EXPECT_EQ(got.scale, 0.5);
  EXPECT_EQ(got.softcap, 30);
  EXPECT_EQ(got.causal, Causal::kTopLeft);
  EXPECT_EQ(got.window_left, 9);
  EXPECT_EQ(got.window_right, 0);
  EXPECT_EQ(got.chunk_size, 11);
  EXPECT_EQ(got.alibi_slopes, std::vector<double>{0.25});
  EXPECT_EQ(got.sinks, std::vector<double>{-1});
  EXPECT_EQ(got.math_mode, MathMode::kFast);
  EXPECT_EQ(got.softmax_precision, DataType::kFloat64);
  EXPECT_TRUE(got.return_log_sum_exp);
  EXPECT_EQ(got.return_scores, Scores::kBiased);
  EXPECT_TRUE(got.return_present);
}

TEST(ConvertTest, AbsentOptionsAreTheKernelsDefaults) {
  const auto converted = Convert(SmallRequest());
  ASSERT_TRUE(converted.ok());
  const AttentionOptions& got = converted->options;
  const AttentionOptions wanted;
  EXPECT_EQ(got.layout, wanted.layout);
  EXPECT_EQ(got.scale, wanted.scale);
  EXPECT_EQ(got.causal, wanted.causal);
  EXPECT_EQ(got.window_left, wanted.window_left);
  EXPECT_EQ(got.window_right, wanted.window_right);
  EXPECT_EQ(got.math_mode, wanted.math_mode);
  EXPECT_EQ(got.softmax_precision, wanted.softmax_precision);
  EXPECT_EQ(got.return_scores, wanted.return_scores);
}

}  // namespace
}  // namespace attention::server
