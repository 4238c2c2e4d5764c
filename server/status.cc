#include "server/status.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "attention/details/v1/details.pb.h"
#include "google/protobuf/message_lite.h"
#include "kernel/attention.h"
#include "server/utf8.h"
#include "sessions/session.h"

namespace attention::server {
namespace {

constexpr char kBadRequestUrl[] = "type.googleapis.com/google.rpc.BadRequest";
constexpr char kErrorInfoUrl[] = "type.googleapis.com/google.rpc.ErrorInfo";
constexpr char kRetryInfoUrl[] = "type.googleapis.com/google.rpc.RetryInfo";
constexpr char kQuotaFailureUrl[] =
    "type.googleapis.com/google.rpc.QuotaFailure";
constexpr char kResourceInfoUrl[] =
    "type.googleapis.com/google.rpc.ResourceInfo";
constexpr char kErrorDomain[] = "attention";
// Of our own statuses: the number of a Reason.
constexpr char kReasonUrl[] = "attention/reason";

// `text` as a proto3 string may have it, whatever a caller made it quote:
// UTF-8, with '?' for other bytes, and not too long.
std::string Capped(absl::string_view text) {
  constexpr absl::string_view kCut = "...";
  std::string capped;
  size_t fits = 0;  // so much of it, with kCut behind
  while (!text.empty()) {
    const size_t bytes = Utf8CharacterBytes(text);
    absl::StrAppend(&capped, bytes == 0 ? "?" : text.substr(0, bytes));
    text.remove_prefix(std::max<size_t>(bytes, 1));
    if (capped.size() > kMaxStatusMessageBytes) {
      return absl::StrCat(absl::string_view(capped).substr(0, fits), kCut);
    }
    if (capped.size() + kCut.size() <= kMaxStatusMessageBytes) {
      fits = capped.size();
    }
  }
  return capped;
}

void AddDetail(absl::string_view url, std::string bytes,
               details::v1::Status* status) {
  google::protobuf::Any* detail = status->add_details();
  detail->set_type_url(std::string(url));
  detail->set_value(std::move(bytes));
}

void AddBadRequest(const absl::Status& status, details::v1::Status* target) {
  const std::string field = ErrorField(status);
  if (field.empty()) return;
  absl::string_view description = status.message();
  if (absl::ConsumePrefix(&description, field)) {
    absl::ConsumePrefix(&description, ": ");
  }
  details::v1::BadRequest bad_request;
  auto* violation = bad_request.add_field_violations();
  violation->set_field(Capped(field));
  violation->set_description(Capped(description));
  AddDetail(kBadRequestUrl, bad_request.SerializeAsString(), target);
}

void AddErrorInfo(const absl::Status& status, details::v1::Status* target) {
  absl::string_view reason = ReasonName(ReasonOf(status));
  if (reason.empty()) {
    reason = CodeName(static_cast<grpc::StatusCode>(status.code()));
  }
  details::v1::ErrorInfo info;
  info.set_reason(std::string(reason));
  info.set_domain(kErrorDomain);
  const auto add = [&](const char* name, std::optional<int64_t> number) {
    if (number) (*info.mutable_metadata())[name] = absl::StrCat(*number);
  };
  add("length", TrueLength(status));
  add("first_token", FirstToken(status));
  add("least_length", LeastLength(status));
  AddDetail(kErrorInfoUrl, info.SerializeAsString(), target);
}

// A detail that the status carries as it is.
void AddPayload(const absl::Status& status, absl::string_view url,
                details::v1::Status* target) {
  const auto payload = status.GetPayload(url);
  if (!payload) return;
  AddDetail(url, std::string(*payload), target);
}

// Not Cord's constructor from std::string: clang gives it another symbol than
// the GCC that built Debian's Abseil.
void SetPayload(absl::string_view url, const std::string& bytes,
                absl::Status* status) {
  status->SetPayload(url, absl::Cord(absl::string_view(bytes)));
}

absl::Status NotFound(Reason reason, absl::string_view type,
                      absl::string_view name, absl::string_view message) {
  details::v1::ResourceInfo info;
  info.set_resource_type(std::string(type));
  info.set_resource_name(Capped(name));
  info.set_description("not known here, or not the caller's");
  absl::Status status = absl::NotFoundError(message);
  SetPayload(kResourceInfoUrl, info.SerializeAsString(), &status);
  return WithReason(reason, std::move(status));
}

// The numbers of both enums are the canonical codes.
static_assert(static_cast<int>(absl::StatusCode::kUnauthenticated) ==
              static_cast<int>(grpc::StatusCode::UNAUTHENTICATED));

}  // namespace

absl::string_view ReasonName(Reason reason) {
  switch (reason) {
    case Reason::kNone:
      return "";
    case Reason::kMalformedMessage:
      return "MALFORMED_MESSAGE";
    case Reason::kInvalidField:
      return "INVALID_FIELD";
    case Reason::kLimitExceeded:
      return "LIMIT_EXCEEDED";
    case Reason::kUnknownMethod:
      return "UNKNOWN_METHOD";
    case Reason::kUnknownService:
      return "UNKNOWN_SERVICE";
    case Reason::kModelUnknown:
      return "MODEL_UNKNOWN";
    case Reason::kRegionUnknown:
      return "REGION_UNKNOWN";
    case Reason::kSessionUnknown:
      return "SESSION_UNKNOWN";
    case Reason::kSessionExists:
      return "SESSION_EXISTS";
    case Reason::kLayerUnknown:
      return "LAYER_UNKNOWN";
    case Reason::kLengthConflict:
      return "LENGTH_CONFLICT";
    case Reason::kAppendUnderWay:
      return "APPEND_UNDER_WAY";
    case Reason::kTokensReleased:
      return "TOKENS_RELEASED";
    case Reason::kHeadersTooLarge:
      return "HEADERS_TOO_LARGE";
    case Reason::kRequestTooLarge:
      return "REQUEST_TOO_LARGE";
    case Reason::kAnswerTooLarge:
      return "ANSWER_TOO_LARGE";
    case Reason::kMemoryBusy:
      return "MEMORY_BUSY";
    case Reason::kMemoryTooLarge:
      return "MEMORY_TOO_LARGE";
    case Reason::kQueueFull:
      return "QUEUE_FULL";
    case Reason::kDeadlineTooClose:
      return "DEADLINE_TOO_CLOSE";
    case Reason::kOutOfMemory:
      return "OUT_OF_MEMORY";
    case Reason::kSlowUpload:
      return "SLOW_UPLOAD";
    case Reason::kSlowReader:
      return "SLOW_READER";
    case Reason::kIdleTooLong:
      return "IDLE_TOO_LONG";
    case Reason::kDraining:
      return "DRAINING";
    case Reason::kTokenMissing:
      return "TOKEN_MISSING";
    case Reason::kTokenMalformed:
      return "TOKEN_MALFORMED";
    case Reason::kTokenUnknown:
      return "TOKEN_UNKNOWN";
    case Reason::kTenantNotAllowed:
      return "TENANT_NOT_ALLOWED";
    case Reason::kTenantTooLarge:
      return "TENANT_TOO_LARGE";
    case Reason::kTenantBytes:
      return "TENANT_BYTES";
    case Reason::kTenantWork:
      return "TENANT_WORK";
    case Reason::kTooManyStreams:
      return "TOO_MANY_STREAMS";
    case Reason::kSessionBytes:
      return "SESSION_BYTES";
    case Reason::kSessionCount:
      return "SESSION_COUNT";
  }
  return "";
}

bool IsRefusal(Reason reason) { return reason >= Reason::kHeadersTooLarge; }

absl::Status WithReason(Reason reason, absl::Status status) {
  const char number = static_cast<char>(reason);
  status.SetPayload(kReasonUrl, absl::Cord(absl::string_view(&number, 1)));
  return status;
}

Reason ReasonOf(const absl::Status& status) {
  const auto payload = status.GetPayload(kReasonUrl);
  if (payload && !payload->empty()) return static_cast<Reason>((*payload)[0]);
  if (!absl::IsInvalidArgument(status)) return Reason::kNone;
  if (IsLimitError(status)) return Reason::kLimitExceeded;
  return ErrorField(status).empty() ? Reason::kMalformedMessage
                                    : Reason::kInvalidField;
}

absl::Status WithRetryDelay(absl::Duration delay, absl::Status status) {
  details::v1::RetryInfo info;
  const int64_t nanoseconds = absl::ToInt64Nanoseconds(delay);
  info.mutable_retry_delay()->set_seconds(nanoseconds / 1000000000);
  info.mutable_retry_delay()->set_nanos(
      static_cast<int32_t>(nanoseconds % 1000000000));
  SetPayload(kRetryInfoUrl, info.SerializeAsString(), &status);
  return status;
}

absl::Status RetryLater(Reason reason, absl::string_view message,
                        absl::Duration delay) {
  return WithReason(
      reason, WithRetryDelay(delay, absl::ResourceExhaustedError(message)));
}

std::optional<absl::Duration> RetryDelay(const absl::Status& status) {
  const auto payload = status.GetPayload(kRetryInfoUrl);
  details::v1::RetryInfo info;
  if (!payload || !info.ParseFromString(std::string(*payload))) {
    return std::nullopt;
  }
  return absl::Seconds(info.retry_delay().seconds()) +
         absl::Nanoseconds(info.retry_delay().nanos());
}

absl::Status WithQuota(absl::string_view subject, absl::Status status) {
  details::v1::QuotaFailure failure;
  auto* const violation = failure.add_violations();
  violation->set_subject(std::string(subject));
  violation->set_description(Capped(status.message()));
  SetPayload(kQuotaFailureUrl, failure.SerializeAsString(), &status);
  return status;
}

absl::Status UnknownRegion(absl::string_view field) {
  return NotFound(
      Reason::kRegionUnknown, "attention.v1.SharedMemory", field,
      absl::StrCat(field,
                   ": got a region that is not known here, wanted one that the "
                   "caller has registered and that is still there"));
}

absl::Status UnknownSession(absl::string_view id, bool another) {
  return NotFound(
      Reason::kSessionUnknown, "attention.v1.Session", id,
      another ? absl::StrCat("incarnation: the session ", id,
                             " that it names has ended: the session of this "
                             "id is another one, made since")
              : absl::StrCat("there is no session ", id));
}

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  const std::string message = Capped(status.message());
  details::v1::Status details;
  AddBadRequest(status, &details);
  AddErrorInfo(status, &details);
  AddPayload(status, kRetryInfoUrl, &details);
  AddPayload(status, kQuotaFailureUrl, &details);
  AddPayload(status, kResourceInfoUrl, &details);
  details.set_code(static_cast<int>(status.code()));
  details.set_message(message);
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), message,
                      details.SerializeAsString());
}

