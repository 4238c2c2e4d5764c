// Calls that are answered at once, by one message for one message.
#ifndef ATTENTION_SERVER_RPC_UNARY_CALL_H_
#define ATTENTION_SERVER_RPC_UNARY_CALL_H_

#include <functional>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>

#include "absl/status/statusor.h"
#include "server/auth/tenant.h"
#include "server/rpc/raw_call.h"
#include "server/rpc/streamed_service.h"

namespace attention::server {

// Answers when the client has sent all: only so is it known that there is no
// second message.
class UnaryCall final : public RawCall {
 public:
  using Handler = std::function<absl::StatusOr<grpc::ByteBuffer>(
      const grpc::ByteBuffer&, const TenantPtr&)>;

  // `handler` must outlive the call.
  UnaryCall(const CallEnvironment& environment, const RawMethod& method,
            grpc::GenericCallbackServerContext* context, const Handler& handler)
      : RawCall(environment, method, context), handler_(handler) {}

 private:
  void Received(const grpc::ByteBuffer& message) override;
  void NoMore() override;

  const Handler& handler_;
  std::optional<grpc::ByteBuffer> request_;
};

// Serves `path` by `handle`, which takes a Request, and the caller's Tenant if
// it likes, and returns an absl::StatusOr of a message. Thread-safe, as gRPC
// demands. The tenant is known to methods that are for tenants only.
template <typename Request, typename Handle>
void AddUnary(StreamedService& service, const std::string& path,
              const RawMethod& method, Handle handle) {
  UnaryCall::Handler handler =
      [handle = std::move(handle)](
          const grpc::ByteBuffer& bytes,
          const TenantPtr& tenant) -> absl::StatusOr<grpc::ByteBuffer> {
    Request request;
    absl::Status status = ParseMessage(bytes, &request);
    if (!status.ok()) return status;
    const auto respond = [&] {
      if constexpr (std::is_invocable_v<Handle, Request, Tenant>) {
        return handle(request, *tenant);
      } else {
        return handle(request);
      }
    };
    const auto response = respond();
    if (!response.ok()) return response.status();
    return MessageBytes(*response);
  };
  service.Add(path, [&environment = service.environment(), method,
                     handler = std::move(handler)](
                        grpc::GenericCallbackServerContext* context) {
    return StartRawCall<UnaryCall>(environment, method, context, handler);
  });
}

}  // namespace attention::server

#endif  // ATTENTION_SERVER_RPC_UNARY_CALL_H_
