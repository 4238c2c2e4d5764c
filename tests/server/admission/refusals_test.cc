#include "server/admission/refusals.h"

#include <gtest/gtest.h>

#include <string>

#include "server/status.h"
#include "tests/support/messages.h"

namespace attention::server {
namespace {

using attention::testing::Details;
using attention::testing::DetailsOf;

struct Refusal {
  absl::Status status;
  std::string code;
  std::string reason;
  // Whether it says when to try again: only then may that help.
  bool retry = false;
};

TEST(RefusalsTest, EachHasItsReason) {
  const absl::Duration second = absl::Seconds(1);
  const std::string exhausted = "RESOURCE_EXHAUSTED";
  const std::string late = "DEADLINE_EXCEEDED";
  const Refusal refusals[] = {
      {Draining(), "UNAVAILABLE", "DRAINING"},
      // Limits of the server.
      {HeadersTooLarge(1, 2, 3, 4), exhausted, "HEADERS_TOO_LARGE"},
      {RequestTooLarge(2, 1), exhausted, "REQUEST_TOO_LARGE"},
      {ChunkTooLarge(2, 1), exhausted, "REQUEST_TOO_LARGE"},
      {TokenTooLarge(2, 1), exhausted, "REQUEST_TOO_LARGE"},
      {MessageOfStreamTooLarge(2, 1, 1), exhausted, "REQUEST_TOO_LARGE"},
      {FloatsTooLarge(2, 1), exhausted, "REQUEST_TOO_LARGE"},
      {AnswerTooLarge(2, 1), exhausted, "ANSWER_TOO_LARGE"},
      {NeverFits(2, 1, 1), exhausted, "MEMORY_TOO_LARGE"},
      // A busy server.
      {NoRoomToWait(1, 1), exhausted, "MEMORY_BUSY", true},
      {DoesNotFitNow(1, 1), exhausted, "MEMORY_BUSY", true},
      {NoRoomForTheRest(1), exhausted, "MEMORY_BUSY", true},
      {OutOfMemory(), exhausted, "OUT_OF_MEMORY", true},
      {WouldWaitTooLong(second, second), exhausted, "QUEUE_FULL", true},
      {WouldWaitUntilTooLate(second, second), exhausted, "DEADLINE_TOO_CLOSE",
       true},
      {WouldTakeTooLong(second, second, second), exhausted,
       "DEADLINE_TOO_CLOSE", true},
      // Time.
      {LateBeforeRead(), late, "DEADLINE_EXCEEDED"},
      {LateWhileRead(), late, "DEADLINE_EXCEEDED"},
      {TooSlow(1, second), late, "SLOW_UPLOAD"},
      {AnswerNotTaken(1, second), late, "SLOW_READER"},
  };
  for (const Refusal& refusal : refusals) {
    const grpc::Status status = ToGrpcStatus(refusal.status);
    SCOPED_TRACE(status.error_message());
    EXPECT_EQ(CodeName(status.error_code()), refusal.code);
    const Details details = DetailsOf(status);
    EXPECT_EQ(details.reason, refusal.reason);
    EXPECT_EQ(details.retry_delay.has_value(), refusal.retry);
  }
}

}  // namespace
}  // namespace attention::server
