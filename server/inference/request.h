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
#include "kernel/attention.h"
#include "server/inference/parameters.h"
#include "server/shared_memory/named_regions.h"
#include "wire/compute_request.h"
#include "wire/infer_request.h"
#include "wire/memory_meter.h"

namespace attention::server {

// An output that was asked for.
struct InferOutput {
  // Of ComputeAttentionResponse.
  int field = 0;
  // Where its elements go in place of the message; a null region: nowhere.
  NamedRegionPtr region = nullptr;
  NamedPlace place = {};
};
using InferOutputs = absl::InlinedVector<InferOutput, 5>;

// Movable, not copyable.
struct InferRequest {
  // Tensors refer to the slices of the message and to `contents`.
  wire::RequestFields fields;
  // What to answer; none: all that is computed.
  InferOutputs outputs;
  // Elements that came as numbers or from named memory; they do not move with
  // this.
  std::deque<grpc::Slice> contents;
};

// Of at most `most_numbers` in each list. Takes memory of `pool` for elements
// that came as numbers or are in named memory, asking `meter` first. Throws
// std::bad_alloc.
//
// Errors: InvalidArgument with ErrorField(), a path in ModelInferRequest;
// NotFound (kModelUnknown, or kRegionUnknown with the field); what the meter
// gives.
absl::StatusOr<InferRequest> ToInferRequest(wire::InferRequestFields fields,
                                            size_t most_numbers,
                                            BufferPool& pool,
                                            wire::MemoryMeter& meter,
                                            const NamedCaller& caller = {});

// Whether the outputs fit where they are to go. Errors: InvalidArgument with
// ErrorField().
absl::Status CheckPlaces(const InferOutputs& outputs,
                         const AttentionPlan& plan);

// An error about a field of the ComputeAttentionRequest, "query.data_type" or
// "options.scale", as one about that of the ModelInferRequest,
// "inputs.query.datatype" or "parameters.scale".
absl::Status OfInferRequest(const absl::Status& status);

}  // namespace attention::server

#endif  // ATTENTION_SERVER_INFERENCE_REQUEST_H_
