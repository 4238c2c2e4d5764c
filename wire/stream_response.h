// The bytes of a StreamAttentionResponse as fields, payloads left where they
// arrived.
#ifndef ATTENTION_WIRE_STREAM_RESPONSE_H_
#define ATTENTION_WIRE_STREAM_RESPONSE_H_

#include <optional>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "attention/v1/attention.pb.h"
#include "base/buffer_pool.h"
#include "grpcpp/support/slice.h"
#include "wire/memory_meter.h"
#include "wire/tensor_fields.h"

namespace attention::wire {

struct StreamResponseFields {
  TensorFields output;
  TensorFields log_sum_exp;
  // In the last message.
  std::optional<v1::Timing> timing;
};

// As DecodeResponse().
absl::StatusOr<StreamResponseFields> DecodeStreamResponse(
    absl::Span<const grpc::Slice> slices, BufferPool& pool, MemoryMeter& meter);

}  // namespace attention::wire

#endif  // ATTENTION_WIRE_STREAM_RESPONSE_H_
