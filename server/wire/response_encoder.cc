#include "server/wire/response_encoder.h"

#include <cstring>
#include <limits>
#include <utility>

#include "google/protobuf/io/coded_stream.h"
#include "server/wire/buffer_slice.h"
#include "server/wire/convert_floats.h"
#include "server/wire/data_type.h"

namespace attention::server::wire {
namespace {

using google::protobuf::io::CodedOutputStream;
using v1::ComputeAttentionResponse;
using v1::Tensor;

// Before a payload: tag and length of the tensor, its type, its shape of at
// most kMaxDims dimensions, tag and length of the payload. A multiple of the
// alignment, so that the payload keeps it.
constexpr size_t kMaxDims = 4;
constexpr size_t kHeaderRoom = 2 * Buffer::kAlignment;
static_assert(11 + 2 + (2 + kMaxDims * 10) + 11 <= kHeaderRoom);
// After it: tag and length of the timing, four fields.
constexpr size_t kTimingRoom = Buffer::kAlignment;
static_assert(2 + 4 * 11 <= kTimingRoom);

constexpr uint32_t LengthTag(int field) { return (field << 3) | 2; }
constexpr uint32_t VarintTag(int field) { return field << 3; }

int64_t SaturatingAdd(int64_t a, int64_t b) {
  int64_t sum;
  return __builtin_add_overflow(a, b, &sum)
             ? std::numeric_limits<int64_t>::max()
             : sum;
}

}  // namespace

ResponseEncoder::ResponseEncoder(const AttentionPlan& plan, bool float_values)
    : float_values_(float_values) {
  Add(ComputeAttentionResponse::kOutputFieldNumber, plan.output,
      &AttentionOutputs::output);
  const auto add = [this](int field, const std::optional<TensorSpec>& spec,
                          void* AttentionOutputs::* target) {
    if (spec) Add(field, *spec, target);
  };
  add(ComputeAttentionResponse::kLogSumExpFieldNumber, plan.log_sum_exp,
      &AttentionOutputs::log_sum_exp);
  add(ComputeAttentionResponse::kScoresFieldNumber, plan.scores,
      &AttentionOutputs::scores);
  add(ComputeAttentionResponse::kPresentKeyFieldNumber, plan.present_key,
      &AttentionOutputs::present_key);
  add(ComputeAttentionResponse::kPresentValueFieldNumber, plan.present_value,
      &AttentionOutputs::present_value);
}

void ResponseEncoder::Add(int field, const TensorSpec& spec,
                          void* AttentionOutputs::* target) {
  parts_.push_back({field, spec, target, Buffer(), Buffer()});
  bytes_ = SaturatingAdd(bytes_, PayloadBytes(parts_.back()));
  bytes_ = SaturatingAdd(bytes_, kHeaderRoom + kTimingRoom);
  held_bytes_ = SaturatingAdd(held_bytes_, PayloadBytes(parts_.back()));
  held_bytes_ = SaturatingAdd(held_bytes_, kHeaderRoom + kTimingRoom);
  if (Converts(parts_.back())) {
    held_bytes_ = SaturatingAdd(held_bytes_, spec.num_bytes());
  }
}

bool ResponseEncoder::Converts(const Part& part) const {
  return float_values_ && part.spec.type != DataType::kFloat32;
}

int64_t ResponseEncoder::PayloadBytes(const Part& part) const {
  return float_values_
             ? part.spec.num_elements() * static_cast<int64_t>(sizeof(float))
             : part.spec.num_bytes();
}

AttentionOutputs ResponseEncoder::Allocate(BufferPool& pool) {
  AttentionOutputs outputs;
  for (Part& part : parts_) {
    part.message =
        pool.Allocate(kHeaderRoom + PayloadBytes(part) + kTimingRoom);
    if (Converts(part)) {
      part.unconverted = pool.Allocate(part.spec.num_bytes());
      outputs.*part.target = part.unconverted.data();
    } else {
      outputs.*part.target = part.message.data() + kHeaderRoom;
    }
  }
  return outputs;
}

size_t ResponseEncoder::WriteHeader(const Part& part) const {
  uint8_t fields[kHeaderRoom];
  uint8_t* end = fields;
  const DataType type = float_values_ ? DataType::kFloat32 : part.spec.type;
  end = CodedOutputStream::WriteVarint32ToArray(
      VarintTag(Tensor::kDataTypeFieldNumber), end);
  end = CodedOutputStream::WriteVarint32ToArray(ToWire(type), end);
  size_t shape_bytes = 0;
  for (int64_t dim : part.spec.shape) {
    shape_bytes += CodedOutputStream::VarintSize64(dim);
  }
  if (shape_bytes > 0) {
    end = CodedOutputStream::WriteVarint32ToArray(
        LengthTag(Tensor::kShapeFieldNumber), end);
    end = CodedOutputStream::WriteVarint32ToArray(shape_bytes, end);
    for (int64_t dim : part.spec.shape) {
      end = CodedOutputStream::WriteVarint64ToArray(dim, end);
    }
  }
  const int64_t payload = PayloadBytes(part);
  if (payload > 0) {
    end = CodedOutputStream::WriteVarint32ToArray(
        LengthTag(float_values_ ? Tensor::kFloatValuesFieldNumber
                                : Tensor::kDataFieldNumber),
        end);
    end = CodedOutputStream::WriteVarint64ToArray(payload, end);
  }
  uint8_t outer[kHeaderRoom];
  uint8_t* outer_end =
      CodedOutputStream::WriteVarint32ToArray(LengthTag(part.field), outer);
  outer_end = CodedOutputStream::WriteVarint64ToArray((end - fields) + payload,
                                                      outer_end);
  const size_t begin = kHeaderRoom - (end - fields) - (outer_end - outer);
  std::byte* target = part.message.data() + begin;
  std::memcpy(target, outer, outer_end - outer);
  std::memcpy(target + (outer_end - outer), fields, end - fields);
  return begin;
}

grpc::ByteBuffer ResponseEncoder::Finish(const v1::Timing& timing) {
  std::vector<grpc::Slice> slices;
  for (Part& part : parts_) {
    if (Converts(part)) {
      ConvertToFloats(
          part.spec.type, part.unconverted.data(), part.spec.num_elements(),
          reinterpret_cast<float*>(part.message.data() + kHeaderRoom));
    }
    const size_t begin = WriteHeader(part);
    size_t end = kHeaderRoom + PayloadBytes(part);
    if (&part == &parts_.back()) {
      auto* tail = reinterpret_cast<uint8_t*>(part.message.data()) + end;
      uint8_t* const first = tail;
      const size_t size = timing.ByteSizeLong();
      tail = CodedOutputStream::WriteVarint32ToArray(
          LengthTag(ComputeAttentionResponse::kTimingFieldNumber), tail);
      tail = CodedOutputStream::WriteVarint32ToArray(size, tail);
      tail = timing.SerializeWithCachedSizesToArray(tail);
      end += tail - first;
    }
    slices.push_back(ToSlice(std::move(part.message), begin, end));
  }
  return grpc::ByteBuffer(slices.data(), slices.size());
}

}  // namespace attention::server::wire