absl::string_view CodeName(grpc::StatusCode code) {
  switch (code) {
    case grpc::StatusCode::OK:
      return "OK";
    case grpc::StatusCode::CANCELLED:
      return "CANCELLED";
    case grpc::StatusCode::INVALID_ARGUMENT:
      return "INVALID_ARGUMENT";
    case grpc::StatusCode::DEADLINE_EXCEEDED:
      return "DEADLINE_EXCEEDED";
    case grpc::StatusCode::NOT_FOUND:
      return "NOT_FOUND";
    case grpc::StatusCode::ALREADY_EXISTS:
      return "ALREADY_EXISTS";
    case grpc::StatusCode::PERMISSION_DENIED:
      return "PERMISSION_DENIED";
    case grpc::StatusCode::RESOURCE_EXHAUSTED:
      return "RESOURCE_EXHAUSTED";
    case grpc::StatusCode::FAILED_PRECONDITION:
      return "FAILED_PRECONDITION";
    case grpc::StatusCode::ABORTED:
      return "ABORTED";
    case grpc::StatusCode::OUT_OF_RANGE:
      return "OUT_OF_RANGE";
    case grpc::StatusCode::UNIMPLEMENTED:
      return "UNIMPLEMENTED";
    case grpc::StatusCode::INTERNAL:
      return "INTERNAL";
    case grpc::StatusCode::UNAVAILABLE:
      return "UNAVAILABLE";
    case grpc::StatusCode::DATA_LOSS:
      return "DATA_LOSS";
    case grpc::StatusCode::UNAUTHENTICATED:
      return "UNAUTHENTICATED";
    default:
      return "UNKNOWN";
  }
}

}  // namespace attention::server
