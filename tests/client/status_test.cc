#include "attention/status.h"

#include <gtest/gtest.h>

#include "attention/details/v1/details.pb.h"

namespace attention {
namespace {

grpc::Status WithDetails(grpc::StatusCode code, const std::string& text,
                         const details::v1::Status& details) {
  return grpc::Status(code, text, details.SerializeAsString());
}

template <typename Message>
void Add(const char* url, const Message& message,
         details::v1::Status& details) {
  google::protobuf::Any& any = *details.add_details();
  any.set_type_url(url);
  any.set_value(message.SerializeAsString());
}

TEST(FromGrpcStatus, KeepsEveryCode) {
  for (int code = 1; code <= 16; ++code) {
    const absl::Status status =
        FromGrpcStatus({static_cast<grpc::StatusCode>(code), "text"});
    EXPECT_EQ(static_cast<int>(status.code()), code);
    EXPECT_EQ(status.message(), "text");
  }
  EXPECT_TRUE(FromGrpcStatus(grpc::Status::OK).ok());
  EXPECT_EQ(FromGrpcStatus({grpc::StatusCode::NOT_FOUND, ""}).code(),
            absl::StatusCode::kNotFound);
}

TEST(FromGrpcStatus, DecodesViolationsAndRetry) {
  details::v1::BadRequest bad;
  auto* violation = bad.add_field_violations();
  violation->set_field("key.shape");
  violation->set_description("got (1), wanted (2)");
  bad.add_field_violations()->set_field("options");
  details::v1::RetryInfo retry;
  retry.mutable_retry_delay()->set_seconds(1);
  retry.mutable_retry_delay()->set_nanos(500'000'000);
  details::v1::Status details;
  Add("type.googleapis.com/google.rpc.BadRequest", bad, details);
  Add("type.googleapis.com/google.rpc.RetryInfo", retry, details);

  const absl::Status status = FromGrpcStatus(
      WithDetails(grpc::StatusCode::INVALID_ARGUMENT, "wrong", details));
  const std::vector<FieldViolation> violations = FieldViolations(status);
  ASSERT_EQ(violations.size(), 2);
  EXPECT_EQ(violations[0].field, "key.shape");
  EXPECT_EQ(violations[0].description, "got (1), wanted (2)");
  EXPECT_EQ(violations[1].field, "options");
  EXPECT_EQ(RetryDelay(status), absl::Seconds(1.5));
  EXPECT_EQ(ErrorReason(status), "");
}

TEST(FromGrpcStatus, DecodesTheReason) {
  details::v1::ErrorInfo info;
  info.set_reason("QUEUE_FULL");
  info.set_domain("attention");
  details::v1::Status details;
  Add("type.googleapis.com/google.rpc.ErrorInfo", info, details);
  EXPECT_EQ(ErrorReason(FromGrpcStatus(WithDetails(
                grpc::StatusCode::RESOURCE_EXHAUSTED, "busy", details))),
            "QUEUE_FULL");

  info.set_domain("proxy.example");
  details.Clear();
  Add("type.googleapis.com/google.rpc.ErrorInfo", info, details);
  EXPECT_EQ(ErrorReason(FromGrpcStatus(WithDetails(
                grpc::StatusCode::RESOURCE_EXHAUSTED, "busy", details))),
            "");
}

TEST(FromGrpcStatus, KeepsDetailsItDoesNotKnow) {
  details::v1::Status details;
  details.add_details()->set_type_url("type.googleapis.com/other.Detail");
  details.mutable_details(0)->set_value("bytes");
  const absl::Status status =
      FromGrpcStatus(WithDetails(grpc::StatusCode::ABORTED, "", details));
  EXPECT_EQ(status.GetPayload("type.googleapis.com/other.Detail"), "bytes");
}

TEST(FromGrpcStatus, SurvivesBrokenDetails) {
  const absl::Status status = FromGrpcStatus(
      grpc::Status(grpc::StatusCode::INTERNAL, "text", "\xff\xff\xff"));
  EXPECT_EQ(status, absl::InternalError("text"));
  EXPECT_TRUE(FieldViolations(status).empty());
  EXPECT_EQ(ErrorReason(status), "");
  EXPECT_EQ(RetryDelay(status), std::nullopt);

  details::v1::Status details;
  details.add_details()->set_type_url("type.googleapis.com/other.Detail");
  const std::string cut = details.SerializeAsString() + "\xff";
  EXPECT_EQ(FromGrpcStatus({grpc::StatusCode::INTERNAL, "text", cut}),
            absl::InternalError("text"));

  absl::Status broken = absl::InvalidArgumentError("text");
  broken.SetPayload("type.googleapis.com/google.rpc.BadRequest",
                    absl::Cord("\xff"));
  EXPECT_TRUE(FieldViolations(broken).empty());
}

}  // namespace
}  // namespace attention
