#include "wire/in_place_tensor.h"

#include <utility>

#include "attention/v1/attention.pb.h"
#include "base/saturating.h"
#include "wire/convert_floats.h"
#include "wire/data_type.h"
#include "wire/tensor_fields.h"

namespace attention::wire {
namespace {

// Before a payload: tag and length of the tensor, its type, its shape of at
// most kMaxDims dimensions, tag and length of the payload. A multiple of the
// alignment, so that the payload keeps it.
constexpr size_t kMaxDims = 4;
constexpr size_t kHeaderRoom = 2 * Buffer::kAlignment;
static_assert(11 + 2 + (2 + kMaxDims * 10) + 11 <= kHeaderRoom);
// After it: tag and length of a Timing, four fields.
constexpr size_t kTailRoom = Buffer::kAlignment;
static_assert(2 + 4 * 11 <= kTailRoom);

}  // namespace

InPlaceTensor::InPlaceTensor(int field, TensorSpec spec, bool float_values)
    : field_(field), spec_(std::move(spec)), float_values_(float_values) {}

bool InPlaceTensor::converts() const {
  return float_values_ && spec_.type != DataType::kFloat32;
}

int64_t InPlaceTensor::payload_bytes() const {
  return float_values_
             ? spec_.num_elements() * static_cast<int64_t>(sizeof(float))
             : spec_.num_bytes();
}

int64_t InPlaceTensor::bytes() const {
  return SaturatingAdd(payload_bytes(), kHeaderRoom + kTailRoom);
}

int64_t InPlaceTensor::held_bytes() const {
  return SaturatingAdd(bytes(), converts() ? spec_.num_bytes() : 0);
}

void* InPlaceTensor::Allocate(BufferPool& pool) {
  payload_ = {.memory = pool.Allocate(bytes()),
              .begin = kHeaderRoom,
              .end = kHeaderRoom + static_cast<size_t>(payload_bytes())};
  if (!converts()) return payload_.memory.data() + payload_.begin;
  unconverted_ = pool.Allocate(spec_.num_bytes());
  return unconverted_.data();
}

absl::Span<const std::byte> InPlaceTensor::elements() const {
  return absl::MakeConstSpan(payload_.memory.data() + payload_.begin,
                             payload_.end - payload_.begin);
}

void InPlaceTensor::Write(MessageWriter& message) && {
  if (converts()) {
    ConvertToFloats(
        spec_.type, unconverted_.data(), spec_.num_elements(),
        reinterpret_cast<float*>(payload_.memory.data() + payload_.begin));
  }
  MessageWriter tensor = StartTensor(
      ToWire(float_values_ ? DataType::kFloat32 : spec_.type), spec_.shape);
  tensor.Place(float_values_ ? v1::Tensor::kFloatValuesFieldNumber
                             : v1::Tensor::kDataFieldNumber,
               std::move(payload_));
  message.Message(field_, std::move(tensor));
}

void InPlaceTensor::WriteElements(int field, MessageWriter& message) && {
  message.PlaceElement(field, std::move(payload_));
}

}  // namespace attention::wire
