// Every method of the server. gRPC hands its calls over as streams of raw
// messages, of which nothing has been read.
#ifndef ATTENTION_SERVER_RPC_STREAMED_SERVICE_H_
#define ATTENTION_SERVER_RPC_STREAMED_SERVICE_H_

#include <atomic>
#include <functional>
#include <string>
#include <unordered_map>

#include "grpcpp/generic/async_generic_service.h"
#include "server/rpc/call_environment.h"

namespace attention::server {

// Hands calls on to those who serve their methods; those of unknown methods get
// UNIMPLEMENTED. Thread-safe once the server runs, as gRPC demands.
class StreamedService final : public grpc::CallbackGenericService {
 public:
  // Begins a call, and returns the reactor that gRPC wants for it.
  using Starter = std::function<grpc::ServerGenericBidiReactor*(
      grpc::GenericCallbackServerContext*)>;

  explicit StreamedService(const CallEnvironment& environment);

  // `path`: "/package.Service/Method". Before the server runs.
  void Add(const std::string& path, Starter starter);

  const CallEnvironment& environment() const { return environment_; }

  grpc::ServerGenericBidiReactor* CreateReactor(
      grpc::GenericCallbackServerContext* context) override;

 private:
  const CallEnvironment environment_;
  std::unordered_map<std::string, Starter> starters_;
  // Read before the first call is taken: ThreadSanitizer does not see how gRPC
  // orders its start.
  std::atomic<bool> made_{false};
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_RPC_STREAMED_SERVICE_H_
