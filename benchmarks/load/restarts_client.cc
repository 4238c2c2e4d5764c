// restarts_client.py in C++, with the gRPC that this project is built with.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <iostream>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "attention/client.h"

namespace attention {
namespace {

constexpr absl::Duration kTimeout = absl::Seconds(30);
constexpr int64_t kColumns = 256;

// What became of calls.
struct Outcome {
  int64_t ok = 0;
  int64_t wrong = 0;
  std::map<std::string, int64_t> failures;
  absl::Duration slowest;

  void Add(const Outcome& other) {
    ok += other.ok;
    wrong += other.wrong;
    for (const auto& [what, count] : other.failures) failures[what] += count;
    slowest = std::max(slowest, other.slowest);
  }
};

struct Flags {
  std::string target, config;
  int backoff_ms = 0, threads = 0, pause_ms = 0;
  int64_t answer_rows = 0;
};

// Makes one call after the other until `stop`. Each has a number of its own,
// which is what its answer consists of.
Outcome Call(const Client& client, float number, const Flags& flags,
             const std::atomic<bool>& stop) {
  Outcome outcome;
  const int64_t rows = flags.answer_rows;
  const std::vector<float> zeros(rows, 0);
  ComputeRequest request;
  request.query = TensorSpan::Of<float>(zeros, {rows, 1});
  // A single key has all the weight: the answer is its value, in each row.
  const std::vector<float> key = {0};
  request.key = TensorSpan::Of<float>(key, {1, 1});
  for (; !stop; absl::SleepFor(absl::Milliseconds(flags.pause_ms))) {
    ++number;
    const std::vector<float> value(kColumns, number);
    request.value = TensorSpan::Of<float>(value, {1, kColumns});
    const absl::Time begin = absl::Now();
    const auto result = client.Compute(request, {.timeout = kTimeout});
    outcome.slowest = std::max(outcome.slowest, absl::Now() - begin);
    if (result.ok()) {
      const auto answer = result->output.elements<float>();
      ++outcome.ok;
      outcome.wrong +=
          answer.size() != rows * kColumns ||
          std::count(answer.begin(), answer.end(), number) != rows * kColumns;
    } else {
      ++outcome.failures[result.status().ToString()];
    }
  }
  return outcome;
}

int Main(int argc, char** argv) {
  Flags flags;
  CLI::App app;
  app.add_option("--target", flags.target);
  app.add_option("--config", flags.config);
  app.add_option("--backoff-ms", flags.backoff_ms);
  app.add_option("--threads", flags.threads);
  app.add_option("--answer-rows", flags.answer_rows);
  app.add_option("--pause-ms", flags.pause_ms);
  CLI11_PARSE(app, argc, argv);
  ClientOptions options;
  options.arguments.SetServiceConfigJSON(flags.config);
  for (const char* name : {GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS,
                           GRPC_ARG_MAX_RECONNECT_BACKOFF_MS}) {
    options.arguments.SetInt(name, flags.backoff_ms);
  }
  const Client client(flags.target, options);
  std::atomic<bool> stop{false};
  std::vector<Outcome> outcomes(flags.threads);
  std::vector<std::thread> callers;
  for (int i = 0; i < flags.threads; ++i) {
    callers.emplace_back([&, i] {
      // Numbers that a float holds exactly, far more than there are calls.
      const auto first = static_cast<float>(1 + (i << 20));
      outcomes[i] = Call(client, first, flags, stop);
    });
  }
  std::cin.ignore(std::numeric_limits<std::streamsize>::max());
  stop = true;
  Outcome all;
  for (int i = 0; i < flags.threads; ++i) {
    callers[i].join();
    all.Add(outcomes[i]);
  }
  const nlohmann::json report = {
      {"ok", all.ok},
      {"wrong", all.wrong},
      {"failures", all.failures},
      {"slowest_ms", absl::ToDoubleMilliseconds(all.slowest)}};
  std::cout << report << "\n";
  return 0;
}

}  // namespace
}  // namespace attention

int main(int argc, char** argv) { return attention::Main(argc, argv); }
