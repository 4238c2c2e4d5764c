#include "client/cpp/cli/bench/bench_report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

namespace attention::cli {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

CallOutcome Outcome(double due_s, double latency_ms, int code) {
  CallOutcome outcome;
  outcome.due = absl::Seconds(due_s);
  outcome.latency = absl::Milliseconds(latency_ms);
  outcome.code = code;
  outcome.request_bytes = 1'000'000'000;
  outcome.answer_bytes = 500'000'000;
  return outcome;
}

class Report : public ::testing::Test {
 protected:
  Report()
      : workload_(
            *MakeWorkload({{*ParseShape("S=16"), 1}, {*ParseShape("S=32"), 2}},
                          v1::DATA_TYPE_FLOAT32, v1::CAUSAL_UNSPECIFIED, 1)) {
    options_.server = "here";
    options_.rate = {{10, absl::Seconds(2)}};
    options_.timeout = absl::Seconds(1);
    statistics_.kinds.resize(2);
    StartTimeline(absl::Seconds(2), statistics_);
    statistics_.elapsed = absl::Seconds(2);
    statistics_.cpu = absl::Seconds(1);
    statistics_.wall = absl::Seconds(4);
    for (int i = 0; i < 8; ++i) {
      Count(Outcome(0.05, 10, grpc::OK), 0, statistics_);
    }
    Count(Outcome(0.15, 4, grpc::RESOURCE_EXHAUSTED), 0, statistics_);
    Count(Outcome(1.95, 5, grpc::UNAVAILABLE), 1, statistics_);
    Count(Outcome(1.95, 1000, grpc::DEADLINE_EXCEEDED), 1, statistics_);
    CallOutcome late = Outcome(0.95, 1200, grpc::OK);
    late.in_time = false;
    late.same_bits = false;
    Count(late, 1, statistics_);
    CountUnsent(absl::Seconds(1.96), 1, statistics_);
    statistics_.lag.Add(absl::Milliseconds(1));
    statistics_.waited = 7;
  }

