// How a benchmark's figures are shown: progress, a table, JSON.
#ifndef ATTENTION_CLIENT_CPP_CLI_BENCH_BENCH_REPORT_H_
#define ATTENTION_CLIENT_CPP_CLI_BENCH_BENCH_REPORT_H_

#include <string>
#include <vector>

#include "absl/time/time.h"
#include "client/cpp/cli/bench/load_generator.h"
#include "client/cpp/cli/bench/statistics.h"
#include "client/cpp/cli/bench/workload.h"

namespace attention::cli {

// What came of checking the answers.
struct Verdict {
  bool checked = true;
  // What is wrong with the first answer of a kind, a line each; empty: nothing.
  std::vector<std::string> wrong_first;
  // Answers whose bits are not those of the first of their kind.
  int64_t different = 0;

  bool good() const { return wrong_first.empty() && different == 0; }
};

// One line for a terminal, without line break, at most 79 columns:
// "[####......] 2.0 s of 5 s  1234 calls/s  p50 0.61 ms  p99 1.2 ms  0 failed".
// `since_start` and `total` include the warm-up, `measured` does not.
std::string ProgressLine(absl::Duration since_start, absl::Duration measured,
                         absl::Duration total, const CallStatistics& so_far);

// The table for people.
std::string FormatTable(const LoadOptions& options, const Workload& workload,
                        const RunStatistics& statistics,
                        const Verdict& verdict);

// The same for programs, with a kind's figures each and the timeline. Times
// are in milliseconds where a name ends in _ms, otherwise in seconds; what was
// not measured is null.
std::string FormatJson(const LoadOptions& options, const Workload& workload,
                       const RunStatistics& statistics, const Verdict& verdict);

// "OK", "RESOURCE_EXHAUSTED": a grpc::StatusCode's name.
std::string CodeName(int code);

// Whether the program itself could not keep to the schedule: the p99 of its
// lag is above 50 ms, though no call had to wait for --max-open. Less comes
// from sharing cores with others.
bool GeneratorIsTheLimit(const RunStatistics& statistics);

}  // namespace attention::cli

#endif  // ATTENTION_CLIENT_CPP_CLI_BENCH_BENCH_REPORT_H_
