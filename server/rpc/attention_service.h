// The RPCs of attention.v1.AttentionService.
#ifndef ATTENTION_SERVER_RPC_ATTENTION_SERVICE_H_
#define ATTENTION_SERVER_RPC_ATTENTION_SERVICE_H_

#include "attention/v1/attention.grpc.pb.h"
#include "attention/v1/attention.pb.h"
#include "server/rpc/compute_call.h"

namespace attention::server {

// ComputeAttention is handled raw: its tensors bypass protobuf's strings.
using AttentionServiceBase =
    v1::AttentionService::WithRawCallbackMethod_ComputeAttention<
        v1::AttentionService::WithCallbackMethod_GetCapabilities<
            v1::AttentionService::Service>>;

// Thread-safe, as gRPC demands.
class AttentionService final : public AttentionServiceBase {
 public:
  explicit AttentionService(const CallEnvironment& environment);

  grpc::ServerUnaryReactor* ComputeAttention(
      grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
      grpc::ByteBuffer* response) override;

  grpc::ServerUnaryReactor* GetCapabilities(
      grpc::CallbackServerContext* context,
      const v1::GetCapabilitiesRequest* request,
      v1::GetCapabilitiesResponse* response) override;

 private:
  const CallEnvironment environment_;
  const v1::GetCapabilitiesResponse capabilities_;
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_RPC_ATTENTION_SERVICE_H_
