#include "client/cpp/cli/bench_command.h"

#include <CLI/CLI.hpp>
#include <cmath>
#include <fstream>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/cpp/cli/bench/bench_report.h"
#include "client/cpp/cli/bench/call_shape.h"
#include "client/cpp/cli/bench/load_generator.h"
#include "client/cpp/cli/bench/workload.h"
#include "client/cpp/cli/flag_types.h"
#include "client/cpp/cli/terminal_line.h"

namespace attention::cli {
namespace {

constexpr char kFooter[] =
    "SHAPE is B,Hq,Hkv,S,T,D[,Dv] or names in any order, "
    "S=128,T=128,H=8,D=64:\n"
    "B batch [1], H heads [1] or Hq and Hkv, S queries, T keys [S], D head "
    "size "
    "[64],\nDv values' head size [D].\n\n"
    "Without --rate each client keeps --concurrency calls open (closed loop): "
    "how much the\nserver can do. With it calls are sent at random times of "
    "that mean rate, whether or not\nthe server keeps up (open loop, Poisson): "
    "how it fares under that load. Times then begin\nwhen a call was due, so a "
    "late answer delays no later call's clock. At most --max-open\ncalls are "
    "open; calls that are due beyond it wait, and count as failed once late.\n"
    "A refusal is RESOURCE_EXHAUSTED or UNAVAILABLE; in a closed loop the "
    "client waits as long\nas the server asks for, else 10 ms.\n\n"
    "Answers are checked: the first of each shape against double precision in "
    "a few rows, the\nothers for the same bits.\n\n"
    "Example:\n  attention_client bench --clients=4 --rate=500 --timeout=1s "
    "\\\n"
    "    --mix=S=128,H=8:9,S=2048:1 --json=load.json\n\n"
    "Exit codes: 0 done; 1 wrong command line or output file; 2 the server "
    "refused every call,\nor one for another reason than load; 3 no answer; 4 "
    "an answer was wrong.";

void AddLoadFlags(CLI::App& app, BenchFlags& flags) {
  app.add_option("--clients", flags.clients, "Connections")
      ->type_name("N")
      ->capture_default_str()
      ->check(CLI::Range(1, 10'000));
  CLI::Option* rate =
      app.add_option("--rate", flags.rate,
                     "Open loop: calls per second of all clients together; "
                     "or steps such as 2000:5s,160:10s")
          ->type_name("RATE");
  app.add_option("--concurrency", flags.concurrency,
                 "Closed loop: calls open per client")
      ->type_name("N")
      ->capture_default_str()
      ->check(CLI::Range(1, 100'000))
      ->excludes(rate);
  app.add_option("--max-open", flags.max_open,
                 "Open loop: calls open at once, of all clients together")
      ->type_name("N")
      ->capture_default_str()
      ->check(CLI::Range(1, 1'000'000));
  AddDuration(app, "--duration", flags.duration,
              "What is measured [10s]; not with steps of rates");
  AddDuration(app, "--warmup", flags.warmup, "Not counted, before it [1s]",
              /*zero=*/true);
  AddDuration(app, "--timeout", flags.timeout,
              "Deadline of each call, from when it is due [10s]");
  app.add_option("--seed", flags.seed, "Of numbers and times")
      ->type_name("N")
      ->capture_default_str();
}

void AddCallFlags(CLI::App& app, BenchFlags& flags) {
  CLI::Option* shape = app.add_option("--shape", flags.shape, "Sizes of a call")
                           ->type_name("SHAPE")
                           ->capture_default_str();
  CLI::Option* mix =
      app.add_option("--mix", flags.mix,
                     "Several sizes, drawn at random by their weights")
          ->type_name("SHAPE:WEIGHT,...")
          ->excludes(shape);
  app.add_flag("--health", flags.health,
               "Call the health check instead of computing")
      ->excludes(shape)
      ->excludes(mix);
  AddEnum(
      app, "--type", kFloatTypes, [&](v1::DataType type) { flags.type = type; },
      "Element type [float32]");
  AddEnum(
      app, "--causal", kCausals,
      [&](v1::Causal causal) { flags.causal = causal; },
      "Hides later keys; which corner of the scores lines up");
}

ExitCode Fail(const absl::Status& status, std::ostream& err) {
  err << "attention_client: " << Describe(status) << "\n";
  return ExitCodeOf(status);
}

ExitCode CannotWrite(const std::string& file, std::ostream& err) {
  err << "attention_client: --json: cannot write " << file << "\n";
  return kBadInput;
}

ExitCode BadFlag(const char* flag, const absl::Status& status,
                 std::ostream& err) {
  return BadInput(
      absl::InvalidArgumentError(absl::StrCat(flag, ": ", status.message())),
      err);
}

absl::StatusOr<Workload> WorkloadOf(const BenchFlags& flags) {
  if (flags.health) return MakeHealthWorkload();
  std::vector<WeightedShape> shapes;
  if (flags.mix.empty()) {
    absl::StatusOr<CallShape> shape = ParseShape(flags.shape);
    if (!shape.ok()) return shape.status();
    shapes.push_back({*shape, 1});
  } else {
    absl::StatusOr<std::vector<WeightedShape>> mix = ParseMix(flags.mix);
    if (!mix.ok()) return mix.status();
    shapes = *std::move(mix);
  }
  return MakeWorkload(shapes, flags.type, flags.causal, flags.seed);
}

// The warm-up comes before the first step, at its rate.
absl::StatusOr<LoadOptions> OptionsOf(const BenchFlags& flags) {
  LoadOptions options;
  options.server = flags.server;
  options.clients = flags.clients;
  options.concurrency = flags.concurrency;
  options.warmup = flags.warmup;
  options.duration = flags.duration;
  options.timeout = flags.timeout;
  options.max_open = flags.max_open;
  options.seed = flags.seed;
  options.check = !flags.no_check;
  if (flags.rate.empty()) return options;
  absl::StatusOr<std::vector<RateStep>> rate =
      ParseRate(flags.rate, flags.duration);
  if (!rate.ok()) return rate.status();
  options.duration = absl::ZeroDuration();
  for (const RateStep& step : *rate) options.duration += step.duration;
  options.rate = *std::move(rate);
  options.rate[0].duration += flags.warmup;
  return options;
}

void Measure(const BenchFlags& flags, const LoadOptions& options,
             LoadGenerator& generator, std::ostream& err) {
  const absl::Duration total = options.warmup + options.duration;
  TerminalLine line(err);
  generator.Run([&](absl::Duration since_start, const CallStatistics& so_far) {
    if (!flags.progress) return;
    const absl::Duration measured =
        std::min(since_start - options.warmup, options.duration);
    line.Show(ProgressLine(since_start, measured, total, so_far));
  });
}

Verdict Judge(const LoadOptions& options, const Workload& workload,
              const LoadGenerator& generator) {
  Verdict verdict;
  verdict.checked = options.check;
  verdict.different = generator.statistics().Total().wrong;
  for (size_t i = 0; i < workload.kinds.size(); ++i) {
    const AnswerCheck& check = generator.answers()[i];
    if (!check.has_first()) continue;
    const absl::Status status =
        CheckAnswer(workload.kinds[i], workload, check.first());
    if (status.ok()) continue;
    verdict.wrong_first.push_back(
        absl::StrCat(workload.kinds[i].name, ": ", status.message()));
  }
  return verdict;
}

ExitCode CodeOf(const CallStatistics& total, const Verdict& verdict) {
  if (!verdict.good()) return kWrongAnswer;
  if (total.ok() > 0 || total.calls == 0) return kSuccess;
  const bool any_refused = total.by_code.count(grpc::RESOURCE_EXHAUSTED) > 0;
  return any_refused ? kRefused : kNoAnswer;
}

}  // namespace

void AddBenchFlags(CLI::App& app, BenchFlags& flags) {
  AddLoadFlags(app, flags);
  AddCallFlags(app, flags);
  app.add_option("--json", flags.json,
                 "Also write all figures to FILE; -: instead of the table")
      ->type_name("FILE");
  app.add_flag("--no-check", flags.no_check,
               "Check no answers, and do not try each shape once before");
  app.footer(kFooter);
}

ExitCode RunBench(const BenchFlags& flags, std::ostream& out,
                  std::ostream& err) {
  const absl::StatusOr<Workload> workload = WorkloadOf(flags);
  if (!workload.ok()) {
    return BadFlag(flags.mix.empty() ? "--shape" : "--mix", workload.status(),
                   err);
  }
  const absl::StatusOr<LoadOptions> options = OptionsOf(flags);
  if (!options.ok()) return BadFlag("--rate", options.status(), err);
  const absl::StatusOr<Connection> connection =
      Connect(flags.server, flags.connection, BenchArguments());
  if (!connection.ok()) return BadInput(connection.status(), err);
  const bool to_file = !flags.json.empty() && flags.json != "-";
  std::ofstream file;
  if (to_file) {  // Before the measurement, which it would be sad to lose.
    file.open(flags.json, std::ios::trunc);
    if (!file) return CannotWrite(flags.json, err);
  }

  // What the server refuses is what is measured.
  LoadGenerator generator(*options, *workload, connection->WithMaxAttempts(1));
  absl::Status status = generator.Connect(options->timeout);
  if (status.ok() && options->check) status = generator.TryEachKind();
  if (!status.ok()) return Fail(status, err);
  Measure(flags, *options, generator, err);

  const RunStatistics& statistics = generator.statistics();
  const Verdict verdict = Judge(*options, *workload, generator);
  const std::string json = FormatJson(*options, *workload, statistics, verdict);
  out << (flags.json == "-"
              ? json
              : FormatTable(*options, *workload, statistics, verdict));
  if (to_file && !(file << json << std::flush)) {
    return CannotWrite(flags.json, err);
  }
  if (!verdict.good()) err << "attention_client: wrong answers\n";
  return CodeOf(statistics.Total(), verdict);
}

}  // namespace attention::cli
