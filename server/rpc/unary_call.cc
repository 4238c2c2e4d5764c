#include "server/rpc/unary_call.h"

#include "server/rpc/call_end.h"

namespace attention::server {

void UnaryCall::Received(const grpc::ByteBuffer& message) {
  if (request_) return Fail(WrongNumberOfMessages("more than one"));
  request_ = message;
  ReadNext();
}

void UnaryCall::NoMore() {
  if (!request_) return Fail(WrongNumberOfMessages("none"));
  const absl::StatusOr<grpc::ByteBuffer> answer = handler_(*request_, tenant());
  if (!answer.ok()) return Fail(answer.status());
  EndWith(*answer);
}

}  // namespace attention::server
