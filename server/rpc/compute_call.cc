#include "server/rpc/compute_call.h"

#include <cstddef>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "server/convert.h"
#include "server/rpc/tensor_call.h"
#include "wire/compute_request.h"

namespace attention::server {
namespace {

class ComputeCall final : public TensorCall {
 public:
  ComputeCall(const ComputeEnvironment& environment,
              grpc::GenericCallbackServerContext* context)
      : TensorCall("ComputeAttention", environment, context) {}

 private:
  absl::StatusOr<KernelRequest> Decode(absl::Span<const grpc::Slice> slices,
                                       wire::MemoryMeter& meter) override {
    // A batch of B sequences has B + 1 starts.
    auto fields =
        wire::DecodeRequest(slices, env_.buffers, meter,
                            static_cast<size_t>(env_.options.max_batch) + 1);
    if (!fields.ok()) return fields.status();
    return ToKernel(*std::move(fields), env_.buffers, meter,
                    {.table = &env_.regions, .tenant = record_.tenant->id});
  }
};

}  // namespace

grpc::ServerGenericBidiReactor* StartComputeCall(
    const ComputeEnvironment& environment,
    grpc::GenericCallbackServerContext* context) {
  auto* call = new ComputeCall(environment, context);
  call->Start();
  return call;
}

}  // namespace attention::server
