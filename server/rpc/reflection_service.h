// grpc.reflection: tells tools what the server can be asked. Of our own because
// that of gRPC 1.51 knows v1alpha alone and holds a thread per stream.
#ifndef ATTENTION_SERVER_RPC_REFLECTION_SERVICE_H_
#define ATTENTION_SERVER_RPC_REFLECTION_SERVICE_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "grpc/reflection/v1/reflection.pb.h"
#include "grpcpp/server_builder.h"
#include "server/auth/authenticator.h"
#include "server/rpc/described_protos.h"

namespace attention::server {

// The answer to one request of a stream.
grpc::reflection::v1::ServerReflectionResponse Reflect(
    const DescribedProtos& protos,
    const grpc::reflection::v1::ServerReflectionRequest& request);

// v1 and v1alpha, whose messages are the same. Thread-safe. No stream holds a
// thread; each holds one request or one answer at a time. MUST outlive every
// call.
class ReflectionService {
 public:
  // Streams at once, of both versions together; one more gets
  // RESOURCE_EXHAUSTED.
  static constexpr int kMaxStreams = 1000;
  // A larger request ends its stream with RESOURCE_EXHAUSTED.
  static constexpr int64_t kMaxRequestBytes = 65536;

  // Lists the services of `files`, and reflection itself. `authenticator` says
  // who may ask.
  ReflectionService(std::vector<const google::protobuf::FileDescriptor*> files,
                    const Authenticator& authenticator,
                    int max_streams = kMaxStreams);
  ~ReflectionService();

  void Register(grpc::ServerBuilder& builder);

 private:
  using Reactor = grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>;
  class Stream;
  template <typename Service>
  class Version;

  // Of either version.
  Reactor* Start(grpc::CallbackServerContext& context);

  const DescribedProtos protos_;
  const Authenticator& authenticator_;
  const int max_streams_;
  std::atomic<int> streams_{0};
  const std::unique_ptr<grpc::Service> v1_;
  const std::unique_ptr<grpc::Service> v1alpha_;
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_RPC_REFLECTION_SERVICE_H_
