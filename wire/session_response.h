// Answers about layers of sessions as fields, payloads left where they arrived.
#ifndef ATTENTION_WIRE_SESSION_RESPONSE_H_
#define ATTENTION_WIRE_SESSION_RESPONSE_H_

#include <cstdint>
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

// A Partial.
struct PartialFields {
  int64_t block_begin = 0;
  int64_t block_end = 0;
  TensorFields max;
  TensorFields sum;
  TensorFields output;
};

// An AttendResponse, or a StepResult.
struct AttendResultFields {
  TensorFields output;
  TensorFields log_sum_exp;
  TensorFields scores;
  // The two of an AttendResponse.
  v1::Timing timing;
  std::vector<PartialFields> partials;
  int64_t length = 0;
  // Of a StepResult.
  int32_t code = 0;
  std::string message;
  std::string status_details;
};

// A StepResponse.
struct StepResponseFields {
  std::vector<AttendResultFields> results;
  v1::Timing timing;
};

// Accept what a proto3 parser accepts, and take memory from `meter`, as
// DecodeRequest() does. `data` is not copied: the result refers to `slices`.
//
// Errors: InvalidArgument if the bytes are no such message, have more than
// kMaxFields fields, or more results than `most`, or partials than
// `most_partials`; what the meter gives.
absl::StatusOr<AttendResultFields> DecodeAttendResponse(
    absl::Span<const grpc::Slice> slices, BufferPool& pool, MemoryMeter& meter,
    size_t most_partials = 0);
absl::StatusOr<StepResponseFields> DecodeStepResponse(
    absl::Span<const grpc::Slice> slices, BufferPool& pool, MemoryMeter& meter,
    size_t most);

}  // namespace attention::wire

#endif  // ATTENTION_WIRE_SESSION_RESPONSE_H_
