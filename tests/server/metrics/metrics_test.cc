#include "server/metrics/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstring>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/descriptor.h"

namespace attention::server {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

const BuildInfo kBuild = {.version = "1.2.3",
                          .simd_target = "AVX2",
                          .grpc_version = "1.51.1",
                          .threads = 7};

// The value of a series, named as in the text; NaN if there is none.
double Value(const std::string& text, absl::string_view series) {
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    double value;
    if (absl::ConsumePrefix(&line, absl::StrCat(series, " ")) &&
        absl::SimpleAtod(line, &value)) {
      return value;
    }
  }
  return std::numeric_limits<double>::quiet_NaN();
}

size_t SeriesOf(const std::string& text) {
  size_t count = 0;
  for (absl::string_view line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
    if (line[0] != '#') ++count;
  }
  return count;
}

CallSummary GoodCall() {
  return {.method = "ComputeAttention",
          .request_bytes = 100,
          .response_bytes = 10,
          .decode = absl::Milliseconds(2),
          .compute = absl::Milliseconds(30),
          .total = absl::Milliseconds(40),
          .predicted_seconds = 0.5,
          .used_seconds = 0.25};
}

TEST(MetricsTest, CountsACall) {
  Metrics metrics(kBuild);
  metrics.CallEnded(GoodCall());
  metrics.CallEnded(GoodCall());
  const std::string text = metrics.Text();
  EXPECT_EQ(Value(text,
                  "attention_calls_total{code=\"OK\",method="
                  "\"ComputeAttention\"}"),
            2);
  EXPECT_EQ(Value(text, "attention_request_bytes_total"), 200);
  EXPECT_EQ(Value(text, "attention_response_bytes_total"), 20);
  EXPECT_EQ(Value(text, "attention_predicted_work_seconds_total"), 1);
  EXPECT_EQ(Value(text, "attention_used_work_seconds_total{result=\"ok\"}"),
            0.5);
  const std::string labels = "{method=\"ComputeAttention\",result=\"ok\"}";
  EXPECT_EQ(Value(text, "attention_call_duration_seconds_count" + labels), 2);
  EXPECT_DOUBLE_EQ(Value(text, "attention_call_duration_seconds_sum" + labels),
                   0.08);
  EXPECT_EQ(Value(text,
                  "attention_call_duration_seconds_bucket{method="
                  "\"ComputeAttention\",result=\"ok\",le=\"0.025\"}"),
            0);
  EXPECT_EQ(Value(text,
                  "attention_call_duration_seconds_bucket{method="
                  "\"ComputeAttention\",result=\"ok\",le=\"0.05\"}"),
            2);
}

TEST(MetricsTest, APhaseCountsTheCallsThatReachedIt) {
  Metrics metrics(kBuild);
  metrics.CallEnded({.method = "ComputeAttention",
                     .wait = absl::Seconds(1),
                     .receive = absl::Seconds(2),
                     .decode = absl::Seconds(3),
                     .queue = absl::Seconds(4),
                     .compute = absl::Seconds(5),
                     .encode = absl::Seconds(6),
                     .send = absl::Seconds(7)});
  metrics.CallEnded(GoodCall());
  const std::string text = metrics.Text();
  const auto phase = [&](const char* what, const char* name) {
    return Value(text, absl::StrCat("attention_call_phase_duration_seconds_",
                                    what, "{phase=\"", name, "\"}"));
  };
  const char* const names[] = {"wait",    "receive", "decode", "queue",
                               "compute", "encode",  "send"};
  for (int i = 0; i < 7; ++i) {
    const bool twice = i == 2 || i == 4;
    EXPECT_EQ(phase("count", names[i]), twice ? 2 : 1) << names[i];
    EXPECT_NEAR(phase("sum", names[i]), i + 1, 0.04) << names[i];
  }
}

