// The flags of `attention_client session`.
#ifndef ATTENTION_CLIENT_CPP_CLI_SESSION_FLAGS_H_
#define ATTENTION_CLIENT_CPP_CLI_SESSION_FLAGS_H_

#include <CLI/CLI.hpp>
#include <string>

#include "client/cpp/cli/session_command.h"

namespace attention::cli {

// Adds the command `session` with its verbs, which read into `flags`, and
// returns it. Each verb's help ends with `footer`.
CLI::App* AddSessionCommand(CLI::App& app, SessionFlags& flags,
                            const std::string& footer);

}  // namespace attention::cli

#endif  // ATTENTION_CLIENT_CPP_CLI_SESSION_FLAGS_H_
