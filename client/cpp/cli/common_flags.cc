#include "client/cpp/cli/common_flags.h"

#include <cstdint>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/cpp/cli/flag_types.h"
#include "client/cpp/cli/server_address.h"

namespace attention::cli {
namespace {

const Names<v1::MathMode> kMathModes = {
    {"reproducible", v1::MATH_MODE_REPRODUCIBLE}, {"fast", v1::MATH_MODE_FAST}};
const Names<v1::Scores> kScores = {{"raw", v1::SCORES_RAW},
                                   {"capped", v1::SCORES_CAPPED},
                                   {"biased", v1::SCORES_BIASED},
                                   {"weights", v1::SCORES_WEIGHTS}};

template <typename T, typename Field>
auto SetRepeated(Field* field) {
  return [field](const std::vector<T>& numbers) -> std::string {
    field->Assign(numbers.begin(), numbers.end());
    return "";
  };
}

}  // namespace

void AddServer(CLI::App& app, std::string& server,
               ConnectionFlags& connection) {
  app.add_option("--server", server, "host:port or unix:/path")
      ->type_name("ADDRESS")
      ->check(ServerAddressError)
      ->capture_default_str();
  AddConnectionFlags(app, connection);
}

void AddConnection(CLI::App& app, std::string& server,
                   ConnectionFlags& connection, absl::Duration& timeout,
                   const std::string& default_timeout) {
  AddServer(app, server, connection);
  AddDuration(app, "--timeout", timeout,
              absl::StrCat("Longest wait for each answer, in seconds or as "
                           "500ms, 1m [",
                           default_timeout, "]"));
}

void AddMaxAttempts(CLI::App& app, ConnectionFlags& connection) {
  app.add_option("--max-attempts", connection.max_attempts,
                 "Tries within --timeout where the server is busy, or the "
                 "connection is lost; 1: no second one")
      ->type_name("N")
      ->capture_default_str()
      ->check(CLI::Range(1, 1'000))
      ->group("Connection");
}

void AddScoreOptions(CLI::App& app, v1::AttentionOptions& options) {
  app.add_option_function<double>(
      "--scale", [&](double scale) { options.set_scale(scale); },
      "Factor of the dot products [1 / sqrt(D)]");
  app.add_option_function<double>(
      "--softcap", [&](double cap) { options.set_softcap(cap); },
      "Bounds the scores by cap * tanh(score / cap) [0: none]");
  AddEnum(
      app, "--causal", kCausals,
      [&](v1::Causal causal) { options.set_causal(causal); },
      "Hides later keys; which corner of the scores lines up");
  AddList<int64_t>(
      app, "--window",
      [&](const std::vector<int64_t>& sides) -> std::string {
        if (sides.size() != 2) return "LEFT,RIGHT; -1 is unbounded";
        options.mutable_window()->set_left(sides[0]);
        options.mutable_window()->set_right(sides[1]);
        return "";
      },
      "Keys seen before and after the query's own; -1 is unbounded")
      ->type_name("LEFT,RIGHT");
  app.add_option_function<int64_t>(
         "--chunk-size", [&](int64_t size) { options.set_chunk_size(size); },
         "Only keys of the query's own chunk of N positions are seen")
      ->type_name("N");
  AddList<double>(app, "--alibi-slopes",
                  SetRepeated<double>(options.mutable_alibi_slopes()),
                  "Per query head: score lost for each key of distance");
  AddList<double>(app, "--sinks", SetRepeated<double>(options.mutable_sinks()),
                  "Per query head: an extra logit without a value");
  AddEnum(
      app, "--math-mode", kMathModes,
      [&](v1::MathMode mode) { options.set_math_mode(mode); },
      "Same bits everywhere, or what this CPU does fastest [reproducible]");
  AddEnum(
      app, "--softmax-precision", kFloatTypes,
      [&](v1::DataType type) { options.set_softmax_precision(type); },
      "Least precision of the arithmetic [float32; float64 for such inputs]");
}

void AddResultFlags(CLI::App& app, v1::AttentionOptions& options,
                    const ResultFiles& files) {
  const auto file = [&](const char* name, std::string& path, const char* help) {
    return app.add_option(name, path, help)
        ->type_name("FILE")
        ->group("Results");
  };
  file("--output", files.output, "The attention output [printed]");
  CLI::Option* lse =
      app.add_flag_function(
             "--log-sum-exp",
             [&](int64_t) { options.set_return_log_sum_exp(true); },
             "Also the natural log of each softmax's denominator")
          ->group("Results");
  file("--log-sum-exp-output", files.log_sum_exp, "[printed]")->needs(lse);
  CLI::Option* scores =
      AddEnum(
          app, "--scores", kScores,
          [&](v1::Scores stage) { options.set_return_scores(stage); },
          "Also the scores at this stage")
          ->group("Results");
  file("--scores-output", files.scores, "[printed]")->needs(scores);
}

}  // namespace attention::cli
