// `attention_client session VERB`.
#ifndef ATTENTION_CLIENT_CPP_CLI_SESSION_COMMAND_H_
#define ATTENTION_CLIENT_CPP_CLI_SESSION_COMMAND_H_

#include <cstdint>
#include <optional>
#include <ostream>
#include <string>

#include "absl/time/time.h"
#include "attention/v1/attention.pb.h"
#include "attention/v1/session.pb.h"
#include "client/cpp/cli/connection_flags.h"
#include "client/cpp/cli/report.h"

namespace attention::cli {

// The command line of one verb, read; tensors and targets still as text.
struct SessionFlags {
  using Run = ExitCode (*)(const SessionFlags& flags, std::ostream& out,
                           std::ostream& err);
  // Of the verb; null if there was none.
  Run run = nullptr;

  std::string server;
  ConnectionFlags connection;
  // The second is of the verbs that have tensors.
  absl::Duration timeout = absl::Seconds(5);
  absl::Duration tensor_timeout = absl::InfiniteDuration();

  // Empty: the server chooses.
  std::string id;
  v1::SessionConfig config;

  int64_t layer = 0;
  std::optional<int64_t> expected_length;
  // Literals or files; empty: absent.
  std::string key;
  std::string value;
  std::string query;
  std::string mask;
  std::string indices;
  std::string row_sinks;
  // What numbers in literals become, the mask's excepted.
  v1::DataType literal_type = v1::DATA_TYPE_FLOAT32;
  v1::AttentionOptions options;
  bool not_causal = false;
  // Files; empty: standard output.
  std::string output_file;
  std::string log_sum_exp_file;
  std::string scores_file;

  // fork: the new session's; empty: the server chooses.
  std::string target;
  // truncate.
  int64_t length = 0;
};

// Each makes its call and prints what came of it. Errors go to `err`, a line
// each.

// The session's id.
ExitCode RunSessionCreate(const SessionFlags& flags, std::ostream& out,
                          std::ostream& err);
// The layer's length.
ExitCode RunSessionAppend(const SessionFlags& flags, std::ostream& out,
                          std::ostream& err);
// The tensors of the answer, as compute.
ExitCode RunSessionAttend(const SessionFlags& flags, std::ostream& out,
                          std::ostream& err);
// The new session's id.
ExitCode RunSessionFork(const SessionFlags& flags, std::ostream& out,
                        std::ostream& err);
// Nothing.
ExitCode RunSessionTruncate(const SessionFlags& flags, std::ostream& out,
                            std::ostream& err);
ExitCode RunSessionDelete(const SessionFlags& flags, std::ostream& out,
                          std::ostream& err);
// A line per session.
ExitCode RunSessionList(const SessionFlags& flags, std::ostream& out,
                        std::ostream& err);
// All that the server tells of a session.
ExitCode RunSessionShow(const SessionFlags& flags, std::ostream& out,
                        std::ostream& err);

}  // namespace attention::cli

#endif  // ATTENTION_CLIENT_CPP_CLI_SESSION_COMMAND_H_
