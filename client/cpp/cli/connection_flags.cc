#include "client/cpp/cli/connection_flags.h"

#include <CLI/CLI.hpp>
#include <cstdlib>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"

namespace attention::cli {
namespace {

constexpr char kTokenVariable[] = "ATTENTION_TOKEN";

// "tls_ca: ..." as the flag that stands for the option: "--tls-ca: ...".
absl::Status InTermsOfFlags(const absl::Status& status) {
  const std::string message(status.message());
  const size_t colon = message.find(':');
  const std::string option = message.substr(0, colon);
  return absl::InvalidArgumentError(absl::StrCat(
      option == "token"
          ? kTokenVariable
          : absl::StrCat("--", absl::StrReplaceAll(option, {{"_", "-"}})),
      message.substr(colon)));
}

}  // namespace

void AddConnectionFlags(CLI::App& app, ConnectionFlags& flags) {
  const auto file = [&](const char* name, std::string& path, const char* help) {
    return app.add_option(name, path, help)
        ->type_name("FILE")
        ->group("Connection");
  };
  app.add_flag("--tls", flags.tls,
               "Encrypt; trust the authorities that the system trusts")
      ->group("Connection");
  file("--tls-ca", flags.tls_ca,
       "Encrypt; trust the authorities in this PEM file instead");
  CLI::Option* certificate =
      file("--tls-cert", flags.tls_cert,
           "The client's own certificate, where the server asks for one");
  CLI::Option* key = file("--tls-key", flags.tls_key, "Its private key");
  certificate->needs(key);
  key->needs(certificate);
  file("--token-file", flags.token_file,
       "Who calls: a file with the token on one line [variable "
       "ATTENTION_TOKEN]");
  // Not shown: for those who try it, and for what they typed to be shown to
  // nobody.
  app.add_option_function<std::string>(
         "--token",
         [](const std::string&) {
           throw CLI::ValidationError(
               "--token",
               "others can read a command line: wanted --token-file=FILE or "
               "the variable ATTENTION_TOKEN");
         })
      ->group("");
  app.add_flag("--allow-plaintext-token", flags.allow_plaintext_token,
               "Send the token without TLS beyond loopback too, for others to "
               "read")
      ->group("Connection");
  app.add_flag("--no-shared-memory", flags.no_shared_memory,
               "Send tensors to a server on this machine too that offers to "
               "share memory")
      ->group("Connection");
}

absl::StatusOr<Connection> Connect(const std::string& server,
                                   const ConnectionFlags& flags,
                                   const grpc::ChannelArguments& arguments) {
  ClientOptions options;
  options.tls = flags.tls;
  options.tls_ca = flags.tls_ca;
  options.tls_cert = flags.tls_cert;
  options.tls_key = flags.tls_key;
  options.token_file = flags.token_file;
  options.allow_plaintext_token = flags.allow_plaintext_token;
  options.use_shared_memory = !flags.no_shared_memory;
  options.max_attempts = flags.max_attempts;
  options.arguments = arguments;
  if (const char* token = std::getenv(kTokenVariable);
      options.token_file.empty() && token != nullptr) {
    options.token = token;
  }
  absl::StatusOr<Connection> connection = Connection::Make(server, options);
  if (!connection.ok()) return InTermsOfFlags(connection.status());
  return connection;
}

}  // namespace attention::cli
