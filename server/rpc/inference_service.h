// The RPCs of inference.GRPCInferenceService, the Open Inference Protocol.
#ifndef ATTENTION_SERVER_RPC_INFERENCE_SERVICE_H_
#define ATTENTION_SERVER_RPC_INFERENCE_SERVICE_H_

#include <atomic>

#include "server/inference/statistics.h"
#include "server/rpc/call_environment.h"
#include "server/rpc/streamed_service.h"
#include "server/shared_memory/named_regions.h"

namespace attention::server {

// Thread-safe. What it is given must outlive every call, and so must this.
class InferenceService {
 public:
  // `ready`: whether the server takes calls.
  InferenceService(const ComputeEnvironment& environment,
                   const std::atomic<bool>& ready)
      : environment_(environment),
        ready_(ready),
        regions_(!environment.options.shared_memory.empty()) {}

  void AddTo(StreamedService& service);

 private:
  void AddHealth(StreamedService& service);
  void AddDescriptions(StreamedService& service);
  void AddSharedMemory(StreamedService& service);

  const ComputeEnvironment environment_;
  const std::atomic<bool>& ready_;
  InferenceStatistics statistics_;
  NamedRegions regions_;
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_RPC_INFERENCE_SERVICE_H_
