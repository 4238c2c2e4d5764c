#include "client/cpp/cli/bench/latency_recorder.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

namespace attention::cli {
namespace {

TEST(LatencyRecorder, NothingIsZero) {
  const LatencyRecorder recorder;
  EXPECT_EQ(recorder.count(), 0);
  EXPECT_EQ(recorder.max(), absl::ZeroDuration());
  EXPECT_EQ(recorder.Percentile(99), absl::ZeroDuration());
}

TEST(LatencyRecorder, OneTimeIsEveryPercentile) {
  LatencyRecorder recorder;
  recorder.Add(absl::Microseconds(1234));
  for (const double percent : {0.0, 50.0, 99.9, 100.0}) {
    EXPECT_EQ(recorder.Percentile(percent), absl::Microseconds(1234));
  }
}

TEST(LatencyRecorder, SmallNumbersAreExact) {
  LatencyRecorder recorder;
  for (int i = 1; i <= 100; ++i) recorder.Add(absl::Nanoseconds(i));
  EXPECT_EQ(recorder.Percentile(50), absl::Nanoseconds(50));
  EXPECT_EQ(recorder.Percentile(99), absl::Nanoseconds(99));
  EXPECT_EQ(recorder.Percentile(99.1), absl::Nanoseconds(100));
}

// Times spread over nine powers of ten, against the sorted list.
TEST(LatencyRecorder, PercentilesAreAtMostABucketAbove) {
  for (const int bits : {3, 7}) {
    LatencyRecorder recorder(bits);
    std::vector<double> sorted;
    std::mt19937 random(1);
    std::uniform_real_distribution<double> exponent(1, 10);
    for (int i = 0; i < 20'000; ++i) {
      const int64_t n = std::llround(std::pow(10, exponent(random)));
      recorder.Add(absl::Nanoseconds(n));
      sorted.push_back(static_cast<double>(n));
    }
    std::sort(sorted.begin(), sorted.end());
    for (const double percent : {0.01, 1.0, 50.0, 90.0, 99.0, 99.9, 100.0}) {
      const double rank = std::ceil(percent / 100 * 20'000);
      const double exact = sorted[static_cast<size_t>(rank) - 1];
      const double got =
          absl::ToDoubleNanoseconds(recorder.Percentile(percent));
      EXPECT_GE(got, exact) << percent;
      EXPECT_LE(got, exact * (1 + std::exp2(-bits))) << percent;
    }
    EXPECT_EQ(absl::ToDoubleNanoseconds(recorder.max()), sorted.back());
  }
}

TEST(LatencyRecorder, ClampsWhatIsOutOfRange) {
  LatencyRecorder recorder;
  recorder.Add(-absl::Seconds(1));
  EXPECT_EQ(recorder.max(), absl::ZeroDuration());
  recorder.Add(absl::InfiniteDuration());
  EXPECT_EQ(recorder.max(), absl::Hours(1));
  EXPECT_EQ(recorder.Percentile(50), absl::ZeroDuration());
}

TEST(LatencyRecorder, MergesAsIfAddedToOne) {
  LatencyRecorder one;
  LatencyRecorder other;
  LatencyRecorder both;
  for (int i = 0; i < 1000; ++i) {
    const absl::Duration time = absl::Microseconds((i * 7919) % 1000);
    (i % 3 == 0 ? one : other).Add(time);
    both.Add(time);
  }
  one.Merge(other);
  EXPECT_EQ(one.count(), both.count());
  EXPECT_EQ(one.max(), both.max());
  for (const double percent : {10.0, 50.0, 99.0}) {
    EXPECT_EQ(one.Percentile(percent), both.Percentile(percent));
  }
}

}  // namespace
}  // namespace attention::cli
