#include "client/cpp/cli/bench/arrivals.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>
#include <vector>

namespace attention::cli {
namespace {

using ::testing::HasSubstr;

std::vector<double> All(PoissonArrivals arrivals) {
  std::vector<double> times;
  while (const auto at = arrivals.Next()) {
    times.push_back(absl::ToDoubleSeconds(*at));
  }
  return times;
}

TEST(PoissonArrivals, HasTheMeanRate) {
  const std::vector<double> times =
      All(PoissonArrivals({{1000, absl::Seconds(100)}}, 1));
  // 100000 expected, a standard deviation of 316: five of them.
  EXPECT_NEAR(static_cast<double>(times.size()), 100'000, 5 * 316.3);
}

TEST(PoissonArrivals, NeverGoesBack) {
  const std::vector<double> times = All(
      PoissonArrivals({{5000, absl::Seconds(2)}, {10, absl::Seconds(2)}}, 7));
  EXPECT_TRUE(std::is_sorted(times.begin(), times.end()));
  EXPECT_GE(times.front(), 0);
  EXPECT_LT(times.back(), 4);
}

// The distance of the gaps' distribution from the exponential one
// (Kolmogorov and Smirnov): above 1.95 / sqrt(n) in one of 1000 seeds.
TEST(PoissonArrivals, GapsAreExponential) {
  const std::vector<double> times =
      All(PoissonArrivals({{200, absl::Seconds(50)}}, 3));
  std::vector<double> gaps(times.size());
  std::adjacent_difference(times.begin(), times.end(), gaps.begin());
  std::sort(gaps.begin(), gaps.end());
  const auto n = static_cast<double>(gaps.size());
  double distance = 0;
  for (size_t i = 0; i < gaps.size(); ++i) {
    const double wanted = 1 - std::exp(-200 * gaps[i]);
    distance = std::max(
        {distance, std::abs(wanted - i / n), std::abs(wanted - (i + 1) / n)});
  }
  EXPECT_LT(distance, 1.95 / std::sqrt(n));
}

TEST(PoissonArrivals, EachStepHasItsRate) {
  const std::vector<double> times = All(
      PoissonArrivals({{2000, absl::Seconds(5)}, {100, absl::Seconds(10)}}, 5));
  const auto first = static_cast<double>(
      std::lower_bound(times.begin(), times.end(), 5.0) - times.begin());
  const double second = static_cast<double>(times.size()) - first;
  EXPECT_NEAR(first, 10'000, 5 * 100.0);
  EXPECT_NEAR(second, 1000, 5 * 31.7);
}

TEST(PoissonArrivals, TheSeedAloneDecides) {
  const std::vector<RateStep> steps = {{100, absl::Seconds(1)}};
  EXPECT_EQ(All(PoissonArrivals(steps, 9)), All(PoissonArrivals(steps, 9)));
  EXPECT_NE(All(PoissonArrivals(steps, 9)), All(PoissonArrivals(steps, 10)));
}

TEST(WeightedChoice, DrawsInProportion) {
  WeightedChoice choice({9, 1}, 1);
  int ones = 0;
  for (int i = 0; i < 10'000; ++i) ones += choice.Next() == 1 ? 1 : 0;
  EXPECT_NEAR(ones, 1000, 5 * 30);
}

TEST(ParseRate, ReadsOneRateAndSteps) {
  const auto one = ParseRate("250.5", absl::Seconds(3));
  ASSERT_TRUE(one.ok());
  ASSERT_EQ(one->size(), 1);
  EXPECT_EQ((*one)[0].calls_per_second, 250.5);
  EXPECT_EQ((*one)[0].duration, absl::Seconds(3));
  const auto steps = ParseRate("2000:5s,160:10", absl::Seconds(3));
  ASSERT_TRUE(steps.ok());
  ASSERT_EQ(steps->size(), 2);
  EXPECT_EQ((*steps)[1].calls_per_second, 160);
  EXPECT_EQ((*steps)[1].duration, absl::Seconds(10));
}

TEST(ParseRate, NamesWhatIsWrong) {
  for (const std::string text : {"", "fast", "0", "-1", "nan", "1e8", "10,20",
                                 "10:5s,20", "10:0s", "10:inf", "10:5s:6s"}) {
    const auto rate = ParseRate(text, absl::Seconds(1));
    ASSERT_FALSE(rate.ok()) << text;
    EXPECT_THAT(std::string(rate.status().message()),
                HasSubstr("got '" + text + "', wanted calls per second"));
  }
}

}  // namespace
}  // namespace attention::cli
