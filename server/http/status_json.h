// Errors as HTTP and JSON say them.
#ifndef ATTENTION_SERVER_HTTP_STATUS_JSON_H_
#define ATTENTION_SERVER_HTTP_STATUS_JSON_H_

#include "absl/strings/string_view.h"
#include "grpcpp/support/status.h"
#include "server/http/http_server.h"

namespace attention::server {

// The HTTP status that means the same: 404 for NOT_FOUND. google.rpc.Code has
// the table.
int HttpStatusOf(grpc::StatusCode code);

// The JSON of a google.rpc.Status with the details that are known here, as
// ToGrpcStatus() adds them:
//
//   {"code":3,"message":"query: ...","details":[
//     {"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":...}]}
//
// Its status is 413 where the same request would be refused again for its size.
// Retry-After is in its headers where RetryInfo is among the details, and
// WWW-Authenticate in those of 401.
HttpResponse ErrorResponse(const grpc::Status& status);

// The same with another HTTP status, for what has no gRPC code that is mapped
// to it: 405, 413, 415.
HttpResponse ErrorResponse(int http_status, absl::string_view message);

}  // namespace attention::server

#endif  // ATTENTION_SERVER_HTTP_STATUS_JSON_H_
