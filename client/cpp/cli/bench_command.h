// `attention_client bench`.
#ifndef ATTENTION_CLIENT_CPP_CLI_BENCH_COMMAND_H_
#define ATTENTION_CLIENT_CPP_CLI_BENCH_COMMAND_H_

#include <ostream>
#include <string>

#include "absl/time/time.h"
#include "attention/v1/attention.pb.h"
#include "client/cpp/cli/connection_flags.h"
#include "client/cpp/cli/report.h"

namespace CLI {
class App;
}  // namespace CLI

namespace attention::cli {

// The command line, read; shapes and rates still as text.
struct BenchFlags {
  std::string server;
  ConnectionFlags connection;
  int clients = 1;
  std::string rate;  // Empty: closed loop.
  int concurrency = 1;
  absl::Duration duration = absl::Seconds(10);
  absl::Duration warmup = absl::Seconds(1);
  absl::Duration timeout = absl::Seconds(10);
  int64_t max_open = 10'000;
  std::string shape = "S=128,T=128,H=8,D=64";
  std::string mix;  // Empty: shape alone.
  bool health = false;
  v1::DataType type = v1::DATA_TYPE_FLOAT32;
  v1::Causal causal = v1::CAUSAL_UNSPECIFIED;
  std::string json;  // A file, "-" standard output, empty: none.
  uint64_t seed = 1;
  bool no_check = false;
  // Whether to show progress on `err`.
  bool progress = false;
};

// Adds the command's flags but --server and those of ConnectionFlags to `app`,
// which reads into `flags`.
void AddBenchFlags(CLI::App& app, BenchFlags& flags);

// Measures; the table goes to `out`, or with --json=- the JSON instead.
// kWrongAnswer if an answer was wrong, kRefused or kNoAnswer if the server
// cannot be reached, refuses the call for other reasons than load, or answered
// none.
ExitCode RunBench(const BenchFlags& flags, std::ostream& out,
                  std::ostream& err);

}  // namespace attention::cli

#endif  // ATTENTION_CLIENT_CPP_CLI_BENCH_COMMAND_H_
