#include "benchmarks/rpc/generated_client.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <vector>

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

void GeneratedClient::Call(const ComputeRequest& request) const {
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
  const auto* begin =
      reinterpret_cast<const std::byte*>(answer.output().data().data());
  const std::vector<std::byte> output(begin,
                                      begin + answer.output().data().size());
  if (status.ok() && output.size() == request.query.bytes.size()) return;
  std::fprintf(stderr, "generated client: %s\n",
               status.error_message().c_str());
  std::exit(1);
}

}  // namespace attention::benchmarks
