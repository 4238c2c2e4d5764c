// A tensor of an answer, computed in the memory that is sent.
#ifndef ATTENTION_WIRE_IN_PLACE_TENSOR_H_
#define ATTENTION_WIRE_IN_PLACE_TENSOR_H_

#include <cstddef>
#include <cstdint>

#include "absl/types/span.h"
#include "base/buffer_pool.h"
#include "kernel/tensor_view.h"
#include "wire/message_writer.h"

namespace attention::wire {

// A Tensor field. Used once: construct, look at bytes(), Allocate(), let the
// kernel write, Write(). Movable.
class InPlaceTensor {
 public:
  // `float_values`: send the elements as float_values, converting those of
  // other types. `spec` is of a float type then.
  InPlaceTensor(int field, TensorSpec spec, bool float_values);

  // An upper bound of the field's bytes and of small fields around it, less
  // than 200 above the payload; saturates at the largest int64_t.
  int64_t bytes() const;
  // The memory that Allocate() will take; saturates likewise.
  int64_t held_bytes() const;

  // Aligned memory for the elements, good until Write(). Throws
  // std::bad_alloc.
  void* Allocate(BufferPool& pool);

  // Adds the field to `message`, copying nothing.
  void Write(MessageWriter& message) &&;
  // Adds the elements alone, as one of the `repeated bytes` of `field`. Not
  // with float_values.
  void WriteElements(int field, MessageWriter& message) &&;

  int field() const { return field_; }
  const TensorSpec& spec() const { return spec_; }
  // What the kernel has written. Not with float_values.
  absl::Span<const std::byte> elements() const;

 private:
  bool converts() const;
  int64_t payload_bytes() const;

  int field_;
  TensorSpec spec_;
  bool float_values_;
  Payload payload_;
  // What the kernel writes where that has to be converted.
  Buffer unconverted_;
};

}  // namespace attention::wire

#endif  // ATTENTION_WIRE_IN_PLACE_TENSOR_H_
