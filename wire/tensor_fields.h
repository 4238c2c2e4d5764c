// A Tensor message, from its bytes and to them.
#ifndef ATTENTION_WIRE_TENSOR_FIELDS_H_
#define ATTENTION_WIRE_TENSOR_FIELDS_H_

#include <cstddef>
#include <cstdint>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "kernel/tensor_view.h"
#include "wire/message_reader.h"
#include "wire/message_writer.h"
#include "wire/slice_reader.h"

namespace attention::wire {

// Dimensions kept of a shape; no tensor has as many.
inline constexpr size_t kMaxRank = 8;

// As it came, nothing checked. `region` lies in the slices of the message.
struct SharedMemoryFields {
  bool present = false;
  SliceReader region;
  int64_t offset = 0;
};

// As it came, nothing checked.
struct TensorFields {
  // Whether the message was there.
  bool present = false;
  // The number sent, known or not.
  int32_t data_type = 0;
  // The first kMaxRank dimensions, and how many were sent.
  Shape shape;
  size_t rank = 0;
  // `data`, in the slices of the message.
  SliceReader data;
  FloatList float_values;
  SharedMemoryFields shared_memory;
};

// The field that `reader` stands at, a SharedMemory; skipped if it is no
// message.
void DecodeSharedMemory(MessageReader& reader, SharedMemoryFields* memory);

// The field that `reader` stands at, a Tensor; skipped if it is no message.
// `data` is not copied: it refers to the slices.
void DecodeTensor(MessageReader& reader, TensorFields* tensor);

// A Tensor message of this type and shape, to which `data`, `float_values` or
// `shared_memory` may still be added.
MessageWriter StartTensor(int32_t data_type, absl::Span<const int64_t> shape);

// Adds the field `field`, a SharedMemory, to `message`.
void WriteSharedMemory(int field, absl::string_view region, int64_t offset,
                       MessageWriter& message);

}  // namespace attention::wire

#endif  // ATTENTION_WIRE_TENSOR_FIELDS_H_
