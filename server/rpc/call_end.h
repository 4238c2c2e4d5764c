// How calls of every kind end.
#ifndef ATTENTION_SERVER_RPC_CALL_END_H_
#define ATTENTION_SERVER_RPC_CALL_END_H_

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/status.h"
#include "server/rpc/call_environment.h"
#include "server/rpc/call_record.h"

namespace attention::server {

// Logs and counts the end of a call, once for each, and adds what the client is
// told beside the status to its trailers. Returns the status for gRPC, without
// words where there is no memory for them.
grpc::Status EndCall(const absl::Status& status, const CallRecord& record,
                     const CallEnvironment& environment,
                     grpc::CallbackServerContext& context);

// Of a unary call that has "none" or "more than one".
absl::Status WrongNumberOfMessages(absl::string_view got);

}  // namespace attention::server

#endif  // ATTENTION_SERVER_RPC_CALL_END_H_
