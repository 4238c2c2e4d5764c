// One inference of the Open Inference Protocol: ModelInfer, and what
// ModelStreamInfer does with each message.
#ifndef ATTENTION_SERVER_RPC_INFER_CALL_H_
#define ATTENTION_SERVER_RPC_INFER_CALL_H_

#include <deque>
#include <string>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "grpcpp/generic/async_generic_service.h"
#include "grpcpp/support/slice.h"
#include "server/inference/request.h"
#include "server/inference/statistics.h"
#include "server/rpc/call_environment.h"
#include "server/rpc/tensor_call.h"
#include "server/shared_memory/named_regions.h"

namespace attention::server {

// What inferences share; must outlive them.
struct InferenceState {
  InferenceStatistics& statistics;
  const NamedRegions& regions;
};

// ModelInfer.
class InferCall : public TensorCall {
 public:
  InferCall(absl::string_view method, const ComputeEnvironment& environment,
            const InferenceState& state,
            grpc::GenericCallbackServerContext* context);

 protected:
  // Of the message that is worked on, as far as it has been read.
  const std::string& id() const { return id_; }
  // Likewise; nothing of a message is left.
  void ForgetInference();

  absl::StatusOr<wire::MessageWriter> Encode(ResponseEncoder& encoder) override;

 private:
  absl::StatusOr<KernelRequest> Decode(absl::Span<const grpc::Slice> slices,
                                       wire::MemoryMeter& meter) override;
  absl::StatusOr<AttentionPlan> Plan(const KernelRequest& request) override;
  // What a small message names in shared memory may be large.
  bool DecodesLittle() const override;

  const NamedRegions& regions_;
  std::string id_;
  InferOutputs outputs_;
  // Elements that came as numbers or from shared memory, until they have been
  // copied.
  std::deque<grpc::Slice> contents_;
};

// As StartComputeCall().
grpc::ServerGenericBidiReactor* StartInferCall(
    const ComputeEnvironment& environment, const InferenceState& state,
    grpc::GenericCallbackServerContext* context);

}  // namespace attention::server

#endif  // ATTENTION_SERVER_RPC_INFER_CALL_H_