TEST(MetricsTest, CountsRefusalsAndErrors) {
  Metrics metrics(kBuild);
  metrics.CallEnded({.method = "ComputeAttention",
                     .code = grpc::StatusCode::RESOURCE_EXHAUSTED,
                     .reason = "QUEUE_FULL"});
  metrics.CallEnded({.method = "ComputeAttention",
                     .code = grpc::StatusCode::CANCELLED,
                     .used_seconds = 3});
  const std::string text = metrics.Text();
  EXPECT_EQ(Value(text, "attention_refusals_total{reason=\"QUEUE_FULL\"}"), 1);
  EXPECT_EQ(Value(text, "attention_refusals_total{reason=\"MEMORY_BUSY\"}"), 0);
  EXPECT_EQ(Value(text, "attention_used_work_seconds_total{result=\"error\"}"),
            3);
  for (const char* result : {"refused", "error"}) {
    EXPECT_EQ(Value(text, absl::StrCat("attention_call_duration_seconds_count{"
                                       "method=\"ComputeAttention\",result=\"",
                                       result, "\"}")),
              1);
  }
}

// Whatever comes in, the series stay the same.
TEST(MetricsTest, TheNumberOfSeriesIsFixed) {
  Metrics metrics(kBuild);
  const size_t before = SeriesOf(metrics.Text());
  metrics.CallEnded({.method = "a client's \"text\"\n",
                     .code = static_cast<grpc::StatusCode>(31),
                     .reason = "whatever"});
  metrics.CallEnded({.method = "", .code = static_cast<grpc::StatusCode>(-1)});
  const std::string text = metrics.Text();
  EXPECT_EQ(SeriesOf(text), before);
  EXPECT_LT(before, 1500);
  EXPECT_THAT(text, Not(HasSubstr("client")));
  EXPECT_EQ(
      Value(text, "attention_calls_total{code=\"UNKNOWN\",method=\"other\"}"),
      2);
  EXPECT_EQ(Value(text, "attention_refusals_total{reason=\"other\"}"), 1);
}

TEST(MetricsTest, FiguresThatAreNoneCountAsZero) {
  Metrics metrics(kBuild);
  metrics.CallEnded({.method = "ComputeAttention",
                     .request_bytes = -5,
                     .compute = absl::InfiniteDuration(),
                     .total = -absl::Seconds(1),
                     .used_seconds = std::numeric_limits<double>::quiet_NaN()});
  const std::string text = metrics.Text();
  EXPECT_EQ(Value(text, "attention_request_bytes_total"), 0);
  EXPECT_EQ(Value(text,
                  "attention_call_phase_duration_seconds_count{phase="
                  "\"compute\"}"),
            0);
  EXPECT_EQ(Value(text,
                  "attention_call_duration_seconds_sum{method="
                  "\"ComputeAttention\",result=\"ok\"}"),
            0);
  EXPECT_EQ(Value(text, "attention_used_work_seconds_total{result=\"ok\"}"), 0);
}

