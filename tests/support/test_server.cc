#include "tests/support/test_server.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <iostream>
#include <thread>

#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"

namespace attention::testing {

std::string TransportName(Transport transport) {
  return transport == Transport::kLoopback ? "Loopback" : "InProcess";
}

server::Options TestServer::DefaultOptions() {
  server::Options options;
  options.listen = {"127.0.0.1:0"};
  options.threads = 2;
  options.max_request_bytes = int64_t{32} << 20;
  options.max_response_bytes = int64_t{32} << 20;
  options.max_inflight_bytes = int64_t{512} << 20;
  options.max_pooled_bytes = int64_t{32} << 20;
  options.log_level = "off";
  return options;
}

TestServer::TestServer(const server::Options& options) {
  auto server = server::Server::Start(options);
  if (!server.ok()) {
    std::cerr << server.status() << std::endl;
    std::abort();
  }
  server_ = *std::move(server);
}

std::shared_ptr<grpc::Channel> TestServer::Channel(Transport transport) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetMaxSendMessageSize(-1);
  if (transport == Transport::kInProcess) {
    return server_->InProcessChannel(arguments);
  }
  // Else channels with equal arguments share a connection.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return grpc::CreateCustomChannel(server_->addresses().front(),
                                   grpc::InsecureChannelCredentials(),
                                   arguments);
}

bool WaitUntil(const std::function<bool()>& condition) {
  const auto limit = std::chrono::steady_clock::now() + std::chrono::minutes(1);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > limit) return false;
    std::this_thread::yield();
  }
  return true;
}

}  // namespace attention::testing
