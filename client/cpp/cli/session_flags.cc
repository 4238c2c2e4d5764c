#include "client/cpp/cli/session_flags.h"

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "client/cpp/cli/common_flags.h"
#include "client/cpp/cli/flag_types.h"
#include "command_line/duration.h"

namespace attention::cli {
namespace {

constexpr char kExample[] =
    "Example:\n"
    "  attention_client session create --id=story --kv-heads=1 --head-size=2\n"
    "  attention_client session append --id=story --key=\"[[[1,0],[0,1]]]\" "
    "\\\n"
    "    --value=\"[[[1,0],[0,1]]]\"\n"
    "  attention_client session attend --id=story --query=\"[[[0,1]]]\"";

// Adds verbs to one command.
class Verbs {
 public:
  Verbs(CLI::App& session, SessionFlags& flags, std::string footer)
      : session_(session), flags_(flags), footer_(std::move(footer)) {}

  // One without tensors, whose answers come at once.
  CLI::App& Add(const char* name, const char* help, SessionFlags::Run run) {
    return Add(name, help, run, flags_.timeout, "5s");
  }
  CLI::App& AddWithTensors(const char* name, const char* help,
                           SessionFlags::Run run) {
    CLI::App& verb = Add(name, help, run, flags_.tensor_timeout, "no limit");
    AddId(verb);
    verb.add_option("--layer", flags_.layer, "Which layer")
        ->capture_default_str();
    verb.add_option_function<int64_t>(
        "--expected-length",
        [&flags = flags_](int64_t n) { flags.expected_length = n; },
        "Do it only if the layer has so many tokens");
    AddEnum(
        verb, "--type", kFloatTypes,
        [&flags = flags_](v1::DataType type) { flags.literal_type = type; },
        "Element type of numbers in literals without dtype=, the mask's "
        "excepted [float32]")
        ->group("Tensors");
    return verb;
  }
  void AddId(CLI::App& verb) {
    verb.add_option("--id", flags_.id, "The session's id")
        ->type_name("ID")
        ->required();
  }
  static CLI::Option* AddTensor(CLI::App& verb, const char* name,
                                std::string& text, const char* help) {
    return verb.add_option(name, text, help)
        ->type_name("TENSOR")
        ->group("Tensors");
  }

 private:
  CLI::App& Add(const char* name, const char* help, SessionFlags::Run run,
                absl::Duration& timeout, const char* default_timeout) {
    CLI::App& verb = *session_.add_subcommand(name, help);
    verb.callback([&flags = flags_, run] { flags.run = run; });
    verb.footer(footer_);
    AddConnection(verb, flags_.server, flags_.connection, timeout,
                  default_timeout);
    AddMaxAttempts(verb, flags_.connection);
    return verb;
  }

