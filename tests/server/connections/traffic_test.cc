#include "server/connections/traffic.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
#include <vector>

namespace attention::server {
namespace {

constexpr int64_t kKiB = int64_t{1} << 10;
constexpr int64_t kMiB = int64_t{1} << 20;
constexpr absl::Duration kTick = absl::Milliseconds(50);

// A connection on which time passes in ticks; after each it is looked at.
class TrafficTest : public ::testing::Test {
 protected:
  using Fault = Traffic::Fault;

  // Bytes that came, and were read.
  void Came(int64_t bytes) { received_ += bytes; }

  void Tick() {
    now_ += kTick;
    const auto fault = traffic_.Look(received_, now_);
    if (fault && !fault_) fault_ = fault;
  }

  // Each tick, for so long; or until a fault.
  template <typename Step>
  void For(absl::Duration time, const Step& step) {
    for (const absl::Time end = now_ + time; now_ < end && !fault_;) {
      step();
      Tick();
    }
  }

  Traffic::Call Begin(int64_t header_bytes) {
    return traffic_.Begin(header_bytes, now_);
  }
  void End(const Traffic::Call& call, Traffic::CallEnd end) {
    end.received = received_;
    traffic_.End(call, end, now_);
  }

  // A call that is read and answered at once. `wire_bytes`: what its headers
  // took on the wire.
  void AnsweredCall(int64_t header_bytes, int64_t wire_bytes, int64_t message) {
    Traffic::Call call = Begin(header_bytes);
    Came(wire_bytes + message + 9 * (1 + message / (16 * kKiB)));
    traffic_.Read(call, message);
    End(call, {.message_bytes = message, .response_bytes = message});
  }

