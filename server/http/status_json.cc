#include "server/http/status_json.h"

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "attention/details/v1/details.pb.h"
#include "google/protobuf/util/json_util.h"
#include "server/status.h"

namespace attention::server {
namespace {

using Json = nlohmann::ordered_json;

constexpr char kTypePrefix[] = "type.googleapis.com/google.rpc.";

// The message of details.proto that is the same as that of google.rpc; null if
// there is none.
std::unique_ptr<google::protobuf::Message> DetailOf(absl::string_view name) {
  if (name == "BadRequest") return std::make_unique<details::v1::BadRequest>();
  if (name == "ErrorInfo") return std::make_unique<details::v1::ErrorInfo>();
  if (name == "RetryInfo") return std::make_unique<details::v1::RetryInfo>();
  if (name == "QuotaFailure") {
    return std::make_unique<details::v1::QuotaFailure>();
  }
  if (name == "ResourceInfo") {
    return std::make_unique<details::v1::ResourceInfo>();
  }
  return nullptr;
}

std::optional<Json> DetailJson(const google::protobuf::Any& any) {
  absl::string_view name = any.type_url();
  if (!absl::ConsumePrefix(&name, kTypePrefix)) return std::nullopt;
  const auto message = DetailOf(name);
  std::string text;
  if (message == nullptr || !message->ParseFromString(any.value()) ||
      !google::protobuf::util::MessageToJsonString(*message, &text).ok()) {
    return std::nullopt;
  }
  Json json = {{"@type", any.type_url()}};
  json.update(Json::parse(text));
  return json;
}

// In whole seconds, at least one; nothing if no time is told.
std::optional<int64_t> RetryAfter(const details::v1::Status& status) {
  for (const google::protobuf::Any& any : status.details()) {
    details::v1::RetryInfo info;
    if (any.type_url() != absl::StrCat(kTypePrefix, "RetryInfo") ||
        !info.ParseFromString(any.value())) {
      continue;
    }
    const int64_t seconds = info.retry_delay().seconds();
    return std::max<int64_t>(1, seconds + (info.retry_delay().nanos() > 0));
  }
  return std::nullopt;
}

// Whether the same request would be refused again, for its size.
bool IsTooLarge(const details::v1::Status& status) {
  for (const google::protobuf::Any& any : status.details()) {
    details::v1::ErrorInfo info;
    if (any.type_url() != absl::StrCat(kTypePrefix, "ErrorInfo") ||
        !info.ParseFromString(any.value())) {
      continue;
    }
    for (Reason reason : {Reason::kRequestTooLarge, Reason::kAnswerTooLarge,
                          Reason::kMemoryTooLarge, Reason::kTenantTooLarge}) {
      if (info.reason() == ReasonName(reason)) return true;
    }
  }
  return false;
}

}  // namespace

int HttpStatusOf(grpc::StatusCode code) {
  switch (code) {
    case grpc::StatusCode::OK:
      return 200;
    case grpc::StatusCode::INVALID_ARGUMENT:
    case grpc::StatusCode::FAILED_PRECONDITION:
    case grpc::StatusCode::OUT_OF_RANGE:
      return 400;
    case grpc::StatusCode::UNAUTHENTICATED:
      return 401;
    case grpc::StatusCode::PERMISSION_DENIED:
      return 403;
    case grpc::StatusCode::NOT_FOUND:
      return 404;
    case grpc::StatusCode::ABORTED:
    case grpc::StatusCode::ALREADY_EXISTS:
      return 409;
    case grpc::StatusCode::RESOURCE_EXHAUSTED:
      return 429;
    case grpc::StatusCode::CANCELLED:
      return 499;
    case grpc::StatusCode::UNIMPLEMENTED:
      return 501;
    case grpc::StatusCode::UNAVAILABLE:
      return 503;
    case grpc::StatusCode::DEADLINE_EXCEEDED:
      return 504;
    default:
      return 500;
  }
}

HttpResponse ErrorResponse(int http_status, absl::string_view message) {
  grpc::StatusCode code = grpc::StatusCode::INVALID_ARGUMENT;
  if (http_status == 404) code = grpc::StatusCode::NOT_FOUND;
  if (http_status == 413) code = grpc::StatusCode::RESOURCE_EXHAUSTED;
  if (http_status == 405) code = grpc::StatusCode::UNIMPLEMENTED;
  if (http_status == 503) code = grpc::StatusCode::UNAVAILABLE;
  HttpResponse response = ErrorResponse({code, std::string(message)});
  response.status = http_status;
  return response;
}

HttpResponse ErrorResponse(const grpc::Status& status) {
  Json json = {{"code", static_cast<int>(status.error_code())},
               {"message", status.error_message()}};
  details::v1::Status details;
  if (!details.ParseFromString(status.error_details())) details.Clear();
  for (const google::protobuf::Any& any : details.details()) {
    if (auto detail = DetailJson(any)) json["details"].push_back(*detail);
  }
  HttpResponse response;
  response.status =
      IsTooLarge(details) ? 413 : HttpStatusOf(status.error_code());
  response.content_type = "application/json";
  response.body = absl::StrCat(
      json.dump(-1, ' ', false, Json::error_handler_t::replace), "\n");
  if (const auto seconds = RetryAfter(details)) {
    response.headers.emplace_back("Retry-After", absl::StrCat(*seconds));
  }
  if (response.status == 401) {
    response.headers.emplace_back("WWW-Authenticate", "Bearer");
  }
  return response;
}

}  // namespace attention::server
