// refusing_server SERVER: refuses all calls but the first, at once, as gRPC
// alone can: what a refusal takes at least. The first one's answer is SERVER's,
// since `attention_client bench` looks at an answer before it begins.
#include <grpcpp/client_context.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>

#include <atomic>
#include <cstdio>
#include <string>
#include <utility>

namespace attention::benchmarks {
namespace {

class Refusal final : public grpc::ServerGenericBidiReactor {
 public:
  Refusal() { Finish({grpc::StatusCode::RESOURCE_EXHAUSTED, "busy"}); }

 private:
  void OnDone() override { delete this; }
};

class Forwarded final : public grpc::ServerGenericBidiReactor {
 public:
  Forwarded(grpc::GenericStub& stub, std::string method)
      : stub_(stub), method_(std::move(method)) {
    StartRead(&request_);
  }

 private:
  void OnReadDone(bool ok) override {
    if (!ok) return Finish(grpc::Status::CANCELLED);
    stub_.UnaryCall(&context_, method_, grpc::StubOptions(), &request_,
                    &response_, [this](const grpc::Status& status) {
                      if (!status.ok()) return Finish(status);
                      StartWriteAndFinish(&response_, grpc::WriteOptions(),
                                          grpc::Status::OK);
                    });
  }
  void OnDone() override { delete this; }

  grpc::GenericStub& stub_;
  const std::string method_;
  grpc::ClientContext context_;
  grpc::ByteBuffer request_, response_;
};

class Service final : public grpc::CallbackGenericService {
 public:
  explicit Service(grpc::GenericStub& stub) : stub_(stub) {}

 private:
  grpc::ServerGenericBidiReactor* CreateReactor(
      grpc::GenericCallbackServerContext* context) override {
    if (!answered_.exchange(true)) {
      return new Forwarded(stub_, context->method());
    }
    return new Refusal;
  }

  grpc::GenericStub& stub_;
  std::atomic<bool> answered_{false};
};

int Main(const char* address) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  grpc::GenericStub stub(grpc::CreateCustomChannel(
      address, grpc::InsecureChannelCredentials(), arguments));
  Service service(stub);
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(),
                           &port);
  builder.SetMaxReceiveMessageSize(-1);
  builder.RegisterCallbackGenericService(&service);
  const auto server = builder.BuildAndStart();
  std::printf("listening on 127.0.0.1:%d\n", port);
  std::fflush(stdout);
  server->Wait();
  return 0;
}

}  // namespace
}  // namespace attention::benchmarks

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fputs("usage: refusing_server SERVER\n", stderr);
    return 2;
  }
  return attention::benchmarks::Main(argv[1]);
}
