// What a benchmark counts.
#ifndef ATTENTION_CLIENT_CPP_CLI_BENCH_STATISTICS_H_
#define ATTENTION_CLIENT_CPP_CLI_BENCH_STATISTICS_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "client/cpp/cli/bench/latency_recorder.h"

namespace attention::cli {

// Calls of one kind. A call's time begins when it was due: in an open loop
// when the schedule wanted it sent, in a closed loop when it was sent.
struct CallStatistics {
  // Every call that was due in the measured time; those of `by_code` (a
  // grpc::StatusCode) and those never sent.
  int64_t calls = 0;
  std::map<int, int64_t> by_code;
  // Not sent before the deadline, because too many calls were open.
  int64_t unsent = 0;
  // Answered OK within the deadline, in time or not, and with other bits than
  // the first answer.
  int64_t good = 0;
  int64_t late = 0;
  int64_t wrong = 0;
  int64_t refused = 0;        // RESOURCE_EXHAUSTED or UNAVAILABLE.
  LatencyRecorder accepted;   // Of those answered OK.
  LatencyRecorder refusals;   // Of those refused.
  int64_t request_bytes = 0;  // Of those answered OK, as the next.
  int64_t answer_bytes = 0;

  int64_t ok() const { return good + late; }
  void Merge(const CallStatistics& other);
};

// Calls that were due in one interval of the measured time.
struct Interval {
  int64_t calls = 0;
  int64_t good = 0;
  int64_t refused = 0;
  int64_t failed = 0;  // Anything else, late and unsent ones included.
  LatencyRecorder accepted{3};
};

// One measurement. Memory: a few 10 KB per kind and at most 1000 intervals of
// 2 KB, however many calls there are.
struct RunStatistics {
  std::vector<CallStatistics> kinds;
  std::vector<Interval> timeline;
  absl::Duration interval;
  // Open loop: how much later than due calls were sent, and how many of them
  // waited because too many were open.
  LatencyRecorder lag;
  int64_t waited = 0;
  // What rates refer to: the schedule's length, in a closed loop the time up to
  // the last answer.
  absl::Duration elapsed;
  // Processor time of this program, user and system, in `wall` of real time.
  absl::Duration cpu;
  absl::Duration wall;

  CallStatistics Total() const;
};

// What there is to tell of one finished call.
struct CallOutcome {
  absl::Duration due;  // Since the start of the measured time.
  absl::Duration latency;
  int code = 0;
  bool in_time = true;
  bool same_bits = true;
  int64_t request_bytes = 0;
  int64_t answer_bytes = 0;
};

// Prepares `statistics` for a measured time of `length`.
void StartTimeline(absl::Duration length, RunStatistics& statistics);

// Counts one call of `kind`.
void Count(const CallOutcome& outcome, size_t kind, RunStatistics& statistics);

// Counts one call that was never sent.
void CountUnsent(absl::Duration due, size_t kind, RunStatistics& statistics);

}  // namespace attention::cli

#endif  // ATTENTION_CLIENT_CPP_CLI_BENCH_STATISTICS_H_
