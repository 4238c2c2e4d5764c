#include "server/admission/stream_pace.h"

#include <gtest/gtest.h>

#include <optional>

namespace attention::server {
namespace {

constexpr int64_t kKilo = 1000;

class StreamPaceTest : public ::testing::Test {
 protected:
  const StreamPace::Settings settings_ = {.min_rate = 1000,
                                          .grace = absl::Seconds(10),
                                          .max_message_bytes = 20 * kKilo};
  // A second passes, in which the connection received so many bytes.
  void Second(int64_t bytes) {
    now_ += absl::Seconds(1);
    if (received_) *received_ += bytes;
    if (pace_.Due(now_)) pace_.Look(settings_, received_, now_);
  }
  void Await() { pace_.Await(received_, now_); }
  void Came(int64_t bytes) { pace_.Came(settings_, bytes, received_, now_); }
  bool TooSlow() const { return pace_.TooSlow(settings_).has_value(); }

  absl::Time now_ = absl::UnixEpoch();
  std::optional<int64_t> received_ = 0;
  StreamPace pace_;
};

TEST_F(StreamPaceTest, SilenceIsTooSlowAfterTheGrace) {
  Await();
  for (int i = 0; i < 9; ++i) Second(0);
  EXPECT_FALSE(TooSlow());
  Second(0);
  ASSERT_TRUE(TooSlow());
  EXPECT_EQ(*pace_.TooSlow(settings_), absl::Seconds(10));
}

TEST_F(StreamPaceTest, TheRateIsThatOfEachWindow) {
  Await();
  for (int i = 0; i < 100; ++i) {
    Second(1001);
    EXPECT_FALSE(TooSlow()) << i;
  }
  for (int i = 0; i < 10; ++i) Second(990);
  EXPECT_TRUE(TooSlow());
}

// However long the server does something else, no second of it counts.
TEST_F(StreamPaceTest, OnlyTheTimeInWhichTheServerWaitsCounts) {
  for (int i = 0; i < 9; ++i) {
    Await();
    Second(1);
    Came(1);
    for (int j = 0; j < 60; ++j) Second(0);
  }
  EXPECT_FALSE(TooSlow());
  Await();
  Second(1);
  EXPECT_TRUE(TooSlow());
}

// Many small messages are as slow as few large ones.
TEST_F(StreamPaceTest, MessagesAloneAreNoProgress) {
  for (int i = 0; i < 10; ++i) {
    Await();
    Second(1);
    Came(1);
  }
  EXPECT_TRUE(TooSlow());
}

// What came while nothing was awaited counts with its message.
TEST_F(StreamPaceTest, AMessageCountsWhole) {
  for (int i = 0; i < 10; ++i) {
    Second(1500);
    Await();
    now_ += absl::Seconds(1);
    Came(1500);
  }
  EXPECT_FALSE(TooSlow());
}

// A message of another call is received, and no longer counts once it is whole.
TEST_F(StreamPaceTest, AnotherCallsBytesAreNoProgress) {
  Await();
  for (int i = 0; i < 10; ++i) {
    *received_ -= 2000;
    Second(2000);
  }
  EXPECT_TRUE(TooSlow());
}

TEST_F(StreamPaceTest, WhatAMessageMayHaveIsWhatCameSinceItIsAwaited) {
  *received_ = 100;
  EXPECT_EQ(pace_.MostBytes(150), 0);
  Await();
  EXPECT_EQ(pace_.MostBytes(150), 50);
  EXPECT_EQ(pace_.MostBytes(80), 0);
  EXPECT_EQ(pace_.MostBytes(std::nullopt), 0);
  *received_ = 200;
  Came(90);
  EXPECT_EQ(pace_.MostBytes(250), 0);
}

// Then the largest message has as long as it may take: 20 s more.
TEST_F(StreamPaceTest, WhereTheConnectionIsUnknownMessagesCount) {
  received_.reset();
  Await();
  for (int i = 0; i < 29; ++i) Second(0);
  EXPECT_FALSE(TooSlow());
  now_ += absl::Seconds(1);
  Came(10 * kKilo);
  EXPECT_FALSE(TooSlow());
  Await();
  for (int i = 0; i < 30; ++i) Second(0);
  EXPECT_TRUE(TooSlow());
}

TEST_F(StreamPaceTest, StallsAreToldOfSoonAndEndWithAMessage) {
  Await();
  Second(0);
  EXPECT_TRUE(pace_.stalled());
  Came(1);
  EXPECT_FALSE(pace_.stalled());
  Await();
  for (int i = 0; i < 5; ++i) {
    Second(16 << 10);
    EXPECT_FALSE(pace_.stalled());
  }
  Second(100);
  EXPECT_TRUE(pace_.stalled());
  // Not while the server does not wait.
  Came(1);
  Second(0);
  EXPECT_FALSE(pace_.stalled());
}

}  // namespace
}  // namespace attention::server
