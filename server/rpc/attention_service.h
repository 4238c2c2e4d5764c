// The RPCs of attention.v1.AttentionService.
#ifndef ATTENTION_SERVER_RPC_ATTENTION_SERVICE_H_
#define ATTENTION_SERVER_RPC_ATTENTION_SERVICE_H_

#include "attention/v1/attention.grpc.pb.h"
#include "attention/v1/attention.pb.h"
#include "server/auth/authenticator.h"
#include "server/options.h"

namespace attention::server {

// ComputeAttention and StreamAttention are StreamedService's: marked so here
// that they are listed by reflection.
using AttentionServiceBase =
    v1::AttentionService::WithGenericMethod_ComputeAttention<
        v1::AttentionService::WithGenericMethod_StreamAttention<
            v1::AttentionService::WithCallbackMethod_GetCapabilities<
                v1::AttentionService::Service>>>;

// Thread-safe, as gRPC demands.
class AttentionService final : public AttentionServiceBase {
 public:
  // `authenticator` must outlive it.
  AttentionService(const Options& options, const Authenticator& authenticator);

  grpc::ServerUnaryReactor* GetCapabilities(
      grpc::CallbackServerContext* context,
      const v1::GetCapabilitiesRequest* request,
      v1::GetCapabilitiesResponse* response) override;

 private:
  const v1::GetCapabilitiesResponse capabilities_;
  const Authenticator& authenticator_;
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_RPC_ATTENTION_SERVICE_H_
