#include "server/status.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "kernel/attention.h"
#include "tests/support/messages.h"

namespace attention::server {
namespace {

using attention::testing::Details;
using attention::testing::DetailsOf;

class EveryCodeTest : public ::testing::TestWithParam<int> {};

TEST_P(EveryCodeTest, KeepsCodeAndText) {
  const auto code = static_cast<absl::StatusCode>(GetParam());
  const grpc::Status status = ToGrpcStatus(absl::Status(code, "what happened"));
  EXPECT_EQ(static_cast<int>(status.error_code()), GetParam());
  EXPECT_EQ(status.error_message(), "what happened");
  EXPECT_EQ(CodeName(status.error_code()), absl::StatusCodeToString(code));
  // Where there is no more to say, the code is the reason.
  EXPECT_EQ(DetailsOf(status).reason, code == absl::StatusCode::kInvalidArgument
                                          ? "MALFORMED_MESSAGE"
                                          : CodeName(status.error_code()));
}

INSTANTIATE_TEST_SUITE_P(Codes, EveryCodeTest, ::testing::Range(1, 17));

TEST(StatusTest, OkHasNothing) {
  const grpc::Status status = ToGrpcStatus(absl::OkStatus());
  EXPECT_TRUE(status.ok());
  EXPECT_EQ(status.error_message(), "");
  EXPECT_EQ(status.error_details(), "");
  EXPECT_EQ(CodeName(status.error_code()), "OK");
}

TEST(StatusTest, FieldErrorsGetABadRequest) {
  const grpc::Status status =
      ToGrpcStatus(FieldError("key.shape", "got (1, 2), wanted (1, 3)"));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(status.error_message(), "key.shape: got (1, 2), wanted (1, 3)");
  const Details details = DetailsOf(status);
  EXPECT_EQ(details.field, "key.shape");
  EXPECT_EQ(details.description, "got (1, 2), wanted (1, 3)");
  EXPECT_EQ(details.reason, "INVALID_FIELD");
  EXPECT_FALSE(details.retry_delay.has_value());
  EXPECT_EQ(DetailsOf(ToGrpcStatus(LimitError("key.shape", "large"))).reason,
            "LIMIT_EXCEEDED");
}

TEST(StatusTest, EveryReasonHasANameOfItsOwn) {
  std::set<absl::string_view> names;
  bool refusal = false;
  for (int i = 0; i <= static_cast<int>(Reason::kDraining); ++i) {
    const auto reason = static_cast<Reason>(i);
    EXPECT_TRUE(names.insert(ReasonName(reason)).second) << i;
    EXPECT_TRUE(std::ranges::all_of(ReasonName(reason), [](char c) {
      return absl::ascii_isupper(c) || c == '_';
    })) << ReasonName(reason);
    // What is wrong with a request is no refusal; all that follow are.
    if (reason == Reason::kHeadersTooLarge) refusal = true;
    EXPECT_EQ(IsRefusal(reason), refusal) << ReasonName(reason);
    if (reason == Reason::kNone) continue;
    EXPECT_EQ(
        DetailsOf(ToGrpcStatus(WithReason(reason, absl::AbortedError("text"))))
            .reason,
        ReasonName(reason));
  }
}

TEST(StatusTest, RetryLaterGetsARetryInfo) {
  const absl::Status busy =
      RetryLater(Reason::kQueueFull, "busy", absl::Milliseconds(1250));
  EXPECT_EQ(RetryDelay(busy), absl::Milliseconds(1250));
  EXPECT_EQ(ReasonOf(busy), Reason::kQueueFull);
  const grpc::Status status = ToGrpcStatus(busy);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(status.error_message(), "busy");
  EXPECT_EQ(DetailsOf(status).retry_delay, absl::Milliseconds(1250));
  EXPECT_EQ(DetailsOf(status).reason, "QUEUE_FULL");
}

TEST(StatusTest, ReasonsGetAnErrorInfo) {
  const absl::Status error = WithReason(Reason::kAnswerTooLarge,
                                        absl::ResourceExhaustedError("large"));
  EXPECT_EQ(DetailsOf(ToGrpcStatus(error)).reason, "ANSWER_TOO_LARGE");
  EXPECT_EQ(RetryDelay(error), std::nullopt);
  EXPECT_EQ(ReasonOf(absl::InternalError("plain")), Reason::kNone);
  EXPECT_EQ(ReasonOf(absl::OkStatus()), Reason::kNone);
}

TEST(StatusTest, UnknownRegionsGetAResourceInfo) {
  const absl::Status error = UnknownRegion("key.shared_memory.region");
  EXPECT_EQ(ReasonOf(error), Reason::kRegionUnknown);
  const grpc::Status status = ToGrpcStatus(error);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(DetailsOf(status).resource, "key.shared_memory.region");
  EXPECT_EQ(DetailsOf(status).reason, "REGION_UNKNOWN");
}

TEST(StatusTest, TextsAreUtf8) {
  const auto text_of = [](const std::string& text) {
    return ToGrpcStatus(absl::InternalError(text)).error_message();
  };
  const std::string right = "a\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80z";
  EXPECT_EQ(text_of(right), right);
  // Cut in the middle, too long, half of a pair, too large, alone.
  for (const std::string wrong :
       {"\xc3", "\xc0\x80", "\xe0\x80\x80", "\xed\xa0\x80", "\xe2\x82",
        "\xf0\x80\x80\x80", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\x80",
        "\xff"}) {
    EXPECT_EQ(text_of("a" + wrong + "z"),
              "a" + std::string(wrong.size(), '?') + "z");
  }
  // Not cut in the middle of a character.
  std::string many;
  while (many.size() <= kMaxStatusMessageBytes) many += "\xe2\x82\xac";
  EXPECT_EQ(
      text_of(many),
      absl::StrCat(many.substr(0, kMaxStatusMessageBytes / 3 * 3 - 3), "..."));
  EXPECT_EQ(text_of(std::string(kMaxStatusMessageBytes, 'x')),
            std::string(kMaxStatusMessageBytes, 'x'));
}

TEST(StatusTest, LongTextsAreCut) {
  const std::string text(3 * kMaxStatusMessageBytes, 'x');
  const grpc::Status plain = ToGrpcStatus(absl::InternalError(text));
  EXPECT_EQ(plain.error_message(),
            absl::StrCat(text.substr(0, kMaxStatusMessageBytes - 3), "..."));
  const grpc::Status field = ToGrpcStatus(FieldError("query", text));
  EXPECT_EQ(field.error_message().size(), kMaxStatusMessageBytes);
  EXPECT_EQ(DetailsOf(field).description.size(), kMaxStatusMessageBytes);
  // Both together, the details in base64, stay well below 8 KiB of headers.
  EXPECT_LT(field.error_message().size() + field.error_details().size() * 4 / 3,
            6u << 10);
}

}  // namespace
}  // namespace attention::server
