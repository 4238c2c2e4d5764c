#include "server/rpc/streamed_service.h"

#include "server/rpc/compute_call.h"
#include "server/rpc/stream_call.h"

namespace attention::server {

grpc::ServerGenericBidiReactor* StreamedService::CreateReactor(
    grpc::GenericCallbackServerContext* context) {
  made_.load(std::memory_order_acquire);
  if (context->method() == "/attention.v1.AttentionService/ComputeAttention") {
    return StartComputeCall(environment_, context);
  }
  if (context->method() == "/attention.v1.AttentionService/StreamAttention") {
    return StartStreamCall(environment_, context);
  }
  return CallbackGenericService::CreateReactor(context);
}

}  // namespace attention::server
