// Flags that several commands have. Each function adds flags to `app`, which
// reads into the other arguments: they must outlive it.
#ifndef ATTENTION_CLIENT_CPP_CLI_COMMON_FLAGS_H_
#define ATTENTION_CLIENT_CPP_CLI_COMMON_FLAGS_H_

#include <CLI/CLI.hpp>
#include <string>

#include "absl/time/time.h"
#include "attention/v1/attention.pb.h"
#include "client/cpp/cli/connection_flags.h"

namespace attention::cli {

inline constexpr char kDefaultServer[] = "127.0.0.1:50051";

// --server, TLS and token.
void AddServer(CLI::App& app, std::string& server, ConnectionFlags& connection);

// The same, and --timeout; `default_timeout` is what its help says.
void AddConnection(CLI::App& app, std::string& server,
                   ConnectionFlags& connection, absl::Duration& timeout,
                   const std::string& default_timeout);

// --max-attempts. Not of commands that ask how the server fares.
void AddMaxAttempts(CLI::App& app, ConnectionFlags& connection);

// What becomes of the scores: --scale to --softmax-precision.
void AddScoreOptions(CLI::App& app, v1::AttentionOptions& options);

// --output, --log-sum-exp, --scores, and the files that they go to; empty:
// standard output.
struct ResultFiles {
  std::string& output;
  std::string& log_sum_exp;
  std::string& scores;
};
void AddResultFlags(CLI::App& app, v1::AttentionOptions& options,
                    const ResultFiles& files);

}  // namespace attention::cli

#endif  // ATTENTION_CLIENT_CPP_CLI_COMMON_FLAGS_H_
