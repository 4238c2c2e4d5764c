// Tensors in messages, without copies of what gRPC can take from the caller's
// memory or put there.
#ifndef ATTENTION_INTERNAL_TENSOR_MESSAGE_H_
#define ATTENTION_INTERNAL_TENSOR_MESSAGE_H_

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/slice.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "attention/internal/lease.h"
#include "attention/tensor.h"
#include "wire/message_writer.h"
#include "wire/tensor_fields.h"

namespace attention::internal {

// Elements of fewer bytes are copied: a slice of somebody else's memory costs
// more than the copy.
inline constexpr size_t kLentBytes = size_t{16} << 10;

// A tensor's place in memory shared with the server; without a region it
// travels in the message.
struct SharedInput {
  std::string region;
  int64_t offset = 0;
};
struct SharedOutput : SharedInput {
  // The same place as this process has it.
  std::span<std::byte> memory;
};

// Adds the field `field`, a Tensor, to `message`. Its elements are lent from
// `lease` where they are many.
void WriteTensor(int field, const TensorSpan& tensor, const SharedInput& place,
                 Lease& lease, wire::MessageWriter& message);

// INTERNAL: an answer that is not what the server should have sent.
absl::Status MalformedAnswer(const absl::Status& why);

// Takes the tensors out of an answer: into the caller's memory where that is
// given; else they stay where they arrived, if they can be used there.
class AnswerTensors {
 public:
  explicit AnswerTensors(const grpc::ByteBuffer& message);

  // The message. What is read from them may be used while this object lives.
  const std::vector<grpc::Slice>& slices() const { return *slices_; }

  // What was wrong first: INTERNAL if a tensor was malformed, INVALID_ARGUMENT
  // if it did not fit into the memory. Nothing more is taken then.
  const absl::Status& status() const { return status_; }

  // `field` is the tensor's name in errors. The second leaves the target empty
  // where there is no such tensor.
  void Take(absl::string_view field, const wire::TensorFields& tensor,
            const SharedOutput& place, std::span<std::byte> memory,
            Tensor* target);
  void Take(absl::string_view field, const wire::TensorFields& tensor,
            const SharedOutput& place, std::span<std::byte> memory,
            std::optional<Tensor>* target);

 private:
  const std::shared_ptr<std::vector<grpc::Slice>> slices_;
  absl::Status status_;
};

}  // namespace attention::internal

#endif  // ATTENTION_INTERNAL_TENSOR_MESSAGE_H_
