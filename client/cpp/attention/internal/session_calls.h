// Calls without tensors, and what those of SessionService with tensors share.
#ifndef ATTENTION_INTERNAL_SESSION_CALLS_H_
#define ATTENTION_INTERNAL_SESSION_CALLS_H_

#include <google/protobuf/message_lite.h>
#include <grpcpp/support/byte_buffer.h>

#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "attention/client.h"
#include "attention/connection.h"
#include "attention/internal/retries.h"
#include "attention/internal/unary_call.h"

namespace attention::internal {

// The call of a method, "/package.Service/Method".
UnaryCall CallOf(absl::string_view method,
                 const google::protobuf::MessageLite& request);

// "/attention.v1.SessionService/NAME".
std::string SessionMethod(absl::string_view name);

// Makes a call, which `make` gives for each try, and returns its answer.
absl::StatusOr<grpc::ByteBuffer> RunUnaryTries(
    const Connection& connection, Twice twice, const CallOptions& options,
    const std::function<UnaryCall()>& make);

// INTERNAL if the answer is no such message.
absl::Status Parse(const grpc::ByteBuffer& answer,
                   google::protobuf::MessageLite* response);

// Makes a call, tries and all; INTERNAL if the answer is malformed.
absl::Status Call(const Connection& connection, Twice twice,
                  const CallOptions& options, absl::string_view method,
                  const google::protobuf::MessageLite& request,
                  google::protobuf::MessageLite* response);

}  // namespace attention::internal

#endif  // ATTENTION_INTERNAL_SESSION_CALLS_H_