  absl::Time now_ = absl::FromUnixSeconds(1000);
  Traffic traffic_{now_};
  int64_t received_ = 0;
  std::optional<Fault> fault_;
};

TEST_F(TrafficTest, TenThousandSmallCallsPerSecond) {
  For(absl::Seconds(20), [&] {
    for (int i = 0; i < 500; ++i) AnsweredCall(500, 500, 3 * kKiB);
  });
  EXPECT_EQ(fault_, std::nullopt);
}

TEST_F(TrafficTest, LargeHeadersOnEveryCall) {
  For(absl::Seconds(20), [&] {
    for (int i = 0; i < 50; ++i) AnsweredCall(64 * kKiB, 64 * kKiB + 40, 100);
  });
  EXPECT_EQ(fault_, std::nullopt);
}

// At once, while their bodies are on the way: those come after.
TEST_F(TrafficTest, CallsRefusedUnderOverload) {
  int64_t on_the_way = 0;
  For(absl::Seconds(20), [&] {
    Came(on_the_way);
    for (int i = 0; i < 500; ++i) {
      Came(300 + 20);
      End(Begin(300), {});
    }
    Came(450 * kUnreadWindowBytes);
    on_the_way = 50 * kUnreadWindowBytes;
  });
  EXPECT_EQ(fault_, std::nullopt);
}

TEST_F(TrafficTest, AllStreamsAtOnceUnreadForLong) {
  std::vector<Traffic::Call> calls;
  // gRPC tells of them only after they all have come.
  Came(1024 * (kUnreadWindowBytes + 1000));
  For(absl::Milliseconds(400), [] {});
  for (int i = 0; i < 1024; ++i) calls.push_back(Begin(1000));
  For(absl::Minutes(1), [] {});
  EXPECT_EQ(fault_, std::nullopt);
  for (const Traffic::Call& call : calls) End(call, {});
  For(absl::Minutes(1), [] {});
  EXPECT_EQ(fault_, std::nullopt);
}

TEST_F(TrafficTest, LargeUploadsCancelledHalfWay) {
  for (int i = 0; i < 20; ++i) {
    Traffic::Call call = Begin(300);
    traffic_.Read(call, 320 * kMiB);
    For(absl::Milliseconds(250), [&] { Came(30 * kMiB); });
    End(call, {.cancelled = true});
  }
  For(absl::Seconds(5), [] {});
  EXPECT_EQ(fault_, std::nullopt);
}

// The client hears of it only after a while.
TEST_F(TrafficTest, UploadsThatTheServerCutsOff) {
  for (int i = 0; i < 20; ++i) {
    Traffic::Call call = Begin(300);
    traffic_.Read(call, 320 * kMiB);
    For(absl::Milliseconds(250), [&] { Came(10 * kMiB); });
    End(call, {});
    For(absl::Milliseconds(200), [&] { Came(3 * kMiB); });
    For(absl::Seconds(2), [] {});
  }
  For(absl::Seconds(5), [] {});
  EXPECT_EQ(fault_, std::nullopt);
}

TEST_F(TrafficTest, HedgedCallsCancelledAThousandTimesPerSecond) {
  For(absl::Seconds(20), [&] {
    for (int i = 0; i < 50; ++i) {
      Came(300 + kUnreadWindowBytes + 40);
      End(Begin(300), {.cancelled = true});
    }
  });
  EXPECT_EQ(fault_, std::nullopt);
}

// As many as may be open, all 100 ms.
TEST_F(TrafficTest, CallsThatMeetTheirDeadline) {
  std::vector<Traffic::Call> calls;
  For(absl::Seconds(20), [&] {
    for (const Traffic::Call& call : calls) {
      if (now_ - call.begin >= absl::Milliseconds(100)) {
        End(call, {.cancelled = true});
      }
    }
    std::erase_if(calls, [&](const Traffic::Call& call) {
      return now_ - call.begin >= absl::Milliseconds(100);
    });
    while (calls.size() < 1024) {
      Came(320);
      calls.push_back(Begin(300));
    }
  });
  EXPECT_EQ(fault_, std::nullopt);
}

TEST_F(TrafficTest, PingsAndWindowUpdatesOfALargeAnswer) {
  Traffic::Call call = Begin(300);
  traffic_.Read(call, 1000);
  Came(1320);
  // 1 GiB/s, an update of 13 bytes for each 32 KiB.
  For(absl::Seconds(2), [&] { Came(13 * (51 * kMiB / (32 * kKiB)) + 17); });
  End(call, {.message_bytes = 1000, .response_bytes = 2000 * kMiB});
  For(absl::Minutes(1), [&] { Came(17); });
  EXPECT_EQ(fault_, std::nullopt);
}

TEST_F(TrafficTest, AFloodOfFramesIsAFault) {
  const absl::Time begin = now_;
  For(absl::Seconds(10), [&] { Came(30 * kMiB / 20); });
  EXPECT_EQ(fault_, Fault::kUnexplainedBytes);
  EXPECT_LE(now_ - begin, absl::Seconds(1));
}

TEST_F(TrafficTest, ASlowFloodOfFramesIsAFault) {
  const absl::Time begin = now_;
  For(absl::Seconds(20), [&] { Came(kMiB / 20); });
  EXPECT_EQ(fault_, Fault::kUnexplainedBytes);
  EXPECT_LE(now_ - begin, absl::Seconds(4));
}

// A body that nobody asked for, or headers without an end.
TEST_F(TrafficTest, MuchAtOnceIsAFaultAtOnce) {
  Came(25 * kMiB);
  Tick();
  EXPECT_EQ(fault_, Fault::kUnexplainedBytes);
}

TEST_F(TrafficTest, LittleThatStaysUnexplainedIsAFault) {
  Came(800 * kKiB);
  For(absl::Seconds(1.9), [] {});
  EXPECT_EQ(fault_, std::nullopt);
  For(absl::Seconds(1.2), [] {});
  EXPECT_EQ(fault_, Fault::kUnexplainedBytes);
}

TEST_F(TrafficTest, CallsResetAtOnceAreAFault) {
  const absl::Time begin = now_;
  For(absl::Seconds(10), [&] {
    for (int i = 0; i < 500; ++i) {
      Came(145);
      End(Begin(120), {.cancelled = true});
    }
  });
  EXPECT_EQ(fault_, Fault::kCancelledCalls);
  EXPECT_LE(now_ - begin, absl::Milliseconds(300));
}

// Their answers are not taken.
TEST_F(TrafficTest, CallsWithoutEndAreAFault) {
  For(absl::Seconds(10), [&] {
    for (int i = 0; i < 100; ++i) {
      Came(145);
      Begin(120);
    }
  });
  EXPECT_EQ(fault_, Fault::kOpenCalls);
}

TEST_F(TrafficTest, AFloodBesideCallsIsAFault) {
  For(absl::Seconds(10), [&] {
    for (int i = 0; i < 50; ++i) AnsweredCall(300, 320, 3 * kKiB);
    Came(30 * kMiB / 20);
  });
  EXPECT_EQ(fault_, Fault::kUnexplainedBytes);
}

TEST_F(TrafficTest, CallsOfThePastDoNotPayForAFlood) {
  For(absl::Seconds(5), [&] {
    for (int i = 0; i < 500; ++i) AnsweredCall(8 * kKiB, 60, 100);
  });
  For(absl::Seconds(10), [&] { Came(kMiB / 4); });
  EXPECT_EQ(fault_, Fault::kUnexplainedBytes);
}

TEST_F(TrafficTest, MoreThanAMessageMayHaveIsAFault) {
  Traffic::Call call = Begin(300);
  traffic_.Read(call, kMiB);
  For(absl::Seconds(10), [&] { Came(kMiB); });
  EXPECT_EQ(fault_, Fault::kUnexplainedBytes);
}

// Messages of any size, for as long as it takes.
TEST_F(TrafficTest, StreamsOfAnyLength) {
  for (int64_t message : {int64_t{60}, 64 * kKiB, 8 * kMiB}) {
    Traffic::Call call = Begin(200);
    traffic_.Read(call, kMiB);
    For(absl::Seconds(20), [&] {
      for (int i = 0; i < (message < kKiB ? 2000 : 4); ++i) {
        // Each in frames of its own, with its length.
        Came(message + 5 + 9 * (1 + message / (16 * kKiB)));
        // The answer is taken by window updates.
        Came(message / 64);
        traffic_.Next(call, message, message, 8 * kMiB);
      }
    });
    EXPECT_FALSE(fault_) << message;
    End(call, {.message_bytes = 0});
  }
}

TEST_F(TrafficTest, MoreThanAStreamsMessagesIsAFault) {
  Traffic::Call call = Begin(200);
  traffic_.Read(call, kMiB);
  For(absl::Seconds(20), [&] {
    Came(kMiB);
    traffic_.Next(call, 64 * kKiB, 0, 8 * kMiB);
  });
  EXPECT_EQ(fault_, Fault::kUnexplainedBytes);
}

TEST_F(TrafficTest, ItStartsWithNothing) {
  Tick();
  EXPECT_LE(traffic_.unexplained(), 0);
  EXPECT_EQ(fault_, std::nullopt);
}

}  // namespace
}  // namespace attention::server
