#include "attention/status.h"

#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/string_view.h"
#include "absl/types/optional.h"
#include "attention/details/v1/details.pb.h"

namespace attention {
namespace {

constexpr char kBadRequest[] = "type.googleapis.com/google.rpc.BadRequest";
constexpr char kErrorInfo[] = "type.googleapis.com/google.rpc.ErrorInfo";
constexpr char kErrorDomain[] = "attention";
constexpr char kRetryInfo[] = "type.googleapis.com/google.rpc.RetryInfo";
constexpr char kPushback[] = "grpc-retry-pushback-ms";

template <typename Message>
std::optional<Message> Detail(const absl::Status& status, const char* url) {
  const absl::optional<absl::Cord> payload = status.GetPayload(url);
  Message message;
  if (!payload || !message.ParseFromString(std::string(*payload))) {
    return std::nullopt;
  }
  return message;
}

// The milliseconds of the trailer; -1 if it holds none. Nothing: no trailer.
std::optional<int64_t> PushbackMs(const absl::Status& status) {
  const absl::optional<absl::Cord> payload = status.GetPayload(kPushback);
  if (!payload) return std::nullopt;
  int64_t milliseconds;
  return absl::SimpleAtoi(std::string(*payload), &milliseconds) ? milliseconds
                                                                : -1;
}

// Why gRPC's library ended a call by itself. It tells by words only; what came
// from the server has a reason of the server.
std::string LocalReason(const absl::Status& status) {
  if (!absl::IsResourceExhausted(status)) return "";
  if (absl::StrContains(status.message(), "message larger than max")) {
    return "CLIENT_LIMIT";
  }
  if (absl::StrContains(status.message(), "metadata size exceeds")) {
    return "HEADERS_TOO_LARGE";
  }
  return "";
}

}  // namespace

std::vector<FieldViolation> FieldViolations(const absl::Status& status) {
  std::vector<FieldViolation> violations;
  const auto detail = Detail<details::v1::BadRequest>(status, kBadRequest);
  if (!detail) return violations;
  for (const auto& violation : detail->field_violations()) {
    violations.push_back({violation.field(), violation.description()});
  }
  return violations;
}

std::string ErrorReason(const absl::Status& status) {
  const auto detail = Detail<details::v1::ErrorInfo>(status, kErrorInfo);
  if (!detail) return LocalReason(status);
  // A proxy's reasons are not the server's.
  return detail->domain() == kErrorDomain ? detail->reason() : "";
}

std::optional<absl::Duration> RetryDelay(const absl::Status& status) {
  if (const std::optional<int64_t> pushback = PushbackMs(status)) {
    if (*pushback < 0) return std::nullopt;
    return absl::Milliseconds(*pushback);
  }
  const auto detail = Detail<details::v1::RetryInfo>(status, kRetryInfo);
  if (!detail || !detail->has_retry_delay()) return std::nullopt;
  // What protobuf does not allow says nothing.
  constexpr int64_t kLongestSeconds = 315'576'000'000;
  const int64_t seconds = detail->retry_delay().seconds();
  const int64_t nanos = detail->retry_delay().nanos();
  if (seconds < 0 || nanos < 0 || seconds > kLongestSeconds) {
    return std::nullopt;
  }
  return absl::Seconds(seconds) + absl::Nanoseconds(nanos);
}

bool ForbidsRetry(const absl::Status& status) {
  return PushbackMs(status).value_or(0) < 0;
}

std::optional<int64_t> ConflictLength(const absl::Status& status) {
  const auto detail = Detail<details::v1::ErrorInfo>(status, kErrorInfo);
  if (!detail || detail->domain() != kErrorDomain) return std::nullopt;
  const auto found = detail->metadata().find("length");
  int64_t length;
  if (found == detail->metadata().end() ||
      !absl::SimpleAtoi(found->second, &length)) {
    return std::nullopt;
  }
  return length;
}

absl::Status FromGrpcStatus(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  // The numbers of both code enums are the canonical ones.
  absl::Status result(static_cast<absl::StatusCode>(status.error_code()),
                      status.error_message());
  details::v1::Status details;
  if (!details.ParseFromString(status.error_details())) return result;
  for (const auto& detail : details.details()) {
    result.SetPayload(detail.type_url(), absl::Cord(detail.value()));
  }
  return result;
}

absl::Status FromGrpcStatus(const grpc::Status& status,
                            const grpc::ClientContext& context) {
  absl::Status result = FromGrpcStatus(status);
  const auto& trailers = context.GetServerTrailingMetadata();
  const auto pushback = trailers.find(kPushback);
  if (result.ok() || pushback == trailers.end()) return result;
  const grpc::string_ref text = pushback->second;
  result.SetPayload(kPushback,
                    absl::Cord(absl::string_view(text.data(), text.size())));
  return result;
}

}  // namespace attention
