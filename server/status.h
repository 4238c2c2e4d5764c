// Statuses of the project as statuses of gRPC: the only place that converts.
#ifndef ATTENTION_SERVER_STATUS_H_
#define ATTENTION_SERVER_STATUS_H_

#include <cstddef>
#include <cstdint>
#include <optional>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "grpcpp/support/status.h"

namespace attention::server {

// Longer messages are cut: they travel in headers, which clients limit to 8
// KiB.
inline constexpr size_t kMaxStatusMessageBytes = 1024;

// Why a call failed, where several reasons share a code: what stands in
// google.rpc.ErrorInfo, whose domain is "attention".
enum class Reason : uint8_t {
  kNone,  // the code says it all: ErrorInfo has its name

  // What is wrong with the request.
  kMalformedMessage,  // no message, several, or one that cannot be read
  kInvalidField,      // ErrorField() names it
  kLimitExceeded,     // IsLimitError(): see GetCapabilities
  kUnknownMethod,
  kUnknownService,  // of a health check
  kModelUnknown,    // of the Open Inference Protocol
  kRegionUnknown,   // UnknownRegion()
  kSessionUnknown,  // UnknownSession()
  kSessionExists,   // with another configuration
  kLayerUnknown,    // of a session
  kLengthConflict,  // of a layer: TrueLength()
  kAppendUnderWay,  // the same append of a layer, by an earlier try
  kTokensReleased,  // of a layer: FirstToken() or LeastLength()

  // Why the server would not do it: IsRefusal().
  kHeadersTooLarge,   // above max_header_bytes
  kRequestTooLarge,   // above max_request_bytes
  kAnswerTooLarge,    // above max_response_bytes
  kMemoryBusy,        // above max_inflight_bytes together with other calls
  kMemoryTooLarge,    // above max_inflight_bytes alone
  kQueueFull,         // it would wait longer than max_queue
  kDeadlineTooClose,  // it would not end before its deadline
  kOutOfMemory,       // an allocation failed
  kSlowUpload,        // the request came more slowly than min_upload_rate
  kSlowReader,        // the answer was taken more slowly than min_answer_rate
  kIdleTooLong,       // nothing came on a stream for default_deadline
  kDraining,
  kTokenMissing,
  kTokenMalformed,
  kTokenUnknown,
  kTenantNotAllowed,  // the tenant may not do what it asks for
  kTenantTooLarge,    // above the tenant's bytes in flight alone
  kTenantBytes,       // above them together with its other calls
  kTenantWork,        // above the tenant's work per second
  kTooManyStreams,    // health watches or reflection streams
  kSessionBytes,      // above what sessions may hold
  kSessionCount,      // above their number
};

// "QUEUE_FULL"; empty for kNone.
absl::string_view ReasonName(Reason reason);

// Whether the server refused the call: the metrics tell these apart.
bool IsRefusal(Reason reason);

// `status` with a reason, and the reason of a status: of an InvalidArgument
// error without one, what is said of the field or, without a field, the
// message.
absl::Status WithReason(Reason reason, absl::Status status);
Reason ReasonOf(const absl::Status& status);

// `status` that says when to try again; and a ResourceExhausted error that
// does.
absl::Status WithRetryDelay(absl::Duration delay, absl::Status status);
absl::Status RetryLater(Reason reason, absl::string_view message,
                        absl::Duration delay);
// What RetryLater() was given; nothing for other statuses.
std::optional<absl::Duration> RetryDelay(const absl::Status& status);

// `status`, for a limit that the subject alone has, such as "tenant:a".
absl::Status WithQuota(absl::string_view subject, absl::Status status);

// A NotFound error of the field that names shared memory, which is not there
// for the caller: the same whether it was never there or is another's.
absl::Status UnknownRegion(absl::string_view field);
// The same of a session; `another`: the one that was meant has ended, and
// another one of the caller's has its id now.
absl::Status UnknownSession(absl::string_view id, bool another = false);

// The same code and text, with google.rpc details: ErrorInfo always, BadRequest
// where ErrorField() names a field, RetryInfo where WithRetryDelay() told a
// delay, QuotaFailure where WithQuota() did, ResourceInfo where
// UnknownRegion() or UnknownSession() did.
grpc::Status ToGrpcStatus(const absl::Status& status);

// "INVALID_ARGUMENT": a code's name as in gRPC's documentation.
absl::string_view CodeName(grpc::StatusCode code);

}  // namespace attention::server

#endif  // ATTENTION_SERVER_STATUS_H_
