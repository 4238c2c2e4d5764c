#include "attention/internal/session_calls.h"

#include <grpcpp/support/slice.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "attention/internal/tensor_message.h"
#include "attention/status.h"

namespace attention::internal {

UnaryCall CallOf(absl::string_view method) {
  UnaryCall call;
  call.method = absl::StrCat("/attention.v1.SessionService/", method);
  return call;
}

UnaryCall CallOf(absl::string_view method,
                 const google::protobuf::MessageLite& request) {
  UnaryCall call = CallOf(method);
  const grpc::Slice bytes(request.SerializeAsString());
  grpc::ByteBuffer(&bytes, 1).Swap(&call.message);
  call.message_bytes = call.message.Length();
  return call;
}

bool LostConnection(const absl::Status& status) {
  return absl::IsUnavailable(status) && ErrorReason(status).empty();
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

absl::Status Call(const Connection& connection, const CallOptions& options,
                  absl::string_view method,
                  const google::protobuf::MessageLite& request,
                  google::protobuf::MessageLite* response) {
  UnaryCall call = CallOf(method, request);
  const UnaryAnswer answer = RunUnary(connection, options, call);
  if (!answer.status.ok()) return connection.Explain(answer.status);
  return Parse(answer.message, response);
}

}  // namespace attention::internal
