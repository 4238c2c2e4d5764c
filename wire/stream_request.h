// The bytes of a StreamAttentionRequest as fields, payloads left where they
// arrived.
#ifndef ATTENTION_WIRE_STREAM_REQUEST_H_
#define ATTENTION_WIRE_STREAM_REQUEST_H_

#include <cstddef>
#include <variant>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "base/buffer_pool.h"
#include "grpcpp/support/slice.h"
#include "wire/compute_request.h"
#include "wire/memory_meter.h"
#include "wire/tensor_fields.h"

namespace attention::wire {

struct ChunkFields {
  TensorFields key;
  TensorFields value;
  TensorFields mask;
};

// Nothing: the message has neither.
using StreamRequestFields =
    std::variant<std::monostate, RequestFields, ChunkFields>;

// As DecodeRequest(), whose errors are those of the header, their fields named
// "header.FIELD".
absl::StatusOr<StreamRequestFields> DecodeStreamRequest(
    absl::Span<const grpc::Slice> slices, BufferPool& pool, MemoryMeter& meter,
    size_t most_numbers);

}  // namespace attention::wire

#endif  // ATTENTION_WIRE_STREAM_REQUEST_H_
