// Calls whose messages are bytes: for malformed requests, and for health and
// streams, one step at a time.
#ifndef ATTENTION_TESTS_SUPPORT_RAW_CALL_H_
#define ATTENTION_TESTS_SUPPORT_RAW_CALL_H_

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "grpcpp/channel.h"
#include "grpcpp/client_context.h"
#include "grpcpp/completion_queue.h"
#include "grpcpp/generic/generic_stub.h"
#include "grpcpp/support/status.h"

namespace attention::testing {

struct RawAnswer {
  grpc::Status status;
  std::string message;
};

// Blocks until the call of `method` ("/package.Service/Method") has ended.
RawAnswer RawUnaryCall(const std::shared_ptr<grpc::Channel>& channel,
                       const std::string& method, const std::string& request,
                       std::chrono::system_clock::time_point deadline =
                           std::chrono::system_clock::time_point::max());

// A bidirectional or server-streaming call, one blocking step at a time. Not
// thread-safe.
class RawStream {
 public:
  // `announced_bytes`: what the server is told of the size of the message.
  RawStream(const std::shared_ptr<grpc::Channel>& channel,
            const std::string& method,
            std::chrono::system_clock::time_point deadline =
                std::chrono::system_clock::time_point::max(),
            std::optional<int64_t> announced_bytes = std::nullopt);
  ~RawStream();

  bool Write(const std::string& message, bool last = false);
  // Write() in two parts: returns at once; whether the message is on its way by
  // then. Nothing else until it is.
  void StartWrite(const std::string& message);
  bool WrittenWithin(std::chrono::milliseconds limit);
  // Nothing at the end of the stream.
  std::optional<std::string> Read();
  grpc::Status Finish();
  // After Finish(); empty if there is none.
  std::string Trailer(const std::string& name) const;
  void Cancel() { context_.TryCancel(); }

 private:
  bool Wait();

  grpc::GenericStub stub_;
  grpc::ClientContext context_;
  grpc::CompletionQueue queue_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> stream_;
};

// grpc.health.v1.Health. The name of a serving status, or of the error's code.
std::string HealthOf(const std::shared_ptr<grpc::Channel>& channel,
                     const std::string& service);
// A HealthCheckRequest, and the status in a HealthCheckResponse.
std::string HealthRequest(const std::string& service);
std::string ServingStatus(const std::string& response);

}  // namespace attention::testing

#endif  // ATTENTION_TESTS_SUPPORT_RAW_CALL_H_
