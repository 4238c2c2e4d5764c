// Encodes protobuf messages around payloads that are not copied.
//
//   MessageWriter tensor;
//   tensor.Integer(v1::Tensor::kDataTypeFieldNumber, v1::DATA_TYPE_FLOAT32);
//   tensor.Integers(v1::Tensor::kShapeFieldNumber, {2, 8});
//   tensor.Borrow(v1::Tensor::kDataFieldNumber, slice);
//   MessageWriter request;
//   request.Message(v1::ComputeAttentionRequest::kQueryFieldNumber,
//                   std::move(tensor));
//   grpc::ByteBuffer message = std::move(request).Finish();
//
// Fields are written in the order of the calls. In ascending order of their
// numbers the bytes are those that protobuf itself would write.
#ifndef ATTENTION_WIRE_MESSAGE_WRITER_H_
#define ATTENTION_WIRE_MESSAGE_WRITER_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "base/buffer_pool.h"
#include "google/protobuf/message_lite.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/slice.h"

namespace attention::wire {

// Bytes [begin, end) of memory whose other bytes the writer may use, for the
// small fields before and after them. They may be written until Finish().
struct Payload {
  Buffer memory;
  size_t begin = 0;
  size_t end = 0;
};

// Movable, not copyable. Thread-compatible.
class MessageWriter {
 public:
  MessageWriter() = default;
  MessageWriter(MessageWriter&&) = default;
  MessageWriter& operator=(MessageWriter&&) = default;

  // int64, int32 and enums: left out if 0, as in proto3.
  void Integer(int field, int64_t number);
  // `optional int64`: also if it is 0.
  void OptionalInteger(int field, int64_t number);
  // A packed list: left out if empty.
  void Integers(int field, absl::Span<const int64_t> numbers);
  // A small message, also an empty one.
  void Message(int field, const google::protobuf::MessageLite& message);
  // A message written by another writer, also an empty one.
  void Message(int field, MessageWriter message);

  // `bytes` and packed floats: left out if empty. The bytes are copied, or
  // those of slices, or of a payload in place.
  void Copy(int field, absl::string_view bytes);
  void Borrow(int field, grpc::Slice bytes);
  void Borrow(int field, std::vector<grpc::Slice> bytes);
  void Place(int field, Payload bytes);
  // One of `repeated bytes`: also if it is empty.
  void PlaceElement(int field, Payload bytes);

  // Of the message so far.
  size_t bytes() const { return bytes_; }

  // The message; the writer is used up.
  grpc::ByteBuffer Finish() &&;

 private:
  // A payload and how many bytes of small_ come before it.
  struct Piece {
    size_t after;
    std::variant<grpc::Slice, Payload> payload;
  };

  void Varint(uint64_t value);
  void Header(int field, size_t bytes);

  size_t bytes_ = 0;
  std::string small_;
  std::vector<Piece> pieces_;
};

}  // namespace attention::wire

#endif  // ATTENTION_WIRE_MESSAGE_WRITER_H_
