#include "server/rpc/streamed_service.h"

namespace attention::server {

grpc::ServerGenericBidiReactor* StreamedService::CreateReactor(
    grpc::GenericCallbackServerContext* context) {
  made_.load(std::memory_order_acquire);
  if (context->method() == "/attention.v1.AttentionService/ComputeAttention") {
    return StartComputeCall(environment_, context);
  }
  return CallbackGenericService::CreateReactor(context);
}

}  // namespace attention::server
