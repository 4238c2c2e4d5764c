#include "client/cpp/cli/command_line.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <iostream>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/time.h"
#include "attention/client.h"
#include "client/cpp/cli/bench_command.h"
#include "client/cpp/cli/common_flags.h"
#include "client/cpp/cli/compute_command.h"
#include "client/cpp/cli/connection_flags.h"
#include "client/cpp/cli/flag_types.h"
#include "client/cpp/cli/report.h"
#include "client/cpp/cli/session_command.h"
#include "client/cpp/cli/session_flags.h"
#include "command_line/completion.h"
#include "command_line/help.h"
#include "command_line/unknown_argument.h"

namespace attention::cli {
namespace {

constexpr char kFooter[] =
    "Exit codes: 0 done (health: serving); 1 wrong command line, input or "
    "output file;\n2 the server refused (health: not serving); 3 no answer: "
    "unreachable, draining or timed out.";

const command_line::OtherNames kOtherNames = {{"addr", "server"},
                                              {"address", "server"},
                                              {"attention-mask", "mask"},
                                              {"attn-mask", "mask"},
                                              {"deadline", "timeout"},
                                              {"dtype", "type"},
                                              {"endpoint", "server"},
                                              {"host", "server"},
                                              {"is-causal", "causal"},
                                              {"k", "key"},
                                              {"key-value-heads", "kv-heads"},
                                              {"logit-cap", "softcap"},
                                              {"lse", "log-sum-exp"},
                                              {"num-heads", "query-heads"},
                                              {"num-kv-heads", "kv-heads"},
                                              {"num-layers", "layers"},
                                              {"o", "output"},
                                              {"out", "output"},
                                              {"port", "server"},
                                              {"q", "query"},
                                              {"session", "id"},
                                              {"session-id", "id"},
                                              {"sliding-window", "window"},
                                              {"target", "server"},
                                              {"url", "server"},
                                              {"v", "value"}};

constexpr char kComputeFooter[] =
    "TENSOR is a literal such as \"[[1, 0], [0, 1]]\" (numbers, inf, -inf, "
    "NaN; true and false\ngive BOOL; also as numpy and torch print it), "
    "file.npy, file.safetensors,\nfile.safetensors:name, or - for a literal or "
    ".npy on standard input.\nFILE is file.npy, file.safetensors or "
    "file.safetensors:name; several outputs may share\none .safetensors "
    "file, and tensors that it holds already stay.\n\n"
    "Example:\n  attention_client compute --query=\"[[1,0],[0,1]]\" "
    "--key=\"[[1,0],[0,1]]\" \\\n    --value=\"[[1,0],[0,1]]\" --explain";

const Names<v1::Layout> kLayouts = {{"matrix", v1::LAYOUT_MATRIX},
                                    {"packed", v1::LAYOUT_PACKED},
                                    {"bhsd", v1::LAYOUT_BHSD},
                                    {"bshd", v1::LAYOUT_BSHD},
                                    {"ragged", v1::LAYOUT_RAGGED}};
void AddTensors(CLI::App& app, ComputeFlags& flags) {
  const auto add = [&](const char* name, std::string& text, const char* help) {
    return app.add_option(name, text, help)
        ->type_name("TENSOR")
        ->group("Tensors");
  };
  add("--query", flags.query, "What asks: (S, D) or as --layout says")
      ->required();
  add("--key", flags.key, "What is asked: (L, D)")->required();
  add("--value", flags.value, "What is weighted and summed: (L, Dv)")
      ->required();
  add("--mask", flags.mask,
      "BOOL: true attends; numbers, of any type: added to the scores");
  add("--past-key", flags.past_key, "Keys before --key: (B, Hkv, P, D)");
  add("--past-value", flags.past_value,
      "Values before --value: (B, Hkv, P, Dv)");
  add("--indices", flags.indices,
      "The keys that each query sees, -1 for none: (B, S, k), or (B, Hq, S, "
      "k)");
  add("--row-sinks", flags.row_sinks,
      "A sink for each row in place of --sinks: (B, Hq, S)");
  AddEnum(
      app, "--type", kFloatTypes,
      [&](v1::DataType type) { flags.literal_type = type; },
      "Element type of numbers in literals without dtype=, the mask's excepted "
      "[float32]")
      ->group("Tensors");
}

auto SetVector(std::vector<int64_t>& vector) {
  return [&vector](const std::vector<int64_t>& numbers) -> std::string {
    vector = numbers;
    return "";
  };
}

void AddShapeOptions(CLI::App& app, ComputeFlags& flags) {
  v1::AttentionOptions& options = flags.options;
  AddEnum(
      app, "--layout", kLayouts,
      [&](v1::Layout layout) { options.set_layout(layout); },
      "Axes of the tensors [by the query's rank: 2 matrix, 3 packed, 4 bhsd]");
  app.add_option_function<int64_t>(
      "--query-heads", [&](int64_t n) { options.set_query_heads(n); },
      "Query heads; needed with packed");
  app.add_option_function<int64_t>(
      "--kv-heads", [&](int64_t n) { options.set_kv_heads(n); },
      "Key/value heads; needed with packed");
  AddList<int64_t>(app, "--valid-lengths", SetVector(flags.valid_lengths),
                   "Per batch: keys at and past this are masked");
  AddList<int64_t>(app, "--query-starts", SetVector(flags.query_starts),
                   "ragged: where each sequence's queries start, and the end");
  AddList<int64_t>(app, "--key-starts", SetVector(flags.key_starts),
                   "ragged: where each sequence's keys start, and the end");
}

void AddResults(CLI::App& app, ComputeFlags& flags) {
  v1::AttentionOptions& options = flags.options;
  AddResultFlags(
      app, options,
      {flags.output_file, flags.log_sum_exp_file, flags.scores_file});
  CLI::Option* present =
      app.add_flag_function(
             "--present", [&](int64_t) { options.set_return_present(true); },
             "Also past and new keys and values, joined")
          ->group("Results");
  const auto file = [&](const char* name, std::string& path) {
    app.add_option(name, path, "[printed]")
        ->type_name("FILE")
        ->group("Results")
        ->needs(present);
  };
  file("--present-key-output", flags.present_key_file);
  file("--present-value-output", flags.present_value_file);
}

void AddExplain(CLI::App& app, ComputeFlags& flags) {
  CLI::Option* explain =
      app.add_flag("--explain", flags.explain,
                   "Show the four steps of one head as tables")
          ->group("Explain")
          ->excludes("--scores");
  const auto index = [&](const char* name, int64_t& number, const char* help) {
    app.add_option(name, number, help)
        ->capture_default_str()
        ->group("Explain")
        ->needs(explain);
  };
  index("--batch", flags.batch, "Which batch");
  index("--head", flags.head, "Which query head");
  app.add_flag("--ascii", flags.ascii, "Shade without Unicode")
      ->group("Explain")
      ->needs(explain);
}

ExitCode Fail(const absl::Status& status, std::ostream& err) {
  err << "attention_client: " << Describe(status) << "\n";
  return ExitCodeOf(status);
}

ExitCode RunHealth(const absl::StatusOr<Connection>& connection,
                   const std::string& service, absl::Duration timeout,
                   std::ostream& out, std::ostream& err) {
  if (!connection.ok()) return BadInput(connection.status(), err);
  // Who asks has pauses of his own.
  const Client client(connection->WithMaxAttempts(1));
  absl::StatusOr<Health> health =
      client.CheckHealth(service, {.timeout = timeout});
  if (!health.ok()) return Fail(health.status(), err);
  switch (*health) {
    case Health::kServing:
      out << "SERVING\n";
      return kSuccess;
    case Health::kNotServing:
      err << "attention_client: NOT_SERVING\n";
      return kRefused;
    case Health::kUnknown:
      break;
  }
  err << "attention_client: health is UNKNOWN\n";
  return kRefused;
}

// "FLOAT32 FLOAT16": names without the prefix they share.
template <typename Values, typename Name>
std::string JoinNames(const Values& values, const char* prefix, Name name) {
  std::vector<std::string> names;
  for (const int value : values) {
    const std::string full(name(value));
    names.push_back(full.empty() ? absl::StrCat(value)
                                 : full.substr(std::string(prefix).size()));
  }
  return absl::StrJoin(names, " ");
}

ExitCode RunInfo(const absl::StatusOr<Connection>& connection,
                 absl::Duration timeout, std::ostream& out, std::ostream& err) {
  if (!connection.ok()) return BadInput(connection.status(), err);
  absl::StatusOr<v1::GetCapabilitiesResponse> answer =
      Client(*connection).GetCapabilities({.timeout = timeout});
  if (!answer.ok()) return Fail(answer.status(), err);
  out << "version             " << OneLine(answer->version())
      << "\nSIMD target         " << OneLine(answer->simd_target())
      << "\nthreads             " << answer->threads()
      << "\ntypes               "
      << JoinNames(answer->data_types(), "DATA_TYPE_", v1::DataType_Name<int>)
      << "\nmath modes          "
      << JoinNames(answer->math_modes(), "MATH_MODE_", v1::MathMode_Name<int>)
      << "\nmax request bytes   " << answer->max_request_bytes()
      << "\nmax response bytes  " << answer->max_response_bytes()
      << "\nkeys a block        " << answer->key_block()
      << "\nmax head size       " << answer->max_head_size()
      << "\nmax heads           " << answer->max_heads()
      << "\nmax batch           " << answer->max_batch()
      << "\nmax batch * heads   " << answer->max_batch_heads()
      << "\nmax multiply-adds   " << answer->max_work()
      << "\nmax chunk bytes     " << answer->max_chunk_bytes()
      << "\nshared memory       "
      << (answer->shared_memory().empty() ? "none"
                                          : OneLine(answer->shared_memory()))
      << "\n";
  return kSuccess;
}

// Whether `err` is a terminal, on which a line can be written anew.
bool ShowsProgress(const std::ostream& err) {
  return &err == &std::cerr && isatty(STDERR_FILENO) == 1;
}

}  // namespace

int Run(int argc, const char* const* argv, bool utf8, std::ostream& out,
        std::ostream& err) {
  CLI::App app("Attention over the network: calls an attention_server.",
               "attention_client");
  app.set_version_flag("--version", ATTENTION_VERSION);
  app.require_subcommand(0, 1);
  app.footer(kFooter);
  app.get_formatter()->column_width(36);
  command_line::KeepFooters(app);

  ComputeFlags flags;
  flags.server = kDefaultServer;
  flags.ascii = !utf8;
  flags.progress = ShowsProgress(err);
  CLI::App& compute =
      *app.add_subcommand("compute", "Compute attention over given tensors");
  AddConnection(compute, flags.server, flags.connection, flags.timeout,
                "no limit");
  AddMaxAttempts(compute, flags.connection);
  AddTensors(compute, flags);
  AddShapeOptions(compute, flags);
  AddScoreOptions(compute, flags.options);
  AddResults(compute, flags);
  AddExplain(compute, flags);
  compute.footer(absl::StrCat(kComputeFooter, "\n\n", kFooter));

  std::string server = kDefaultServer;
  ConnectionFlags connection;
  std::string service;
  absl::Duration timeout = absl::Seconds(5);
  CLI::App& health =
      *app.add_subcommand("health", "Exit with 0 if the server is serving");
  AddConnection(health, server, connection, timeout, "5s");
  health
      .add_option("--service", service,
                  "Full name of one service [empty: the whole server]")
      ->type_name("NAME")
      ->expected(0, 1);
  health.footer(kFooter);
  CLI::App& info =
      *app.add_subcommand("info", "Show the server's limits, types and build");
  AddConnection(info, server, connection, timeout, "5s");
  AddMaxAttempts(info, connection);
  info.footer(kFooter);
  BenchFlags load;
  load.server = kDefaultServer;
  load.progress = ShowsProgress(err);
  CLI::App& bench = *app.add_subcommand(
      "bench", "Send load and measure how the server fares");
  AddServer(bench, load.server, load.connection);
  AddBenchFlags(bench, load);

  SessionFlags session_flags;
  const CLI::App& session = *AddSessionCommand(app, session_flags, kFooter);

  std::string shell;
  const CLI::App& completion = *command_line::AddCompletionCommand(app, shell);

  try {
    if (const auto error = command_line::EmptyValue(argc, argv, "--service")) {
      err << "attention_client: " << *error << " (see --help)\n";
      return kBadInput;
    }
    app.parse(argc, argv);
  } catch (const CLI::Success& request) {  // --help, --version
    app.exit(request, out, err);
    return kSuccess;
  } catch (const CLI::Error& error) {
    const auto unknown = command_line::UnknownArgument(app, kOtherNames);
    err << "attention_client: " << OneLine(unknown.value_or(error.what()))
        << " (see --help)\n";
    return kBadInput;
  }
  if (compute.parsed()) return RunCompute(flags, out, err);
  if (health.parsed()) {
    return RunHealth(Connect(server, connection), service, timeout, out, err);
  }
  if (info.parsed()) {
    return RunInfo(Connect(server, connection), timeout, out, err);
  }
  if (bench.parsed()) return RunBench(load, out, err);
  if (session.parsed()) {
    if (session_flags.run != nullptr)
      return session_flags.run(session_flags, out, err);
    err << "attention_client: session: got no command, wanted create, append, "
           "attend, fork, truncate, list, show or delete (see --help)\n";
    return kBadInput;
  }
  if (completion.parsed()) {
    out << command_line::CompletionScript(app, shell);
    return kSuccess;
  }
  err << "attention_client: got no command, wanted compute, health, info, "
         "bench, session or completion (see --help)\n";
  return kBadInput;
}

}  // namespace attention::cli