TEST(MetricsTest, ReadsASnapshotAtEachScrape) {
  Metrics metrics(kBuild);
  EXPECT_THAT(metrics.Text(), Not(HasSubstr("attention_memory_bytes")));
  int64_t reads = 0;
  metrics.SetSnapshotSource([&] {
    return Snapshot{.budget_bytes = 1000,
                    .reading_bytes = 1,
                    .tensor_bytes = 2,
                    .answer_bytes = 3,
                    .scratch_bytes = 4,
                    .header_bytes = 12,
                    .pooled_bytes = 5,
                    .waiting_calls = 6,
                    .running_calls = ++reads,
                    .queued_seconds = 0.5,
                    .multiply_adds_per_second = 1e11,
                    .bytes_per_second = 2e10,
                    .connections = 8,
                    .max_connections = 9,
                    .connections_cut = 11,
                    .shared_bytes = 13,
                    .max_shared_bytes = 14,
                    .log_lines_dropped = 10,
                    .draining = true};
  });
  metrics.Text();
  const std::string text = metrics.Text();
  const std::pair<const char*, double> wanted[] = {
      {"attention_memory_limit_bytes", 1000},
      {"attention_memory_bytes{kind=\"reading\"}", 1},
      {"attention_memory_bytes{kind=\"tensors\"}", 2},
      {"attention_memory_bytes{kind=\"answers\"}", 3},
      {"attention_memory_bytes{kind=\"scratch\"}", 4},
      {"attention_memory_bytes{kind=\"headers\"}", 12},
      {"attention_memory_bytes{kind=\"pooled\"}", 5},
      {"attention_waiting_calls", 6},
      {"attention_running_calls", 2},
      {"attention_queued_work_seconds", 0.5},
      {"attention_measured_multiply_adds_per_second", 1e11},
      {"attention_measured_bytes_per_second", 2e10},
      {"attention_connections", 8},
      {"attention_connections_limit", 9},
      {"attention_connections_cut_total", 11},
      {"attention_shared_memory_bytes", 13},
      {"attention_shared_memory_limit_bytes", 14},
      {"attention_log_lines_dropped_total", 10},
      {"attention_draining", 1}};
  for (const auto& [series, value] : wanted) {
    EXPECT_EQ(Value(text, series), value) << series;
  }
  metrics.SetSnapshotSource(nullptr);
  metrics.Text();
  EXPECT_EQ(reads, 2);
}

TEST(MetricsTest, TellsWhatRuns) {
  const std::string text = Metrics(kBuild).Text();
  EXPECT_EQ(Value(text,
                  "attention_build_info{version=\"1.2.3\",simd_target=\"AVX2\","
                  "grpc_version=\"1.51.1\"}"),
            1);
  EXPECT_EQ(Value(text, "attention_compute_threads"), 7);
}

TEST(MetricsTest, TellsAboutTheProcess) {
  Metrics metrics(kBuild);
  const std::string before = metrics.Text();
  EXPECT_GT(Value(before, "process_resident_memory_bytes"), 1 << 20);
  EXPECT_GT(Value(before, "process_virtual_memory_bytes"),
            Value(before, "process_resident_memory_bytes"));
  EXPECT_GT(Value(before, "process_max_fds"), 3);
  // 2020 to 2100.
  EXPECT_GT(Value(before, "process_start_time_seconds"), 1.58e9);
  EXPECT_LT(Value(before, "process_start_time_seconds"), 4.1e9);
  const Descriptor one(dup(0)), two(dup(0));
  // Not from the allocator, which may have some left.
  constexpr size_t kBytes = size_t{64} << 20;
  void* memory = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(memory, MAP_FAILED);
  std::memset(memory, 'x', kBytes);
  const double resident =
      Value(metrics.Text(), "process_resident_memory_bytes");
  EXPECT_GT(resident,
            Value(before, "process_resident_memory_bytes") + kBytes / 2);
  munmap(memory, kBytes);
  EXPECT_EQ(Value(metrics.Text(), "process_open_fds"),
            Value(before, "process_open_fds") + 2);
  double seconds = Value(before, "process_cpu_seconds_total");
  while (Value(metrics.Text(), "process_cpu_seconds_total") == seconds) {
  }
}

TEST(MetricsTest, MayBeUsedFromManyThreads) {
  Metrics metrics(kBuild);
  constexpr int kThreads = 4, kCalls = 1000;
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&] {
      for (int call = 0; call < kCalls; ++call) metrics.CallEnded(GoodCall());
    });
  }
  threads.emplace_back([&] {
    for (int scrape = 0; scrape < 10; ++scrape) {
      metrics.SetSnapshotSource([] { return Snapshot(); });
      metrics.Text();
    }
  });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(Value(metrics.Text(),
                  "attention_calls_total{code=\"OK\",method="
                  "\"ComputeAttention\"}"),
            kThreads * kCalls);
}

}  // namespace
}  // namespace attention::server
