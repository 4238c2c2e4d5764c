// Measures the kernel against the limits of the machine it runs on.
//
//   attention_bench [--benchmark_filter=REGEX] [--benchmark_out=FILE]
//   attention_bench --serve  (see serve.h)
//
// Columns: GFLOP/s of unmasked pairs only, GB/s of keys and values, and
// `of_limit`, the share of the machine's own limit, measured in the same run
// with as many threads: reading memory in decoding, multiply-adds elsewhere.
//
// tile/f32/...: the parts of a tile of dense FLOAT32 in microseconds, each in a
// loop of its own, and `at_most`, the share of the multiply-add peak that is
// left if nothing else takes time.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <iostream>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "benchmark/benchmark.h"
#include "benchmarks/kernel/cases.h"
#include "benchmarks/kernel/machine_limits.h"
#include "benchmarks/kernel/serve.h"
#include "benchmarks/kernel/tile_parts.h"
#include "kernel/attention.h"

namespace attention::benchmarks {
namespace {

struct Machine {
  std::unique_ptr<Executor> executor;
  std::map<Limit, double> limits;
};

void Measure(benchmark::State& state, const Case& shape, Machine& machine) {
  Workload workload(shape);
  workload.Run(*machine.executor);
  for (auto _ : state) workload.Run(*machine.executor);
  using benchmark::Counter;
  const double rate = static_cast<double>(state.iterations());
  const double flops = 1e-9 * workload.plan().flops * rate;
  const double bytes = 1e-9 * workload.key_value_bytes() * rate;
  const double limit = machine.limits.at(LimitOf(shape));
  state.counters["GFLOP/s"] = Counter(flops, Counter::kIsRate);
  state.counters["KV_GB/s"] = Counter(bytes, Counter::kIsRate);
  state.counters["of_limit"] =
      Counter((shape.decode ? bytes : flops) / limit, Counter::kIsRate);
}

void MeasureTile(benchmark::State& state, int64_t head_size, double limit) {
  for (auto _ : state) {
    const TileParts parts = MeasureTileParts(head_size);
    state.SetIterationTime(parts.sum());
    const double flops =
        4.0 * static_cast<double>(parts.rows * kKeyBlock * head_size);
    state.counters["scores_us"] = 1e6 * parts.scores;
    state.counters["softmax_us"] = 1e6 * parts.softmax;
    state.counters["weighted_sums_us"] = 1e6 * parts.weighted_sums;
    state.counters["packing_us"] = 1e6 * parts.packing;
    state.counters["at_most"] = 1e-9 * flops / parts.sum() / limit;
  }
}

Machine MakeMachine(int threads) {
  Machine machine{std::make_unique<Executor>(threads - 1), {}};
  for (Limit limit :
       {Limit::kFloat, Limit::kDouble, Limit::kBFloat16, Limit::kRead}) {
    machine.limits[limit] = MeasureLimit(limit, *machine.executor);
  }
  benchmark::AddCustomContext(
      absl::StrCat("limits_", threads, "_threads"),
      absl::StrCat(machine.limits[Limit::kFloat], " GFLOP/s FLOAT32, ",
                   machine.limits[Limit::kDouble], " GFLOP/s FLOAT64, ",
                   machine.limits[Limit::kBFloat16], " GFLOP/s BFLOAT16, ",
                   machine.limits[Limit::kRead], " GB/s read"));
  return machine;
}

void AddContext() {
  benchmark::AddCustomContext("simd_target", std::string(SimdTarget()));
  benchmark::AddCustomContext("compiler", __VERSION__);
#ifndef NDEBUG
  std::fprintf(stderr,
               "WARNING: built with assertions, times say little: use the "
               "release preset\n");
#endif
}

}  // namespace
}  // namespace attention::benchmarks

int main(int argc, char** argv) {
  using namespace attention::benchmarks;
  if (argc == 2 && std::string_view(argv[1]) == "--serve") {
    ServeBenchmarks(std::cin, std::cout);
    return 0;
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  AddContext();
  const int cores =
      std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  std::vector<Machine> machines;
  machines.push_back(MakeMachine(1));
  if (cores > 1) machines.push_back(MakeMachine(cores));
  for (int64_t head_size : {64, 128}) {
    const double limit = machines.front().limits.at(Limit::kFloat);
    benchmark::RegisterBenchmark(
        absl::StrCat("tile/f32/d", head_size, "/threads:1").c_str(),
        [head_size, limit](benchmark::State& state) {
          MeasureTile(state, head_size, limit);
        })
        ->UseManualTime()
        ->Iterations(1)
        ->Unit(benchmark::kMicrosecond);
  }
  for (const Case& shape : AllCases()) {
    for (Machine& machine : machines) {
      benchmark::RegisterBenchmark(
          absl::StrCat(shape.name, "/threads:", machine.executor->threads() + 1)
              .c_str(),
          [shape, &machine](benchmark::State& state) {
            Measure(state, shape, machine);
          })
          ->UseRealTime()
          ->Unit(benchmark::kMillisecond);
    }
  }
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
