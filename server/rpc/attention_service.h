// The RPCs of attention.v1.AttentionService.
#ifndef ATTENTION_SERVER_RPC_ATTENTION_SERVICE_H_
#define ATTENTION_SERVER_RPC_ATTENTION_SERVICE_H_

#include "attention/v1/attention.pb.h"
#include "server/rpc/compute_call.h"
#include "server/rpc/streamed_service.h"

namespace attention::server {

// MUST outlive every call.
class AttentionService {
 public:
  explicit AttentionService(const ComputeEnvironment& environment);

  void AddTo(StreamedService& service) const;

 private:
  const ComputeEnvironment environment_;
  const v1::GetCapabilitiesResponse capabilities_;
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_RPC_ATTENTION_SERVICE_H_
