// The details that a server puts into a failed call's status.
//
// A failed call of Client gives an absl::Status with the server's code and
// text. Each google.rpc detail the server sent is a payload of it, under the
// detail's public type URL and with its serialized bytes, so that any
// googleapis package can read it; the functions below read the ones this
// service sends.
//
//   const absl::Status& status = result.status();
//   for (const attention::FieldViolation& wrong : FieldViolations(status)) {
//     std::cerr << wrong.field << ": " << wrong.description << "\n";
//   }
//   if (std::optional<absl::Duration> delay = RetryDelay(status)) {
//     absl::SleepFor(*delay);  // then try again
//   }
//   if (ErrorReason(status) == "REQUEST_TOO_LARGE") {
//     ...  // split the request: to try again is no use
//   }
//
// All functions are thread-safe and accept any status.
#ifndef ATTENTION_STATUS_H_
#define ATTENTION_STATUS_H_

#include <grpcpp/client_context.h>
#include <grpcpp/support/status.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace attention {

// One field of a request that is wrong.
struct FieldViolation {
  // Path from the request: "key.shape", "options.softcap".
  std::string field;
  // What came and what was wanted.
  std::string description;
};

// What an INVALID_ARGUMENT status names (google.rpc.BadRequest); empty if the
// status has no such detail or its bytes are not one.
std::vector<FieldViolation> FieldViolations(const absl::Status& status);

// Why the call failed, in capitals: the server's reason, such as "QUEUE_FULL"
// (google.rpc.ErrorInfo of domain "attention"), or one of gRPC's library on
// this side, "CLIENT_LIMIT" or "HEADERS_TOO_LARGE"; empty if nobody says.
// client/README.md lists the reasons; more may come.
std::string ErrorReason(const absl::Status& status);

// How long a RESOURCE_EXHAUSTED or UNAVAILABLE status asks to wait before the
// next try: by the trailer grpc-retry-pushback-ms, or without that by
// google.rpc.RetryInfo. Nothing if it does not say, or forbids another try.
std::optional<absl::Duration> RetryDelay(const absl::Status& status);

// Whether the server says, by a trailer that is negative or no whole number,
// that the call must not be tried again.
bool ForbidsRetry(const absl::Status& status);

// The length that a layer of a session has, of an ABORTED status that says the
// append expected another one; nothing of other statuses.
std::optional<int64_t> ConflictLength(const absl::Status& status);

// The absl::Status of a gRPC status: the same code, the same text, the details
// as payloads. Details that cannot be parsed are left out.
absl::Status FromGrpcStatus(const grpc::Status& status);

// The same of the call of `context`, which has ended so: the trailer
// grpc-retry-pushback-ms, if there is one, is a payload of that name.
absl::Status FromGrpcStatus(const grpc::Status& status,
                            const grpc::ClientContext& context);

}  // namespace attention

#endif  // ATTENTION_STATUS_H_
