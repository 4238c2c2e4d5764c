// ComputeAttention's messages, made and read without copies of what gRPC can
// take from the caller's memory or put there.
#ifndef ATTENTION_INTERNAL_COMPUTE_MESSAGES_H_
#define ATTENTION_INTERNAL_COMPUTE_MESSAGES_H_

#include <grpcpp/support/byte_buffer.h>

#include <cstddef>

#include "absl/status/statusor.h"
#include "attention/client.h"
#include "attention/internal/lease.h"

namespace attention::internal {

// Elements of fewer bytes are copied: a slice of somebody else's memory costs
// more than the copy.
inline constexpr size_t kLentBytes = size_t{16} << 10;

// The bytes that protobuf would write for a ComputeAttentionRequest; large
// tensors are lent from `lease`.
grpc::ByteBuffer EncodeRequest(const ComputeRequest& request, Lease& lease);

// Puts elements into the memory of `outputs` where it is given. INTERNAL if the
// answer is malformed, INVALID_ARGUMENT if it does not fit into the memory.
absl::StatusOr<ComputeResult> DecodeResponse(const grpc::ByteBuffer& message,
                                             const ComputeOutputs& outputs);

}  // namespace attention::internal

#endif  // ATTENTION_INTERNAL_COMPUTE_MESSAGES_H_
