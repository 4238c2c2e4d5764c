#include "wire/tensor_fields.h"

#include <optional>
#include <utility>

#include "attention/v1/attention.pb.h"

namespace attention::wire {

void DecodeSharedMemory(MessageReader& reader, SharedMemoryFields* memory) {
  std::optional<MessageReader> message = reader.Message();
  if (!message) return;
  memory->present = true;
  while (message->Next()) {
    switch (message->field()) {
      case v1::SharedMemory::kRegionFieldNumber:
        message->Bytes(&memory->region);
        break;
      case v1::SharedMemory::kOffsetFieldNumber:
        message->Integer(&memory->offset);
        break;
      default:
        message->Skip();
    }
  }
}

void DecodeTensor(MessageReader& reader, TensorFields* tensor) {
  std::optional<MessageReader> message = reader.Message();
  if (!message) return;
  tensor->present = true;
  while (message->Next()) {
    switch (message->field()) {
      case v1::Tensor::kDataTypeFieldNumber:
        message->Integer(&tensor->data_type);
        break;
      case v1::Tensor::kShapeFieldNumber:
        message->Integers([&](int64_t dim) {
          if (tensor->rank++ < kMaxRank) tensor->shape.push_back(dim);
          return reader.decoding().CountField();
        });
        break;
      case v1::Tensor::kDataFieldNumber:
        message->Bytes(&tensor->data);
        break;
      case v1::Tensor::kFloatValuesFieldNumber:
        message->Floats(&tensor->float_values);
        break;
      case v1::Tensor::kSharedMemoryFieldNumber:
        DecodeSharedMemory(*message, &tensor->shared_memory);
        break;
      default:
        message->Skip();
    }
  }
}

MessageWriter StartTensor(int32_t data_type, absl::Span<const int64_t> shape) {
  MessageWriter tensor;
  tensor.Integer(v1::Tensor::kDataTypeFieldNumber, data_type);
  tensor.Integers(v1::Tensor::kShapeFieldNumber, shape);
  return tensor;
}

void WriteSharedMemory(int field, absl::string_view region, int64_t offset,
                       MessageWriter& message) {
  MessageWriter memory;
  memory.Copy(v1::SharedMemory::kRegionFieldNumber, region);
  memory.Integer(v1::SharedMemory::kOffsetFieldNumber, offset);
  message.Message(field, std::move(memory));
}

}  // namespace attention::wire
