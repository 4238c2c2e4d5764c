// Messages about one layer of a session as fields, payloads left where they
// arrived.
#ifndef ATTENTION_WIRE_SESSION_REQUEST_H_
#define ATTENTION_WIRE_SESSION_REQUEST_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "attention/v1/attention.pb.h"
#include "base/buffer_pool.h"
#include "grpcpp/support/slice.h"
#include "wire/memory_meter.h"
#include "wire/tensor_fields.h"

namespace attention::wire {

// Longer ids are cut one byte after this, so that they can be told.
inline constexpr size_t kMaxIdBytes = 128;

struct LayerFields {
  std::string id;
  uint64_t incarnation = 0;
  int64_t layer = 0;
  std::optional<int64_t> expected_length;
};

// An AppendKeyValuesRequest.
struct AppendFields {
  LayerFields where;
  std::string request_id;  // cut likewise
  TensorFields key;
  TensorFields value;
};

// A Shard, nothing checked.
struct ShardFields {
  int64_t index = 0;
  int64_t count = 0;
  int64_t blocks_per_run = 0;
  int64_t total_length = 0;
};

// An AttendRequest.
struct AttendFields {
  LayerFields where;
  TensorFields query;
  TensorFields mask;
  TensorFields indices;
  TensorFields sinks;
  v1::AttentionOptions options;
  bool not_causal = false;
  int64_t mask_begin = 0;
  std::optional<ShardFields> shard;
};

// A StepItem. `attend.where` is not set: `append.where` is that of both.
struct StepFields {
  AppendFields append;
  AttendFields attend;
};

// Accept what a proto3 parser accepts, and take memory from `meter`, as
// DecodeRequest() does.
//
// Errors: InvalidArgument if the bytes are no such message, have more than
// kMaxFields fields, or the options are too long; what the meter gives.
absl::StatusOr<AppendFields> DecodeAppendRequest(
    absl::Span<const grpc::Slice> slices, BufferPool& pool, MemoryMeter& meter);
absl::StatusOr<AttendFields> DecodeAttendRequest(
    absl::Span<const grpc::Slice> slices, BufferPool& pool, MemoryMeter& meter);
// The items of a StepRequest; InvalidArgument too if there are none, or more
// than `most`.
absl::StatusOr<std::vector<StepFields>> DecodeStepRequest(
    absl::Span<const grpc::Slice> slices, BufferPool& pool, MemoryMeter& meter,
    size_t most);

}  // namespace attention::wire

#endif  // ATTENTION_WIRE_SESSION_REQUEST_H_
