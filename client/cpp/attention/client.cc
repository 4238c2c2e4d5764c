#include "attention/client.h"

#include <google/protobuf/wrappers.pb.h>
#include <grpcpp/client_context.h>
#include <grpcpp/generic/generic_stub.h>

#include <future>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace attention {
namespace {

void Prepare(const Connection& connection, const CallOptions& options,
             grpc::ClientContext& context) {
  connection.Authorize(context);
  if (options.timeout == absl::InfiniteDuration()) return;
  context.set_deadline(absl::ToChronoTime(absl::Now() + options.timeout));
}

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

void Encode(const TensorSpan& tensor, v1::Tensor& message) {
  message.set_data_type(tensor.type);
  message.mutable_shape()->Assign(tensor.shape.begin(), tensor.shape.end());
  message.set_data(tensor.bytes.data(), tensor.bytes.size());
}

v1::ComputeAttentionRequest Encode(const ComputeRequest& request) {
  v1::ComputeAttentionRequest message;
  Encode(request.query, *message.mutable_query());
  Encode(request.key, *message.mutable_key());
  Encode(request.value, *message.mutable_value());
  if (request.mask) Encode(*request.mask, *message.mutable_mask());
  if (request.past_key) Encode(*request.past_key, *message.mutable_past_key());
  if (request.past_value) {
    Encode(*request.past_value, *message.mutable_past_value());
  }
  message.mutable_valid_lengths()->Assign(request.valid_lengths.begin(),
                                          request.valid_lengths.end());
  message.mutable_query_starts()->Assign(request.query_starts.begin(),
                                         request.query_starts.end());
  message.mutable_key_starts()->Assign(request.key_starts.begin(),
                                       request.key_starts.end());
  *message.mutable_options() = request.options;
  return message;
}

absl::StatusOr<Tensor> Decode(const v1::Tensor& message, const char* field) {
  const auto* begin = reinterpret_cast<const std::byte*>(message.data().data());
  std::optional<Tensor> tensor = Tensor::FromBytes(
      message.data_type(), {begin, begin + message.data().size()},
      {message.shape().begin(), message.shape().end()});
  if (tensor) return *std::move(tensor);
  return absl::InternalError(
      absl::StrCat("malformed answer: ", field, " has ", message.data().size(),
                   " bytes of type ", TypeName(message.data_type()),
                   ", which do not fit its shape"));
}

absl::Status Decode(const v1::Tensor& message, const char* field, bool present,
                    std::optional<Tensor>& out) {
  if (!present) return absl::OkStatus();
  absl::StatusOr<Tensor> tensor = Decode(message, field);
  if (!tensor.ok()) return tensor.status();
  out = *std::move(tensor);
  return absl::OkStatus();
}

absl::StatusOr<ComputeResult> Decode(
    const v1::ComputeAttentionResponse& message) {
  ComputeResult result;
  absl::StatusOr<Tensor> output = Decode(message.output(), "output");
  if (!output.ok()) return output.status();
  result.output = *std::move(output);
  absl::Status status;
  status.Update(Decode(message.log_sum_exp(), "log_sum_exp",
                       message.has_log_sum_exp(), result.log_sum_exp));
  status.Update(
      Decode(message.scores(), "scores", message.has_scores(), result.scores));
  status.Update(Decode(message.present_key(), "present_key",
                       message.has_present_key(), result.present_key));
  status.Update(Decode(message.present_value(), "present_value",
                       message.has_present_value(), result.present_value));
  if (!status.ok()) return status;
  result.timing = message.timing();
  return result;
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
  grpc::ClientContext context;
  Prepare(*connection_, options, context);
  const v1::ComputeAttentionRequest message = Encode(request);
  // Adds up lengths; nothing is serialized for it.
  context.AddMetadata(kRequestBytesHeader,
                      absl::StrCat(message.ByteSizeLong()));
  v1::ComputeAttentionResponse response;
  const grpc::Status status =
      stub_->ComputeAttention(&context, message, &response);
  if (!status.ok()) return connection_->Explain(status);
  return Decode(response);
}

absl::StatusOr<v1::GetCapabilitiesResponse> Client::GetCapabilities(
    const CallOptions& options) const {
  if (!connection_.ok()) return connection_.status();
  grpc::ClientContext context;
  Prepare(*connection_, options, context);
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
  Prepare(*connection_, options, context);
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
