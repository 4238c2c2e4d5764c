// A gRPC server in the test's own process that serves what the test adds.
#ifndef ATTENTION_TESTS_SUPPORT_STREAMED_SERVER_H_
#define ATTENTION_TESTS_SUPPORT_STREAMED_SERVER_H_

#include <spdlog/logger.h>

#include <chrono>
#include <functional>
#include <memory>

#include "grpcpp/channel.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "grpcpp/support/channel_arguments.h"
#include "server/rpc/streamed_service.h"

namespace attention::testing {

// Everybody may call. Serves while it lives.
class StreamedServer {
 public:
  // `add` gives the service its methods; what serves them must outlive this.
  explicit StreamedServer(
      const std::function<void(server::StreamedService&)>& add) {
    add(service_);
    grpc::ServerBuilder builder;
    builder.RegisterCallbackGenericService(&service_);
    server_ = builder.BuildAndStart();
  }
  ~StreamedServer() { server_->Shutdown(std::chrono::system_clock::now()); }

  // MUST be destroyed before this.
  std::shared_ptr<grpc::Channel> Channel() {
    return server_->InProcessChannel(grpc::ChannelArguments());
  }

 private:
  const server::Options options_;
  const server::Authenticator authenticator_{/*open_health=*/true};
  server::ConnectionTable connections_;
  spdlog::logger log_{"none"};
  server::LogLimiter log_limiter_{log_, /*lines_per_second=*/0};
  server::Metrics metrics_{server::BuildInfo{}};
  server::StreamedService service_{
      {options_, authenticator_, connections_, log_, log_limiter_, metrics_}};
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace attention::testing

#endif  // ATTENTION_TESTS_SUPPORT_STREAMED_SERVER_H_
