// The methods whose messages are handled as raw streams.
#ifndef ATTENTION_SERVER_RPC_STREAMED_SERVICE_H_
#define ATTENTION_SERVER_RPC_STREAMED_SERVICE_H_

#include <atomic>

#include "grpcpp/generic/async_generic_service.h"
#include "server/rpc/call_environment.h"

namespace attention::server {

// gRPC hands the calls of every method that is not registered elsewhere to it;
// unknown ones get UNIMPLEMENTED. Thread-safe, as gRPC demands.
class StreamedService final : public grpc::CallbackGenericService {
 public:
  explicit StreamedService(const CallEnvironment& environment)
      : environment_(environment) {
    made_.store(true, std::memory_order_release);
  }

  grpc::ServerGenericBidiReactor* CreateReactor(
      grpc::GenericCallbackServerContext* context) override;

 private:
  const CallEnvironment environment_;
  // Read before the first call is taken: ThreadSanitizer does not see how gRPC
  // orders its start.
  std::atomic<bool> made_{false};
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_RPC_STREAMED_SERVICE_H_
