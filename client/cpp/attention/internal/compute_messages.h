// ComputeAttention's messages, made and read without copies of what gRPC can
// take from the caller's memory or put there.
#ifndef ATTENTION_INTERNAL_COMPUTE_MESSAGES_H_
#define ATTENTION_INTERNAL_COMPUTE_MESSAGES_H_

#include <grpcpp/support/byte_buffer.h>

#include "absl/status/statusor.h"
#include "attention/client.h"
#include "attention/internal/lease.h"
#include "attention/internal/tensor_message.h"
#include "wire/message_writer.h"

namespace attention::internal {

// Where tensors lie in memory shared with the server; those without a region
// travel in the messages.
struct SharedPlaces {
  using Input = SharedInput;
  using Output = SharedOutput;

  Input query, key, value, mask, past_key, past_value, indices, sinks;
  Output output, log_sum_exp, scores, present_key, present_value;
};

// The fields of a ComputeAttentionRequest; large tensors are lent from `lease`.
wire::MessageWriter WriteRequest(const ComputeRequest& request, Lease& lease,
                                 const SharedPlaces& places = {});

// The bytes that protobuf would write for a ComputeAttentionRequest; large
// tensors are lent from `lease`.
grpc::ByteBuffer EncodeRequest(const ComputeRequest& request, Lease& lease,
                               const SharedPlaces& places = {});

// Puts elements into the memory of `outputs` where it is given. INTERNAL if the
// answer is malformed, INVALID_ARGUMENT if it does not fit into the memory.
absl::StatusOr<ComputeResult> DecodeResponse(const grpc::ByteBuffer& message,
                                             const ComputeOutputs& outputs,
                                             const SharedPlaces& places = {});

}  // namespace attention::internal

#endif  // ATTENTION_INTERNAL_COMPUTE_MESSAGES_H_
