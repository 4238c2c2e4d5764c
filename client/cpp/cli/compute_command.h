// `attention_client compute`.
#ifndef ATTENTION_CLIENT_CPP_CLI_COMPUTE_COMMAND_H_
#define ATTENTION_CLIENT_CPP_CLI_COMPUTE_COMMAND_H_

#include <cstdint>
#include <ostream>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "attention/tensor.h"
#include "client/cpp/cli/connection_flags.h"
#include "client/cpp/cli/report.h"

namespace attention::cli {

// The command line, read; tensors and targets still as text.
struct ComputeFlags {
  std::string server;
  ConnectionFlags connection;
  absl::Duration timeout = absl::InfiniteDuration();

  // Literals or files; empty: absent.
  std::string query;
  std::string key;
  std::string value;
  std::string mask;
  std::string past_key;
  std::string past_value;
  std::string indices;
  std::string row_sinks;
  // What numbers in literals become, the mask's excepted.
  v1::DataType literal_type = v1::DATA_TYPE_FLOAT32;

  std::vector<int64_t> valid_lengths;
  std::vector<int64_t> query_starts;
  std::vector<int64_t> key_starts;
  v1::AttentionOptions options;

  // Files; empty: standard output.
  std::string output_file;
  std::string log_sum_exp_file;
  std::string scores_file;
  std::string present_key_file;
  std::string present_value_file;

  bool explain = false;
  bool ascii = false;
  int64_t batch = 0;
  int64_t head = 0;

  // Whether errors go to a terminal, which shows how far a large request is.
  bool progress = false;
};

// How far a request is that is being sent, in at most 79 columns:
// "[####......] 2.1 of 5.0 GiB  1.3 GiB/s".
std::string SendingLine(int64_t sent, int64_t total,
                        absl::Duration since_start);

// Reads the tensors, calls the server, writes what came. Errors go to `err`, a
// line each.
ExitCode RunCompute(const ComputeFlags& flags, std::ostream& out,
                    std::ostream& err);

}  // namespace attention::cli

#endif  // ATTENTION_CLIENT_CPP_CLI_COMPUTE_COMMAND_H_
