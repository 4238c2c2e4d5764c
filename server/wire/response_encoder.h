// The answer's tensors, laid out so that the kernel writes what is sent.
#ifndef ATTENTION_SERVER_WIRE_RESPONSE_ENCODER_H_
#define ATTENTION_SERVER_WIRE_RESPONSE_ENCODER_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "attention/v1/attention.pb.h"
#include "base/buffer_pool.h"
#include "grpcpp/support/byte_buffer.h"
#include "kernel/attention.h"

namespace attention::server::wire {

// Bytes of a ComputeAttentionResponse around payloads in place: each tensor is
// one piece of memory, its payload aligned for the kernel, the message's field
// headers written right before it. Used once: construct, look at bytes(),
// Allocate(), compute, Finish().
class ResponseEncoder {
 public:
  // `float_values`: send every tensor as float_values, converting those of
  // other types.
  ResponseEncoder(const AttentionPlan& plan, bool float_values);

  // An upper bound of the message's size, less than 200 bytes a tensor above
  // the payloads; saturates at the largest int64_t.
  int64_t bytes() const { return bytes_; }

  // The memory that Allocate() will take; saturates likewise.
  int64_t held_bytes() const { return held_bytes_; }

  // Memory for what the kernel writes, good until Finish(). Throws
  // std::bad_alloc.
  AttentionOutputs Allocate(BufferPool& pool);

  // The message. Copies no payload.
  grpc::ByteBuffer Finish(const v1::Timing& timing);

 private:
  struct Part {
    int field;
    TensorSpec spec;
    // Where the kernel writes in AttentionOutputs.
    void* AttentionOutputs::* target;
    // Header, payload, and room for the timing.
    Buffer message;
    // What the kernel writes where that has to be converted.
    Buffer unconverted;
  };

  void Add(int field, const TensorSpec& spec, void* AttentionOutputs::* target);
  bool Converts(const Part& part) const;
  int64_t PayloadBytes(const Part& part) const;
  // Writes the field's header so that it ends at the payload; returns where it
  // begins.
  size_t WriteHeader(const Part& part) const;

  const bool float_values_;
  int64_t bytes_ = 0;
  int64_t held_bytes_ = 0;
  absl::InlinedVector<Part, 2> parts_;
};

}  // namespace attention::server::wire

#endif  // ATTENTION_SERVER_WIRE_RESPONSE_ENCODER_H_
