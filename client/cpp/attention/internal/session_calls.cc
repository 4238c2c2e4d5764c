#include "attention/internal/session_calls.h"

#include <grpcpp/support/slice.h>

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "attention/internal/tensor_message.h"

namespace attention::internal {

UnaryCall CallOf(absl::string_view method,
                 const google::protobuf::MessageLite& request) {
  UnaryCall call;
  call.method = std::string(method);
  const grpc::Slice bytes(request.SerializeAsString());
  grpc::ByteBuffer(&bytes, 1).Swap(&call.message);
  call.message_bytes = call.message.Length();
  return call;
}

std::string SessionMethod(absl::string_view name) {
  return absl::StrCat("/attention.v1.SessionService/", name);
}

absl::StatusOr<grpc::ByteBuffer> RunUnaryTries(
    const Connection& connection, Twice twice, const CallOptions& options,
    const std::function<UnaryCall()>& make) {
  using Answer = absl::StatusOr<grpc::ByteBuffer>;
  return RunTries<Answer>(
      connection, twice, options, [&](const CallOptions& left) -> Answer {
        UnaryCall call = make();
        UnaryAnswer answer = RunUnary(connection, left, call);
        if (!answer.status.ok()) return answer.status;
        return std::move(answer.message);
      });
}

absl::Status Parse(const grpc::ByteBuffer& answer,
                   google::protobuf::MessageLite* response) {
  std::vector<grpc::Slice> slices;
  static_cast<void>(answer.Dump(&slices));
  std::string bytes;
  for (const grpc::Slice& slice : slices) {
    bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  if (response->ParseFromString(bytes)) return absl::OkStatus();
  return MalformedAnswer(absl::InternalError(
      absl::StrCat("it is not a valid ", response->GetTypeName())));
}

absl::Status Call(const Connection& connection, Twice twice,
                  const CallOptions& options, absl::string_view method,
                  const google::protobuf::MessageLite& request,
                  google::protobuf::MessageLite* response) {
  const absl::StatusOr<grpc::ByteBuffer> answer = RunUnaryTries(
      connection, twice, options, [&] { return CallOf(method, request); });
  if (!answer.ok()) return answer.status();
  return Parse(*answer, response);
}

}  // namespace attention::internal
