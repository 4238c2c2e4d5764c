#include "server/admission/admission.h"

#include <gtest/gtest.h>

#include <thread>

#include "server/status.h"
#include "tests/support/messages.h"

namespace attention::server {
namespace {

using attention::testing::DetailsOf;

TEST(AdmissionTest, RefusesWhatExceedsTheBudget) {
  Admission admission(100);
  EXPECT_TRUE(admission.Enter(60).ok());
  const absl::Status refused = admission.Enter(41);
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(refused.message(),
            "the server is busy: 41 bytes more would exceed the 100 it works "
            "on at once (max_inflight_bytes)");
  EXPECT_GT(DetailsOf(ToGrpcStatus(refused)).retry_delay, absl::ZeroDuration());
  EXPECT_EQ(admission.calls(), 1);
  EXPECT_TRUE(admission.Enter(40).ok());
  EXPECT_FALSE(admission.Grow(1).ok());
  admission.Leave(40);
  EXPECT_TRUE(admission.Grow(40).ok());
  admission.Leave(100);
  EXPECT_EQ(admission.calls(), 0);
  EXPECT_TRUE(admission.Enter(100).ok());
}

TEST(AdmissionTest, HugeSizesDoNotOverflow) {
  Admission admission(100);
  EXPECT_TRUE(admission.Enter(60).ok());
  EXPECT_FALSE(admission.Grow(std::numeric_limits<int64_t>::max()).ok());
}

TEST(AdmissionTest, DrainingRefusesNewCallsOnly) {
  Admission admission(100);
  EXPECT_TRUE(admission.Enter(10).ok());
  admission.Drain();
  EXPECT_EQ(admission.Enter(10),
            absl::UnavailableError("the server is shutting down"));
  EXPECT_TRUE(admission.Grow(10).ok());
  admission.Leave(20);
  EXPECT_TRUE(admission.WaitUntilIdle());
}

TEST(AdmissionTest, WaitsForTheLastCall) {
  Admission admission(100);
  EXPECT_TRUE(admission.Enter(10).ok());
  bool left = false;
  std::thread call([&] {
    admission.Drain();
    left = true;
    admission.Leave(10);
  });
  EXPECT_TRUE(admission.WaitUntilIdle());
  EXPECT_TRUE(left);
  call.join();
}

TEST(AdmissionTest, AnEarlierDeadlineEndsTheWait) {
  Admission admission(100);
  EXPECT_TRUE(admission.Enter(10).ok());
  admission.Drain();
  std::thread impatient([&] { admission.SetDeadline(absl::InfinitePast()); });
  EXPECT_FALSE(admission.WaitUntilIdle());
  impatient.join();
}

}  // namespace
}  // namespace attention::server
