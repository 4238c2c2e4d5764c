// grpc.reflection: tells tools what the server can be asked. Of our own because
// that of gRPC 1.51 knows v1alpha alone and holds a thread per stream.
#ifndef ATTENTION_SERVER_RPC_REFLECTION_SERVICE_H_
#define ATTENTION_SERVER_RPC_REFLECTION_SERVICE_H_

#include <atomic>
#include <vector>

#include "grpc/reflection/v1/reflection.pb.h"
#include "server/rpc/described_protos.h"
#include "server/rpc/streamed_service.h"

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

  // Lists the services of `files`, and reflection itself.
  explicit ReflectionService(
      std::vector<const google::protobuf::FileDescriptor*> files,
      int max_streams = kMaxStreams);

  void AddTo(StreamedService& service);

 private:
  class Stream;

  const DescribedProtos protos_;
  const int max_streams_;
  std::atomic<int> streams_{0};
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_RPC_REFLECTION_SERVICE_H_
