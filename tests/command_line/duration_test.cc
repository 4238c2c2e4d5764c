#include "command_line/duration.h"

#include <gtest/gtest.h>

namespace attention::command_line {
namespace {

TEST(ParseDuration, ANumberAloneIsSeconds) {
  EXPECT_EQ(ParseDuration("5"), absl::Seconds(5));
  EXPECT_EQ(ParseDuration("2.5"), absl::Milliseconds(2500));
  EXPECT_EQ(ParseDuration("0"), absl::ZeroDuration());
  EXPECT_EQ(ParseDuration("-1"), absl::Seconds(-1));
}

TEST(ParseDuration, Units) {
  EXPECT_EQ(ParseDuration("500ms"), absl::Milliseconds(500));
  EXPECT_EQ(ParseDuration("1m30s"), absl::Seconds(90));
  EXPECT_EQ(ParseDuration("2h"), absl::Hours(2));
  EXPECT_EQ(ParseDuration("inf"), absl::InfiniteDuration());
}

TEST(ParseDuration, WhatIsNone) {
  for (const char* text : {"", "soon", "5sec", "5 minutes", "nan", "1:30"}) {
    EXPECT_EQ(ParseDuration(text), std::nullopt) << text;
  }
}

}  // namespace
}  // namespace attention::command_line
