#include "benchmarks/rpc/generated_client.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>

#include <cstddef>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace attention::benchmarks {
namespace {

void Copy(const TensorSpan& tensor, v1::Tensor* message) {
  message->set_data_type(tensor.type);
  message->mutable_shape()->Assign(tensor.shape.begin(), tensor.shape.end());
  message->set_data(tensor.bytes.data(), tensor.bytes.size());
}

std::unique_ptr<v1::AttentionService::Stub> Connect(
    const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  return v1::AttentionService::NewStub(grpc::CreateCustomChannel(
      address, grpc::InsecureChannelCredentials(), arguments));
}

}  // namespace

GeneratedClient::GeneratedClient(const std::string& address)
    : stub_(Connect(address)) {}

absl::StatusOr<Tensor> GeneratedClient::Call(
    const ComputeRequest& request) const {
  v1::ComputeAttentionRequest message;
  Copy(request.query, message.mutable_query());
  Copy(request.key, message.mutable_key());
  Copy(request.value, message.mutable_value());
  *message.mutable_options() = request.options;
  grpc::ClientContext context;
  context.AddMetadata(kRequestBytesHeader,
                      absl::StrCat(message.ByteSizeLong()));
  v1::ComputeAttentionResponse answer;
  const grpc::Status status =
      stub_->ComputeAttention(&context, message, &answer);
  if (!status.ok()) return absl::UnavailableError(status.error_message());
  const v1::Tensor& output = answer.output();
  const auto* begin = reinterpret_cast<const std::byte*>(output.data().data());
  std::optional<Tensor> found = Tensor::FromBytes(
      output.data_type(), {begin, begin + output.data().size()},
      {output.shape().begin(), output.shape().end()});
  if (!found) return absl::InternalError("output: its bytes do not fit");
  return *std::move(found);
}

}  // namespace attention::benchmarks
