// The answer's tensors, laid out so that the kernel writes what is sent.
#ifndef ATTENTION_SERVER_RESPONSE_ENCODER_H_
#define ATTENTION_SERVER_RESPONSE_ENCODER_H_

#include <cstdint>
#include <variant>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "attention/v1/attention.pb.h"
#include "base/buffer_pool.h"
#include "grpcpp/support/byte_buffer.h"
#include "kernel/attention.h"
#include "server/convert.h"
#include "server/shared_memory/shared_place.h"
#include "wire/in_place_tensor.h"
#include "wire/message_writer.h"

namespace attention::server {

// A ComputeAttentionResponse, or another message that has fields of the same
// types and numbers. Used once: construct, look at bytes(),
// Allocate(), compute, Finish().
class ResponseEncoder {
 public:
  // `float_values`: send every tensor as float_values, converting those of
  // other types. Those with a place in `outputs` are written there instead, and
  // keep its memory mapped; CheckOutputs() has been asked.
  ResponseEncoder(const AttentionPlan& plan, bool float_values,
                  const OutputPlaces& outputs = {});

  // An upper bound of the message's size, less than 200 bytes per tensor above
  // the payloads; saturates at the largest int64_t.
  int64_t bytes() const { return bytes_; }

  // What is written for the answer, into shared memory too; likewise.
  int64_t written_bytes() const { return written_bytes_; }

  // The memory that Allocate() will take; saturates likewise.
  int64_t held_bytes() const { return held_bytes_; }

  // Memory for what the kernel writes, good until Finish(). Throws
  // std::bad_alloc.
  AttentionOutputs Allocate(BufferPool& pool);

  // The message, to which other fields may be added. Copies no payload.
  wire::MessageWriter Finish(const v1::Timing& timing);
  // Without timing.
  wire::MessageWriter Finish();

  // The tensors in place of a message, for one of another kind, in the order of
  // their fields. Not where some are in shared memory.
  std::vector<wire::InPlaceTensor> TakeTensors();

 private:
  // Written where the client shares memory.
  struct SharedTensor {
    int field;
    TensorSpec spec;
    SharedPlace place;

    void Write(wire::MessageWriter& message) const;
  };
  struct Part {
    std::variant<wire::InPlaceTensor, SharedTensor> tensor;
    // Where the kernel writes in AttentionOutputs.
    void* AttentionOutputs::* target;
  };

  int64_t bytes_ = 0;
  int64_t written_bytes_ = 0;
  int64_t held_bytes_ = 0;
  absl::InlinedVector<Part, 2> parts_;
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_RESPONSE_ENCODER_H_
