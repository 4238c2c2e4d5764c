// The bytes of a ComputeAttentionResponse as fields, payloads left where they
// arrived.
#ifndef ATTENTION_WIRE_COMPUTE_RESPONSE_H_
#define ATTENTION_WIRE_COMPUTE_RESPONSE_H_

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "attention/v1/attention.pb.h"
#include "base/buffer_pool.h"
#include "grpcpp/support/slice.h"
#include "wire/memory_meter.h"
#include "wire/tensor_fields.h"

namespace attention::wire {

struct ResponseFields {
  TensorFields output;
  TensorFields log_sum_exp;
  TensorFields scores;
  TensorFields present_key;
  TensorFields present_value;
  v1::Timing timing;
};

// Accepts what a proto3 parser accepts, and takes memory from `meter` as
// DecodeRequest() does. `data` is not copied: the result refers to `slices`.
//
// Errors: InvalidArgument if the bytes are no such message or have more than
// kMaxFields fields; what the meter gives.
absl::StatusOr<ResponseFields> DecodeResponse(
    absl::Span<const grpc::Slice> slices, BufferPool& pool, MemoryMeter& meter);

}  // namespace attention::wire

#endif  // ATTENTION_WIRE_COMPUTE_RESPONSE_H_
