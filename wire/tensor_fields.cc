#include "wire/tensor_fields.h"

#include <optional>

#include "attention/v1/attention.pb.h"

namespace attention::wire {

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

}  // namespace attention::wire
