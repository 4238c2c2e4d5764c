#include "server/http/status_json.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "base/field_error.h"
#include "server/status.h"

namespace attention::server {
namespace {

using Json = nlohmann::json;
using Headers = std::vector<std::pair<std::string, std::string>>;

TEST(StatusJsonTest, AFieldThatIsWrong) {
  const HttpResponse response =
      ErrorResponse(ToGrpcStatus(FieldError("key.shape", "got (1), wanted 2")));
  EXPECT_EQ(response.status, 400);
  EXPECT_EQ(response.content_type, "application/json");
  EXPECT_EQ(Json::parse(response.body),
            (Json{{"code", 3},
                  {"message", "key.shape: got (1), wanted 2"},
                  {"details",
                   {{{"@type", "type.googleapis.com/google.rpc.BadRequest"},
                     {"fieldViolations",
                      {{{"field", "key.shape"},
                        {"description", "got (1), wanted 2"}}}}},
                    {{"@type", "type.googleapis.com/google.rpc.ErrorInfo"},
                     {"reason", "INVALID_FIELD"},
                     {"domain", "attention"}}}}}));
}

TEST(StatusJsonTest, WhenToTryAgain) {
  const HttpResponse response = ErrorResponse(ToGrpcStatus(
      RetryLater(Reason::kQueueFull, "busy", absl::Milliseconds(1200))));
  EXPECT_EQ(response.status, 429);
  EXPECT_EQ(response.headers, (Headers{{"Retry-After", "2"}}));
  const Json details = Json::parse(response.body)["details"];
  bool told = false;
  for (const Json& detail : details) {
    told |= detail["@type"] == "type.googleapis.com/google.rpc.RetryInfo" &&
            detail["retryDelay"] == "1.200s";
  }
  EXPECT_TRUE(told) << details;
}

TEST(StatusJsonTest, ATokenIsWanted) {
  const HttpResponse response =
      ErrorResponse({grpc::StatusCode::UNAUTHENTICATED, "no token"});
  EXPECT_EQ(response.status, 401);
  EXPECT_EQ(response.headers, (Headers{{"WWW-Authenticate", "Bearer"}}));
}

TEST(StatusJsonTest, DetailsThatAreNoneAreLeftOut) {
  const HttpResponse response = ErrorResponse(
      {grpc::StatusCode::INTERNAL, "a \"quote\" and \xff", "\x1a\x02\xff\xff"});
  EXPECT_EQ(response.status, 500);
  EXPECT_EQ(Json::parse(response.body)["code"], 13);
}

TEST(StatusJsonTest, EveryCodeHasItsStatus) {
  const std::pair<grpc::StatusCode, int> cases[] = {
      {grpc::StatusCode::OK, 200},
      {grpc::StatusCode::CANCELLED, 499},
      {grpc::StatusCode::UNKNOWN, 500},
      {grpc::StatusCode::INVALID_ARGUMENT, 400},
      {grpc::StatusCode::DEADLINE_EXCEEDED, 504},
      {grpc::StatusCode::NOT_FOUND, 404},
      {grpc::StatusCode::ALREADY_EXISTS, 409},
      {grpc::StatusCode::PERMISSION_DENIED, 403},
      {grpc::StatusCode::RESOURCE_EXHAUSTED, 429},
      {grpc::StatusCode::FAILED_PRECONDITION, 400},
      {grpc::StatusCode::ABORTED, 409},
      {grpc::StatusCode::OUT_OF_RANGE, 400},
      {grpc::StatusCode::UNIMPLEMENTED, 501},
      {grpc::StatusCode::INTERNAL, 500},
      {grpc::StatusCode::UNAVAILABLE, 503},
      {grpc::StatusCode::DATA_LOSS, 500},
      {grpc::StatusCode::UNAUTHENTICATED, 401}};
  for (const auto& [code, status] : cases) {
    EXPECT_EQ(HttpStatusOf(code), status) << code;
  }
}

}  // namespace
}  // namespace attention::server
