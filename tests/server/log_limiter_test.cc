#include "server/log_limiter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <spdlog/sinks/ostream_sink.h>

#include <memory>
#include <sstream>
#include <string>

#include "absl/strings/str_cat.h"

namespace attention::server {
namespace {

using ::testing::HasSubstr;

constexpr LogKind kBad = {
    .event = "call", .rpc = "Compute", .code = "INVALID_ARGUMENT"};
constexpr LogKind kFull = {.event = "call",
                           .rpc = "Compute",
                           .code = "RESOURCE_EXHAUSTED",
                           .reason = "QUEUE"};

class LogLimiterTest : public ::testing::Test {
 protected:
  LogLimiterTest()
      : log_("test", std::make_shared<spdlog::sinks::ostream_sink_st>(out_)) {
    log_.set_pattern("%l %v");
  }

  // What was logged since the last time.
  std::string Told() {
    std::string told = out_.str();
    out_.str("");
    return told;
  }

  // How many of `count` lines at `now` are let through.
  int Allowed(LogLimiter& limiter, const LogKind& kind, int count,
              absl::Time now,
              spdlog::level::level_enum level = spdlog::level::info) {
    int allowed = 0;
    for (int i = 0; i < count; ++i) allowed += limiter.Allow(kind, level, now);
    return allowed;
  }

  std::ostringstream out_;
  spdlog::logger log_;
  absl::Time now_ = absl::FromUnixSeconds(1'000'000);
};

TEST_F(LogLimiterTest, LetsSoManyThroughEachSecondAndTellsTheRest) {
  LogLimiter limiter(log_, 3);
  EXPECT_EQ(Allowed(limiter, kBad, 10, now_), 3);
  now_ += absl::Milliseconds(999);
  EXPECT_EQ(Allowed(limiter, kBad, 10, now_), 0);
  EXPECT_EQ(Told(), "");
  now_ += absl::Milliseconds(1);
  EXPECT_EQ(Allowed(limiter, kBad, 10, now_), 3);
  EXPECT_EQ(Told(),
            "info event=log_suppressed kind=call/Compute/INVALID_ARGUMENT "
            "count=17\n");
}

TEST_F(LogLimiterTest, KindsHaveALimitEach) {
  LogLimiter limiter(log_, 3);
  EXPECT_EQ(Allowed(limiter, kBad, 10, now_), 3);
  EXPECT_EQ(Allowed(limiter, kFull, 10, now_), 3);
  LogKind other = kFull;
  other.reason = "BYTES";
  EXPECT_EQ(Allowed(limiter, other, 10, now_), 3);
}

TEST_F(LogLimiterTest, TellsOfAKindThatFellSilent) {
  LogLimiter limiter(log_, 1);
  Allowed(limiter, kFull, 5, now_, spdlog::level::err);
  limiter.Tell(now_ + absl::Milliseconds(500));
  EXPECT_EQ(Told(), "");
  limiter.Tell(now_ + absl::Seconds(1));
  EXPECT_EQ(Told(),
            "error event=log_suppressed "
            "kind=call/Compute/RESOURCE_EXHAUSTED/QUEUE count=4\n");
  limiter.Tell(now_ + absl::Seconds(2));
  EXPECT_EQ(Told(), "");
}

TEST_F(LogLimiterTest, TheDestructorTells) {
  {
    LogLimiter limiter(log_, 1);
    Allowed(limiter, kBad, 2, now_);
  }
  EXPECT_THAT(Told(), HasSubstr("count=1\n"));
}

TEST_F(LogLimiterTest, HoldsNothingBackAtZero) {
  LogLimiter limiter(log_, 0);
  EXPECT_EQ(Allowed(limiter, kBad, 1000, now_), 1000);
}

TEST_F(LogLimiterTest, WhatTheLogDoesNotTakeIsNeitherAllowedNorCounted) {
  LogLimiter limiter(log_, 1);
  EXPECT_EQ(Allowed(limiter, kBad, 5, now_, spdlog::level::debug), 0);
  EXPECT_EQ(Allowed(limiter, kBad, 1, now_), 1);
  limiter.Tell(absl::InfiniteFuture());
  EXPECT_EQ(Told(), "");
}

TEST_F(LogLimiterTest, AClockThatIsSetBackBeginsANewSecond) {
  LogLimiter limiter(log_, 1);
  EXPECT_EQ(Allowed(limiter, kBad, 2, now_), 1);
  EXPECT_EQ(Allowed(limiter, kBad, 2, now_ - absl::Hours(1)), 1);
}

TEST_F(LogLimiterTest, KindsBeyondTheTableShareAPlace) {
  LogLimiter limiter(log_, 1);
  std::vector<std::string> names;
  for (int i = 0; i < 200; ++i) names.push_back(absl::StrCat("kind", i));
  int allowed = 0;
  for (const std::string& name : names) {
    allowed += Allowed(limiter, {.event = name}, 2, now_);
  }
  EXPECT_EQ(allowed, LogLimiter::kMaxKinds);
  limiter.Tell(absl::InfiniteFuture());
  const std::string told = Told();
  EXPECT_THAT(told, HasSubstr("kind=kind62 count=1\n"));
  EXPECT_THAT(told, HasSubstr("kind=other count=273\n"));
}

}  // namespace
}  // namespace attention::server
