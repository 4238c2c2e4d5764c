// One inference of the Open Inference Protocol: ModelInfer, and what
// ModelStreamInfer does with each message.
#ifndef ATTENTION_SERVER_RPC_INFER_CALL_H_
#define ATTENTION_SERVER_RPC_INFER_CALL_H_

#include <deque>
#include <string>

#include "absl/container/inlined_vector.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "grpcpp/generic/async_generic_service.h"
#include "grpcpp/support/slice.h"
#include "server/inference/statistics.h"
#include "server/rpc/call_environment.h"
#include "server/rpc/tensor_call.h"

namespace attention::server {

// ModelInfer. `statistics` must outlive the call.
class InferCall : public TensorCall {
 public:
  InferCall(absl::string_view method, const ComputeEnvironment& environment,
            InferenceStatistics& statistics,
            grpc::GenericCallbackServerContext* context);

 protected:
  // Of the message that is worked on, as far as it has been read.
  const std::string& id() const { return id_; }
  // Likewise; nothing of a message is left.
  void ForgetInference();

  wire::MessageWriter Encode(ResponseEncoder& encoder) override;

 private:
  absl::StatusOr<KernelRequest> Decode(absl::Span<const grpc::Slice> slices,
                                       wire::MemoryMeter& meter) override;
  absl::StatusOr<AttentionPlan> Plan(const KernelRequest& request) override;

  std::string id_;
  absl::InlinedVector<int, 5> outputs_;
  // Elements that came as numbers, until they have been copied.
  std::deque<grpc::Slice> contents_;
};

// As StartComputeCall().
grpc::ServerGenericBidiReactor* StartInferCall(
    const ComputeEnvironment& environment, InferenceStatistics& statistics,
    grpc::GenericCallbackServerContext* context);

}  // namespace attention::server

#endif  // ATTENTION_SERVER_RPC_INFER_CALL_H_