  CLI::App& session_;
  SessionFlags& flags_;
  const std::string footer_;
};

void AddCreate(Verbs& verbs, SessionFlags& flags) {
  CLI::App& create = verbs.Add("create", "Make a session, and print its id",
                               &RunSessionCreate);
  v1::SessionConfig& config = flags.config;
  create.add_option("--id", flags.id, "Its id [the server chooses]")
      ->type_name("ID");
  const auto number = [&](const char* name, auto set, const char* help) {
    return create.add_option_function<int64_t>(name, set, help);
  };
  number(
      "--layers", [&](int64_t n) { config.set_num_layers(n); },
      "Layers of the model [1]");
  number(
      "--kv-heads", [&](int64_t n) { config.set_kv_heads(n); },
      "Key/value heads, Hkv")
      ->required();
  number(
      "--head-size", [&](int64_t n) { config.set_head_size(n); },
      "Size of a key, D")
      ->required();
  number(
      "--value-head-size", [&](int64_t n) { config.set_value_head_size(n); },
      "Size of a value, Dv [D]");
  AddEnum(
      create, "--type", kStoredTypes,
      [&](v1::DataType type) { config.set_data_type(type); },
      "What keys and values are stored as [float32]");
  create.add_flag_function(
      "--value-is-key-prefix",
      [&](int64_t) { config.set_value_is_key_prefix(true); },
      "Values are the first Dv columns of keys");
  AddList<int64_t>(
      create, "--retain-window",
      [&](const std::vector<int64_t>& windows) -> std::string {
        config.mutable_retain_window()->Assign(windows.begin(), windows.end());
        return "";
      },
      "The last tokens that a query sees, in all layers or in each of them: "
      "others are released; 0 keeps all [0]")
      ->type_name("N[,N...]");
  number(
      "--rollback-tokens", [&](int64_t n) { config.set_rollback_tokens(n); },
      "Tokens kept beside those of a window, to be truncated [256]");
  AddText(
      create, "--lease",
      [&](const std::string& text) -> std::string {
        const auto lease = command_line::ParseDuration(text);
        if (!lease || *lease <= absl::ZeroDuration() ||
            *lease == absl::InfiniteDuration()) {
          return absl::StrCat(command_line::kWantedDuration, ", above 0");
        }
        const int64_t seconds = absl::ToInt64Seconds(*lease);
        config.mutable_lease()->set_seconds(seconds);
        config.mutable_lease()->set_nanos(static_cast<int32_t>(
            absl::ToInt64Nanoseconds(*lease - absl::Seconds(seconds))));
        return "";
      },
      "How long it lives unused [1m]", "TIME");
}

void AddAppend(Verbs& verbs, SessionFlags& flags) {
  CLI::App& append = verbs.AddWithTensors(
      "append", "Add tokens to a layer, and print its length",
      &RunSessionAppend);
  Verbs::AddTensor(append, "--key", flags.key, "(Hkv, n, D)")->required();
  Verbs::AddTensor(append, "--value", flags.value,
                   "(Hkv, n, Dv); none with --value-is-key-prefix");
}

void AddAttend(Verbs& verbs, SessionFlags& flags) {
  CLI::App& attend = verbs.AddWithTensors(
      "attend", "Compute attention over a layer's tokens", &RunSessionAttend);
  Verbs::AddTensor(attend, "--query", flags.query,
                   "What asks: (Hq, S, D), of the type that is stored")
      ->required();
  Verbs::AddTensor(
      attend, "--mask", flags.mask,
      "BOOL: true attends; numbers, of any type: added to the scores");
  Verbs::AddTensor(attend, "--indices", flags.indices,
                   "The tokens that each query sees, -1 for none: (S, k), or "
                   "(Hq, S, k)");
  Verbs::AddTensor(attend, "--row-sinks", flags.row_sinks,
                   "A sink for each row in place of --sinks: (Hq, S)");
  AddScoreOptions(attend, flags.options);
  attend
      .add_flag("--not-causal", flags.not_causal,
                "Every query sees every token [queries are the last tokens]")
      ->excludes("--causal");
  AddResultFlags(
      attend, flags.options,
      {flags.output_file, flags.log_sum_exp_file, flags.scores_file});
}

}  // namespace

CLI::App* AddSessionCommand(CLI::App& app, SessionFlags& flags,
                            const std::string& footer) {
  flags.server = kDefaultServer;
  CLI::App* const session =
      app.add_subcommand("session", "Keys and values that stay in the server");
  session->require_subcommand(0, 1);
  session->footer(absl::StrCat(kExample, "\n\n", footer));
  Verbs verbs(*session, flags, footer);
  AddCreate(verbs, flags);
  AddAppend(verbs, flags);
  AddAttend(verbs, flags);
  CLI::App& fork = verbs.Add(
      "fork", "Make a session with the tokens of another, and print its id",
      &RunSessionFork);
  verbs.AddId(fork);
  fork.add_option("--target", flags.target,
                  "The new session's id [the server chooses]")
      ->type_name("ID");
  CLI::App& truncate = verbs.Add(
      "truncate", "Forget the last tokens of every layer", &RunSessionTruncate);
  verbs.AddId(truncate);
  truncate.add_option("--length", flags.length, "Every layer's length then")
      ->required();
  verbs.Add("list", "List your sessions", &RunSessionList);
  verbs.AddId(verbs.Add("show", "Show a session", &RunSessionShow));
  verbs.AddId(verbs.Add("delete", "End a session", &RunSessionDelete));
  return session;
}

}  // namespace attention::cli
