// The methods whose messages are handled as raw streams.
#ifndef ATTENTION_SERVER_RPC_STREAMED_SERVICE_H_
#define ATTENTION_SERVER_RPC_STREAMED_SERVICE_H_

#include "grpcpp/generic/async_generic_service.h"
#include "server/rpc/compute_call.h"

namespace attention::server {

// gRPC hands the calls of every method that is not registered elsewhere to it;
// unknown ones get UNIMPLEMENTED. Thread-safe, as gRPC demands.
class StreamedService final : public grpc::CallbackGenericService {
 public:
  explicit StreamedService(const CallEnvironment& environment)
      : environment_(environment) {}

  grpc::ServerGenericBidiReactor* CreateReactor(
      grpc::GenericCallbackServerContext* context) override;

 private:
  const CallEnvironment environment_;
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_RPC_STREAMED_SERVICE_H_
