// A ModelInferRequest as the request of ComputeAttention that it stands for.
#ifndef ATTENTION_SERVER_INFERENCE_REQUEST_H_
#define ATTENTION_SERVER_INFERENCE_REQUEST_H_

#include <cstddef>
#include <deque>

#include "absl/container/inlined_vector.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/buffer_pool.h"
#include "grpcpp/support/slice.h"
#include "wire/compute_request.h"
#include "wire/infer_request.h"
#include "wire/memory_meter.h"

namespace attention::server {

// Movable, not copyable.
struct InferRequest {
  // Tensors refer to the slices of the message and to `contents`.
  wire::RequestFields fields;
  // Numbers of the fields of ComputeAttentionResponse to send; none: all that
  // are computed.
  absl::InlinedVector<int, 5> outputs;
  // Elements that came as numbers; they do not move with this.
  std::deque<grpc::Slice> contents;
};

// Of at most `most_numbers` in each list. Takes memory of `pool` for elements
// that came as numbers, asking `meter` first. Throws std::bad_alloc.
//
// Errors: InvalidArgument with ErrorField(), a path in ModelInferRequest;
// NotFound (kModelUnknown); what the meter gives.
absl::StatusOr<InferRequest> ToInferRequest(wire::InferRequestFields fields,
                                            size_t most_numbers,
                                            BufferPool& pool,
                                            wire::MemoryMeter& meter);

// An error about a field of the ComputeAttentionRequest, "query.data_type" or
// "options.scale", as one about that of the ModelInferRequest,
// "inputs.query.datatype" or "parameters.scale".
absl::Status OfInferRequest(const absl::Status& status);

}  // namespace attention::server

#endif  // ATTENTION_SERVER_INFERENCE_REQUEST_H_