  Workload workload_;
  LoadOptions options_;
  RunStatistics statistics_;
  Verdict verdict_;
};

TEST_F(Report, CountsEachCallOnce) {
  const CallStatistics total = statistics_.Total();
  EXPECT_EQ(total.calls, 13);
  EXPECT_EQ(total.good, 8);
  EXPECT_EQ(total.late, 1);
  EXPECT_EQ(total.wrong, 1);
  EXPECT_EQ(total.refused, 2);
  EXPECT_EQ(total.unsent, 1);
  EXPECT_EQ(total.accepted.count(), 9);
  EXPECT_EQ(total.refusals.count(), 2);
}

TEST_F(Report, JsonHasEveryFigure) {
  verdict_.different = 1;
  const auto json = nlohmann::json::parse(
      FormatJson(options_, workload_, statistics_, verdict_));
  EXPECT_EQ(json["options"]["loop"], "open");
  EXPECT_EQ(json["options"]["rate"][0]["calls_per_second"], 10);
  EXPECT_EQ(json["seconds"], 2);
  const auto& total = json["total"];
  EXPECT_EQ(total["calls"], 13);
  EXPECT_EQ(total["ok"], 9);
  EXPECT_EQ(total["goodput"], 4);
  EXPECT_EQ(total["sent_gb_per_s"], 4.5);
  EXPECT_EQ(total["received_gb_per_s"], 2.25);
  EXPECT_EQ(total["by_code"]["OK"], 9);
  EXPECT_EQ(total["by_code"]["UNAVAILABLE"], 1);
  EXPECT_NEAR(total["accepted"]["p50_ms"], 10, 0.1);
  EXPECT_EQ(total["accepted"]["max_ms"], 1200);
  EXPECT_EQ(total["refusals"]["max_ms"], 5);
  ASSERT_EQ(json["kinds"].size(), 2);
  EXPECT_EQ(json["kinds"][0]["name"], "S=16,T=16,H=1,D=64");
  EXPECT_EQ(json["kinds"][1]["refused"], 1);
  EXPECT_EQ(json["lag"]["p99_ms"], 1);
  EXPECT_EQ(json["client_cpu_share"], 0.25);
  EXPECT_EQ(json["answers"]["good"], false);
}

TEST_F(Report, JsonTimelineIsByWhenCallsWereDue) {
  const auto json = nlohmann::json::parse(
      FormatJson(options_, workload_, statistics_, verdict_));
  EXPECT_EQ(json["interval_s"], 0.1);
  const auto& timeline = json["timeline"];
  ASSERT_EQ(timeline.size(), 20);
  EXPECT_EQ(timeline[0]["good"], 8);
  EXPECT_EQ(timeline[1]["refused"], 1);
  EXPECT_TRUE(timeline[1]["p99_ms"].is_null());
  EXPECT_EQ(timeline[9]["failed"], 1);
  EXPECT_EQ(timeline[9]["p99_ms"], 1200);
  EXPECT_EQ(timeline[19]["calls"], 3);
  EXPECT_EQ(timeline[19]["failed"], 2);
}

TEST_F(Report, NothingMeasuredIsNull) {
  options_.rate.clear();
  RunStatistics none;
  none.kinds.resize(2);
  const auto json =
      nlohmann::json::parse(FormatJson(options_, workload_, none, verdict_));
  EXPECT_TRUE(json["lag"].is_null());
  EXPECT_TRUE(json["total"]["accepted"]["p50_ms"].is_null());
  EXPECT_EQ(json["total"]["goodput"], 0);
  EXPECT_THAT(FormatTable(options_, workload_, none, verdict_),
              HasSubstr("by code     none"));
}

TEST_F(Report, TableTellsWhatMatters) {
  const std::string table =
      FormatTable(options_, workload_, statistics_, verdict_);
  EXPECT_THAT(table, HasSubstr("calls       13, answered OK 9 (1 late)"));
  EXPECT_THAT(table, HasSubstr("OK 8, RESOURCE_EXHAUSTED 1\n"));
  EXPECT_THAT(table, HasSubstr("never sent 1\n"));
  EXPECT_THAT(table, HasSubstr("goodput     4.00 calls/s"));
  EXPECT_THAT(table, HasSubstr("traffic     4.50 GB/s sent, 2.25 GB/s"));
  EXPECT_THAT(table,
              HasSubstr("  7 calls were sent late because --max-open=10000"));
  EXPECT_THAT(table, HasSubstr("client CPU  1.00 s, 25 % of one core"));
  EXPECT_THAT(table, HasSubstr("answers     right"));
  EXPECT_THAT(table, Not(HasSubstr("generator is the limit")));
}

TEST_F(Report, TableTellsWrongAnswers) {
  verdict_.wrong_first = {"S=16: output[0]"};
  verdict_.different = 3;
  const std::string table =
      FormatTable(options_, workload_, statistics_, verdict_);
  EXPECT_THAT(table, HasSubstr("WRONG       S=16: output[0]\n"));
  EXPECT_THAT(table, HasSubstr("WRONG       3 answers have other bits"));
  EXPECT_THAT(table, Not(HasSubstr("answers     right")));
}

TEST_F(Report, SaysWhenTheGeneratorIsTheLimit) {
  RunStatistics slow;
  slow.kinds.resize(2);
  slow.lag.Add(absl::Milliseconds(80));
  EXPECT_TRUE(GeneratorIsTheLimit(slow));
  EXPECT_THAT(FormatTable(options_, workload_, slow, verdict_),
              HasSubstr("The load generator is the limit"));
  slow.waited = 1;  // --max-open is.
  EXPECT_FALSE(GeneratorIsTheLimit(slow));
}

TEST_F(Report, ProgressFitsALine) {
  const CallStatistics so_far = statistics_.Total();
  EXPECT_EQ(ProgressLine(absl::Seconds(3), absl::Seconds(2), absl::Seconds(5),
                         so_far),
            "[######....] 3.0 s of 5s  4.00 calls/s  p50 10.0 p99 1200 ms  5 "
            "failed");
  EXPECT_EQ(ProgressLine(absl::Seconds(0.5), -absl::Seconds(0.5),
                         absl::Seconds(5), so_far),
            "[#.........] 0.5 s of 5s  warming up");
  CallStatistics large = so_far;
  large.good = 1'000'000'000'000;
  EXPECT_LE(
      ProgressLine(absl::Hours(100), absl::Seconds(1), absl::Hours(100), large)
          .size(),
      79);
}

TEST(Timeline, IsBounded) {
  RunStatistics statistics;
  StartTimeline(absl::Hours(24), statistics);
  EXPECT_LE(statistics.timeline.size(), 1001);
  EXPECT_EQ(statistics.interval, absl::Hours(24) / 1000);
}

}  // namespace
}  // namespace attention::cli
