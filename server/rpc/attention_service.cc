#include "server/rpc/attention_service.h"

#include <string>

#include "kernel/attention.h"
#include "server/rpc/compute_call.h"
#include "server/rpc/stream_call.h"
#include "server/rpc/unary_call.h"
#include "server/version.h"

namespace attention::server {
namespace {

v1::GetCapabilitiesResponse Capabilities(const Options& options) {
  v1::GetCapabilitiesResponse response;
  response.set_version(kVersion);
  response.set_simd_target(std::string(SimdTarget()));
  response.set_threads(static_cast<int32_t>(options.threads));
  for (v1::DataType type : {v1::DATA_TYPE_FLOAT32, v1::DATA_TYPE_FLOAT16,
                            v1::DATA_TYPE_BFLOAT16, v1::DATA_TYPE_FLOAT64}) {
    response.add_data_types(type);
  }
  response.add_math_modes(v1::MATH_MODE_REPRODUCIBLE);
  if (HasFastMath()) response.add_math_modes(v1::MATH_MODE_FAST);
  response.set_max_request_bytes(options.max_request_bytes);
  response.set_max_response_bytes(options.max_response_bytes);
  response.set_key_block(static_cast<int32_t>(kKeyBlock));
  response.set_max_head_size(options.max_head_size);
  response.set_max_heads(options.max_heads);
  response.set_max_batch(options.max_batch);
  response.set_max_batch_heads(options.max_batch_heads);
  response.set_max_work(options.max_work);
  response.set_max_chunk_bytes(options.max_chunk_bytes);
  response.set_shared_memory(options.shared_memory);
  return response;
}

}  // namespace

AttentionService::AttentionService(const ComputeEnvironment& environment)
    : environment_(environment),
      capabilities_(Capabilities(environment.options)) {}

void AttentionService::AddTo(StreamedService& service) const {
  service.Add("/attention.v1.AttentionService/ComputeAttention",
              [this](grpc::GenericCallbackServerContext* context) {
                return StartComputeCall(environment_, context);
              });
  service.Add("/attention.v1.AttentionService/StreamAttention",
              [this](grpc::GenericCallbackServerContext* context) {
                return StartStreamCall(environment_, context);
              });
  AddUnary<v1::GetCapabilitiesRequest>(
      service, "/attention.v1.AttentionService/GetCapabilities",
      {"GetCapabilities", Access::kTenants},
      [this](const v1::GetCapabilitiesRequest&)
          -> absl::StatusOr<v1::GetCapabilitiesResponse> {
        return capabilities_;
      });
}

}  // namespace attention::server
