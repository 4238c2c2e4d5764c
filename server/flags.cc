#include "server/flags.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "command_line/completion.h"
#include "command_line/duration.h"
#include "command_line/help.h"
#include "command_line/unknown_argument.h"
#include "server/parse_bytes.h"
#include "server/version.h"

namespace attention::server {
namespace {

constexpr char kProgram[] = "attention_server";

const command_line::OtherNames kOtherNames = {
    {"addr", "listen"},
    {"address", "listen"},
    {"bind", "listen"},
    {"endpoint", "listen"},
    {"grace", "shutdown-grace"},
    {"grace-period", "shutdown-grace"},
    {"grpc-port", "listen"},
    {"host", "listen"},
    {"http-port", "http-listen"},
    {"jobs", "threads"},
    {"max-message-size", "max-request-bytes"},
    {"metrics", "http-listen"},
    {"metrics-port", "http-listen"},
    {"num-threads", "threads"},
    {"port", "listen"},
    {"prometheus-port", "http-listen"},
    {"socket", "listen"},
    {"timeout", "default-deadline"},
    {"verbose", "log-level"},
    {"verbosity", "log-level"},
    {"workers", "threads"}};

// A flag whose text `parse` turns into `*target`.
template <typename T, typename Parse>
void AddParsed(CLI::App& app, const std::string& flag, T* target, Parse parse,
               const char* wanted, const char* help) {
  app.add_option_function<std::string>(
      flag,
      [=](const std::string& text) {
        if (parse(text, target)) return;
        throw CLI::ValidationError(
            flag, absl::StrCat("got \"", text, "\", wanted ", wanted));
      },
      help);
}

void AddDuration(CLI::App& app, const std::string& flag, absl::Duration* target,
                 const char* help) {
  AddParsed(
      app, flag, target,
      [](const std::string& text, absl::Duration* target) {
        const auto duration = command_line::ParseDuration(text);
        if (duration) *target = *duration;
        return duration.has_value();
      },
      command_line::kWantedDuration, help);
}

void AddFlags(CLI::App& app, Options& options) {
  app.add_option("--listen", options.listen,
                 "Address to serve on: host:port (port 0: any), [ip6]:port, "
                 "unix:path, unix-abstract:name; may be repeated or separated "
                 "by commas. Default: 127.0.0.1:50051")
      ->delimiter(',')
      ->allow_extra_args(false);
  app.add_option("--shared-memory", options.shared_memory,
                 "Unix socket where clients on this machine share memory, so "
                 "that tensors need not travel: unix:/path. Default: none");
  const auto integer = [](const std::string& text, int64_t* target) {
    return absl::SimpleAtoi(text, target);
  };
  AddParsed(app, "--threads", &options.threads, integer, "a number",
            "Threads that compute. Default: the number of cores");
  const auto add_bytes = [&app](const char* flag, int64_t* target,
                                const char* help) {
    AddParsed(app, flag, target, ParseBytes,
              "a number of bytes such as 1048576, 64MiB or 2GiB", help);
  };
  add_bytes("--max-request-bytes", &options.max_request_bytes,
            "Largest request message. Default: 320MiB");
  add_bytes("--max-response-bytes", &options.max_response_bytes,
            "Largest response message. Default: 320MiB");
  add_bytes("--max-chunk-bytes", &options.max_chunk_bytes,
            "Largest message of a stream after its header. Default: 8MiB");
  add_bytes(
      "--max-inflight-bytes", &options.max_inflight_bytes,
      "Memory for all calls at once, requests, answers and what computing "
      "takes; beyond it calls wait or are refused. Default: 2GiB");
  add_bytes("--max-pooled-bytes", &options.max_pooled_bytes,
            "Unused memory kept for the next requests. Default: 512MiB");
  add_bytes("--max-shared-bytes", &options.max_shared_bytes,
            "Memory that clients may share by --shared-memory, each at most "
            "half of it. Default: 8GiB");
  add_bytes("--max-session-bytes", &options.max_session_bytes,
            "Keys and values of all sessions. Default: 1GiB");
  AddParsed(app, "--max-sessions", &options.max_sessions, integer, "a number",
            "Sessions at once. Default: 65536");
  const auto add_duration = [&app](const char* flag, absl::Duration* target,
                                   const char* help) {
    AddDuration(app, flag, target, help);
  };
  add_duration("--max-session-lease", &options.max_session_lease,
               "Longest time that a session may live unused. Default: 1h");
  add_duration("--max-queue", &options.max_queue,
               "Longest wait before a call is refused instead. Default: 2s");
  add_duration("--default-deadline", &options.default_deadline,
               "Deadline of calls that come without one. Default: 10m");
  add_bytes("--min-upload-rate", &options.min_upload_rate,
            "Slowest upload that is borne, per second. Default: 64KiB");
  add_bytes("--min-answer-rate", &options.min_answer_rate,
            "Slowest taking of an answer that is borne, per second. Default: "
            "64KiB");
  add_duration("--stall-grace", &options.stall_grace,
               "How long an upload or an answer may stand still. Default: 10s");
  AddParsed(app, "--max-connections", &options.max_connections, integer,
            "a number",
            "Connections open at once; more wait. Default: 10000, or what the "
            "limit of descriptors (ulimit -n) leaves");
  add_duration("--handshake-timeout", &options.handshake_timeout,
               "How long a new connection may say nothing. Default: 10s");
  add_duration("--max-connection-idle", &options.max_connection_idle,
               "Closes a connection without calls after so long. Default: 10m");
  add_duration("--max-connection-age", &options.max_connection_age,
               "Tells a client to connect anew after so long. Default: inf");
  add_duration("--max-connection-age-grace", &options.max_connection_age_grace,
               "How long calls may go on after that. Default: 10m");
  add_duration(
      "--drain-delay", &options.drain_delay,
      "How long calls are still taken after SIGTERM, while health says "
      "NOT_SERVING. Default: 0s");
  add_duration("--shutdown-grace", &options.shutdown_grace,
               "How long running calls may go on after that. Default: 30s");
  add_bytes("--max-header-bytes", &options.max_header_bytes,
            "Largest headers of a call. Default: 64KiB");
  add_duration("--min-ping-interval", &options.min_ping_interval,
               "Least time between a client's pings. Default: 4s");
  app.add_option("--log-level", options.log_level,
                 "What is logged: debug adds a line for each request, info one "
                 "for each failed one. Default: info")
      ->transform(
          [](const std::string& text) { return absl::AsciiStrToLower(text); })
      ->type_name("trace|debug|info|warning|error|off");
  add_bytes("--log-buffer-bytes", &options.log_buffer_bytes,
            "Log lines that may wait for the reader of standard error; beyond "
            "it they are dropped and counted. Default: 1MiB");
  AddParsed(app, "--log-lines-per-second", &options.log_lines_per_second,
            integer, "a number",
            "Lines per second for each kind of failed request; 0: all. "
            "Default: 10");
}

// What one call may ask for.
void AddLimitFlags(CLI::App& app, Options& options) {
  const auto add = [&app](const char* flag, int64_t* target, const char* help) {
    AddParsed(
        app, flag, target,
        [](const std::string& text, int64_t* target) {
          return absl::SimpleAtoi(text, target);
        },
        "a number", help);
  };
  add("--max-head-size", &options.max_head_size,
      "Largest head size of query, key and value. Default: 4096");
  add("--max-heads", &options.max_heads, "Most query heads. Default: 65536");
  add("--max-batch", &options.max_batch,
      "Largest batch or number of ragged sequences. Default: 131072");
  add("--max-batch-heads", &options.max_batch_heads,
      "Most batch entries or sequences times key/value heads. Default: "
      "1048576");
  add("--max-work", &options.max_work,
      "Most work of one call, in multiply-adds. Default: 35184372088832, ten "
      "minutes of a thread");
}

void AddHttpFlags(CLI::App& app, Options& options) {
  app.add_option("--http-listen", options.http_listen,
                 "Address of an HTTP listener with a page at /, calls in JSON "
                 "at /v1/ and /v2, /metrics, /livez and /readyz: host:port "
                 "(port 0: any) or [ip6]:port. Default: none");
  AddParsed(
      app, "--http-max-connections", &options.http_max_connections,
      [](const std::string& text, int64_t* target) {
        return absl::SimpleAtoi(text, target);
      },
      "a number",
      "HTTP connections at once; one more closes the one that has gone longest "
      "without finishing a request. Default: 64");
  AddDuration(
      app, "--http-timeout", &options.http_timeout,
      "How long an HTTP client may take for a request and its answer, and stay "
      "idle. Default: 10s");
  AddParsed(app, "--http-max-body-bytes", &options.http_max_body_bytes,
            ParseBytes, "a number of bytes such as 1048576, 64MiB or 2GiB",
            "Largest body of an HTTP request, and largest answer as a message. "
            "Default: 8MiB");
  app.add_option("--http-allow-origin", options.http_allow_origins,
                 "Origin whose pages may call over HTTP from a browser, such "
                 "as https://a.example, or *; may be repeated. Default: none")
      ->allow_extra_args(false);
}

// Permissions in octal digits.
bool ParseMode(absl::string_view text, std::optional<uint32_t>* mode) {
  if (text.empty() || text.size() > 4) return false;
  uint32_t value = 0;
  for (char digit : text) {
    if (digit < '0' || digit > '7') return false;
    value = 8 * value + (digit - '0');
  }
  if (value > 0777) return false;
  *mode = value;
  return true;
}

void AddCallerFlags(CLI::App& app, Options& options) {
  app.add_option("--tls-cert", options.tls_cert,
                 "PEM file with the server's certificate, and those between it "
                 "and the root; read again when it changes. Default: none");
  app.add_option("--tls-key", options.tls_key,
                 "PEM file with the certificate's key. Default: none");
  app.add_option("--tls-client-ca", options.tls_client_ca,
                 "PEM file with root certificates: clients must then show a "
                 "certificate of theirs. Default: none");
  app.add_option(
      "--tokens", options.tokens,
      "File with a line per token: its SHA-256, the tenant, and what "
      "that may take; every call then needs one. Read again when it "
      "changes. Default: none");
  app.add_flag("--open-health", options.open_health,
               "Answers health checks without a token, too. Default: off");
  app.add_flag("--allow-plaintext", options.allow_plaintext,
               "Serves without encryption on addresses that other machines can "
               "reach, too. Default: off");
  AddParsed(app, "--unix-socket-mode", &options.unix_socket_mode, ParseMode,
            "permissions in octal such as 660",
            "Permissions of the files of Unix sockets. Default: 777");
}

// CLI11's own texts may have several lines.
std::string OneLine(std::string text) {
  absl::StripAsciiWhitespace(&text);
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text;
}

}  // namespace

Invocation ParseFlags(int argc, const char* const* argv) {
  Invocation invocation;
  Options options;
  CLI::App app("Serves attention over gRPC.", kProgram);
  command_line::KeepFooters(app);
  app.set_version_flag("--version", absl::StrCat(kProgram, " ", kVersion));
  AddFlags(app, options);
  AddLimitFlags(app, options);
  AddHttpFlags(app, options);
  AddCallerFlags(app, options);
  // An empty name of a file must not mean that none was given.
  for (CLI::Option* option : app.get_options()) {
    if (option->get_expected_max() == 0) continue;
    option->check([](const std::string& text) {
      return text.empty() ? std::string("got an empty value") : std::string();
    });
  }
  std::string shell;
  const CLI::App* completion = command_line::AddCompletionCommand(app, shell);
  if (const auto error = command_line::EmptyValue(argc, argv)) {
    invocation.standard_error =
        absl::StrCat(kProgram, ": ", *error, " (see --help)\n");
    invocation.exit_code = 2;
    return invocation;
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    invocation.standard_output = app.help();
    return invocation;
  } catch (const CLI::CallForVersion&) {
    invocation.standard_output = absl::StrCat(kProgram, " ", kVersion, "\n");
    return invocation;
  } catch (const CLI::ParseError& error) {
    const auto unknown = command_line::UnknownArgument(app, kOtherNames);
    invocation.standard_error =
        absl::StrCat(kProgram, ": ", OneLine(unknown.value_or(error.what())),
                     unknown ? " (see --help)\n" : "\n");
    invocation.exit_code = 2;
    return invocation;
  }
  if (completion->parsed()) {
    invocation.standard_output = command_line::CompletionScript(app, shell);
    return invocation;
  }
  for (const std::string& error : Validate(options)) {
    absl::StrAppend(&invocation.standard_error, kProgram, ": ", error, "\n");
    invocation.exit_code = 2;
  }
  if (invocation.exit_code == 0) invocation.options = std::move(options);
  return invocation;
}

}  // namespace attention::server
