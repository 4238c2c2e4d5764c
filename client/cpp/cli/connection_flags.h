// TLS and token: flags that every command has.
#ifndef ATTENTION_CLIENT_CPP_CLI_CONNECTION_FLAGS_H_
#define ATTENTION_CLIENT_CPP_CLI_CONNECTION_FLAGS_H_

#include <string>

#include "absl/status/statusor.h"
#include "attention/connection.h"

namespace CLI {
class App;
}  // namespace CLI

namespace attention::cli {

// The command line, read; files not yet.
struct ConnectionFlags {
  bool tls = false;
  std::string tls_ca;
  std::string tls_cert;
  std::string tls_key;
  std::string token_file;
  bool allow_plaintext_token = false;
  bool no_shared_memory = false;
  int max_attempts = kDefaultMaxAttempts;
};

// Adds --tls, --tls-ca, --tls-cert, --tls-key, --token-file,
// --allow-plaintext-token and --no-shared-memory to `app`, which reads into
// `flags`.
void AddConnectionFlags(CLI::App& app, ConnectionFlags& flags);

// The connection to `server` that the flags ask for, and `arguments`. Without
// --token-file the token is that of the variable ATTENTION_TOKEN, if it is set.
// INVALID_ARGUMENT, which names the flag or the variable, if it cannot be used.
absl::StatusOr<Connection> Connect(
    const std::string& server, const ConnectionFlags& flags,
    const grpc::ChannelArguments& arguments = {});

}  // namespace attention::cli

#endif  // ATTENTION_CLIENT_CPP_CLI_CONNECTION_FLAGS_H_
