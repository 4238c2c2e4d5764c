// SessionService's calls without tensors, and what those with tensors share.
#ifndef ATTENTION_INTERNAL_SESSION_CALLS_H_
#define ATTENTION_INTERNAL_SESSION_CALLS_H_

#include <google/protobuf/message_lite.h>
#include <grpcpp/support/byte_buffer.h>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "attention/client.h"
#include "attention/connection.h"
#include "attention/internal/unary_call.h"

namespace attention::internal {

// The call of a method of SessionService, without a message.
UnaryCall CallOf(absl::string_view method);
UnaryCall CallOf(absl::string_view method,
                 const google::protobuf::MessageLite& request);

// Whether a call ended without an answer, since its connection was lost or
// could not be made: one that is safe to do twice may be sent once more.
bool LostConnection(const absl::Status& status);

// INTERNAL if the answer is no such message.
absl::Status Parse(const grpc::ByteBuffer& answer,
                   google::protobuf::MessageLite* response);

// Makes a call; INTERNAL if the answer is malformed.
absl::Status Call(const Connection& connection, const CallOptions& options,
                  absl::string_view method,
                  const google::protobuf::MessageLite& request,
                  google::protobuf::MessageLite* response);

}  // namespace attention::internal

#endif  // ATTENTION_INTERNAL_SESSION_CALLS_H_
