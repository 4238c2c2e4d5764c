#include "server/rpc/infer_call.h"

#include <cstddef>
#include <utility>

#include "absl/status/status.h"
#include "server/convert.h"
#include "server/inference/answer.h"
#include "server/inference/request.h"
#include "server/rpc/call_headers.h"
#include "server/utf8.h"
#include "wire/infer_request.h"

namespace attention::server {

InferCall::InferCall(absl::string_view method,
                     const ComputeEnvironment& environment,
                     const InferenceState& state,
                     grpc::GenericCallbackServerContext* context)
    : TensorCall(method, environment, context), regions_(state.regions) {
  record_.inferences = &state.statistics;
}

absl::StatusOr<KernelRequest> InferCall::Decode(
    absl::Span<const grpc::Slice> slices, wire::MemoryMeter& meter) {
  wire::InferRequestFields fields;
  absl::Status status =
      wire::DecodeInferRequest(slices, env_.buffers, meter, &fields);
  if (fields.id.size() <= wire::kMaxInferIdBytes && IsUtf8(fields.id)) {
    id_ = fields.id;
  }
  if (!status.ok()) return status;
  NamedCaller caller;
  if (IsOnThisMachine(*context_)) {
    caller = {.regions = &regions_, .tenant = record_.tenant->id};
  }
  // A batch of B sequences has B + 1 starts.
  auto request = ToInferRequest(std::move(fields),
                                static_cast<size_t>(env_.options.max_batch) + 1,
                                env_.buffers, meter, caller);
  if (!request.ok()) return request.status();
  outputs_ = std::move(request->outputs);
  contents_ = std::move(request->contents);
  auto converted = ToKernel(std::move(request->fields), env_.buffers, meter);
  if (!converted.ok()) return OfInferRequest(converted.status());
  // Answers are raw, whatever the query was.
  converted->float_values = false;
  return converted;
}

absl::StatusOr<AttentionPlan> InferCall::Plan(const KernelRequest& request) {
  contents_.clear();
  auto plan = TensorCall::Plan(request);
  if (!plan.ok()) return OfInferRequest(plan.status());
  absl::Status status = CheckPlaces(outputs_, *plan);
  if (!status.ok()) return status;
  return plan;
}

bool InferCall::DecodesLittle() const {
  return !regions_.HasAny(record_.tenant->id);
}

absl::StatusOr<wire::MessageWriter> InferCall::Encode(
    ResponseEncoder& encoder) {
  wire::MessageWriter answer = StartInferAnswer(id_);
  absl::Status status = AddOutputs(encoder, outputs_, answer);
  if (!status.ok()) return status;
  return answer;
}

void InferCall::ForgetInference() {
  ForgetMessage();
  id_.clear();
  outputs_.clear();
  contents_.clear();
}

grpc::ServerGenericBidiReactor* StartInferCall(
    const ComputeEnvironment& environment, const InferenceState& state,
    grpc::GenericCallbackServerContext* context) {
  auto* call = new InferCall("ModelInfer", environment, state, context);
  call->Start();
  return call;
}

}  // namespace attention::server
