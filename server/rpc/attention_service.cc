#include "server/rpc/attention_service.h"

#include <string>

#include "kernel/attention.h"
#include "server/status.h"
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
  return response;
}

}  // namespace

AttentionService::AttentionService(const Options& options,
                                   const Authenticator& authenticator)
    : capabilities_(Capabilities(options)), authenticator_(authenticator) {}

grpc::ServerUnaryReactor* AttentionService::GetCapabilities(
    grpc::CallbackServerContext* context, const v1::GetCapabilitiesRequest*,
    v1::GetCapabilitiesResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const absl::Status status =
      authenticator_.Check(context->client_metadata()).status();
  if (status.ok()) *response = capabilities_;
  reactor->Finish(ToGrpcStatus(status));
  return reactor;
}

}  // namespace attention::server
