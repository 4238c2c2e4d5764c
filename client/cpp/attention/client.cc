#include "attention/client.h"

#include <google/protobuf/wrappers.pb.h>
#include <grpcpp/client_context.h>
#include <grpcpp/generic/generic_stub.h>

#include <future>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "attention/internal/compute_messages.h"
#include "attention/internal/unary_call.h"

namespace attention {
namespace {

constexpr char kComputeMethod[] =
    "/attention.v1.AttentionService/ComputeAttention";

// Rejects what protobuf could not send before anything is copied.
absl::Status CheckSize(const ComputeRequest& request) {
  uint64_t bytes = 0;
  const auto add = [&](const TensorSpan& tensor) {
    bytes += tensor.bytes.size();
  };
  for (const TensorSpan* tensor :
       {&request.query, &request.key, &request.value}) {
    add(*tensor);
  }
  for (const auto* tensor :
       {&request.mask, &request.past_key, &request.past_value}) {
    if (tensor->has_value()) add(**tensor);
  }
  // What the small fields take: lengths and slopes grow with the batch only.
  constexpr uint64_t kSmallFields = 1 << 20;
  constexpr uint64_t kLargest = std::numeric_limits<int32_t>::max();
  if (bytes <= kLargest - kSmallFields) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("the tensors take ", bytes,
                   " bytes, more than a message can hold (2 GiB): split the "
                   "request by batch or head"));
}

// The call that sends the request in one message.
internal::UnaryCall MakeCall(const ComputeRequest& request) {
  internal::UnaryCall call;
  call.method = kComputeMethod;
  call.message = internal::EncodeRequest(request, call.lease);
  call.message_bytes = call.message.Length();
  return call;
}

absl::StatusOr<ComputeResult> ResultOf(const Connection& connection,
                                       const internal::UnaryAnswer& answer,
                                       const ComputeOutputs& outputs) {
  if (!answer.status.ok()) return connection.Explain(answer.status);
  return internal::DecodeResponse(answer.message, outputs);
}

}  // namespace

Client::Client(const std::string& target, const ClientOptions& options)
    : Client(Connection::Make(target, options)) {}

Client::Client(Connection connection)
    : Client(absl::StatusOr<Connection>(std::move(connection))) {}

Client::Client(std::shared_ptr<grpc::Channel> channel)
    : Client(Connection(std::move(channel))) {}

Client::Client(absl::StatusOr<Connection> connection)
    : connection_(std::move(connection)) {
  if (!connection_.ok()) return;
  stub_ = v1::AttentionService::NewStub(connection_->channel());
}

absl::StatusOr<ComputeResult> Client::Compute(
    const ComputeRequest& request, const CallOptions& options) const {
  if (!connection_.ok()) return connection_.status();
  if (absl::Status status = CheckSize(request); !status.ok()) return status;
  internal::UnaryCall call = MakeCall(request);
  return ResultOf(*connection_, internal::RunUnary(*connection_, options, call),
                  request.outputs);
}

void Client::ComputeAsync(
    const ComputeRequest& request, const CallOptions& options,
    std::function<void(absl::StatusOr<ComputeResult>)> done) const {
  if (!connection_.ok()) return done(connection_.status());
  if (absl::Status status = CheckSize(request); !status.ok()) {
    return done(status);
  }
  // The client may be gone when the answer comes.
  internal::StartUnary(
      *connection_, options, MakeCall(request),
      [connection = *connection_, outputs = request.outputs,
       done = std::move(done)](const internal::UnaryAnswer& answer) {
        done(ResultOf(connection, answer, outputs));
      });
}

std::future<absl::StatusOr<ComputeResult>> Client::ComputeAsync(
    const ComputeRequest& request, const CallOptions& options) const {
  const auto promise =
      std::make_shared<std::promise<absl::StatusOr<ComputeResult>>>();
  ComputeAsync(request, options, [promise](auto result) {
    promise->set_value(std::move(result));
  });
  return promise->get_future();
}

absl::StatusOr<v1::GetCapabilitiesResponse> Client::GetCapabilities(
    const CallOptions& options) const {
  if (!connection_.ok()) return connection_.status();
  grpc::ClientContext context;
  internal::Prepare(*connection_, options, context);
  v1::GetCapabilitiesResponse response;
  const grpc::Status status = stub_->GetCapabilities(&context, {}, &response);
  if (!status.ok()) return connection_->Explain(status);
  return response;
}

absl::StatusOr<Health> Client::CheckHealth(const std::string& service,
                                           const CallOptions& options) const {
  if (!connection_.ok()) return connection_.status();
  // gRPC's C++ library ships no stub of grpc.health.v1.Health. Its request has
  // one string and its response one enum, both field 1: on the wire these are
  // StringValue and Int32Value.
  google::protobuf::StringValue request;
  request.set_value(service);
  google::protobuf::Int32Value response;
  grpc::ClientContext context;
  internal::Prepare(*connection_, options, context);
  grpc::TemplatedGenericStub<google::protobuf::StringValue,
                             google::protobuf::Int32Value>
      stub(connection_->channel());
  // Shared: the callback may still be inside it when the wait is over.
  const auto done = std::make_shared<std::promise<grpc::Status>>();
  std::future<grpc::Status> answered = done->get_future();
  stub.UnaryCall(&context, "/grpc.health.v1.Health/Check", grpc::StubOptions(),
                 &request, &response, [done](grpc::Status status) {
                   done->set_value(std::move(status));
                 });
  const grpc::Status status = answered.get();
  if (!status.ok()) return connection_->Explain(status);
  switch (response.value()) {
    case 1:
      return Health::kServing;
    case 2:
      return Health::kNotServing;
    default:
      return Health::kUnknown;
  }
}

}  // namespace attention
