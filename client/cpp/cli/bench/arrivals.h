// When calls are sent in an open loop.
#ifndef ATTENTION_CLIENT_CPP_CLI_BENCH_ARRIVALS_H_
#define ATTENTION_CLIENT_CPP_CLI_BENCH_ARRIVALS_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <random>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace attention::cli {

// A rate that holds for a time; both above 0.
struct RateStep {
  double calls_per_second = 0;
  absl::Duration duration;
};

// "200" is one step of `duration`; "2000:5s,160:10s" are steps, one after the
// other. INVALID_ARGUMENT says what is wrong.
absl::StatusOr<std::vector<RateStep>> ParseRate(absl::string_view text,
                                                absl::Duration duration);

// The same numbers in [0, 1) from the same seed on every machine.
class RandomNumbers {
 public:
  explicit RandomNumbers(uint64_t seed) : engine_(seed) {}
  double Next() { return static_cast<double>(engine_() >> 11) * 0x1p-53; }

 private:
  std::mt19937_64 engine_;
};

// Draws indices in proportion to weights. Not thread-safe.
class WeightedChoice {
 public:
  // `weights`: at least one, each above 0.
  WeightedChoice(const std::vector<double>& weights, uint64_t seed);
  size_t Next();

 private:
  std::vector<double> upper_;  // Sums of the weights up to each index.
  RandomNumbers numbers_;
};

// A Poisson process whose rate changes in steps: the gaps between calls are
// exponential and independent. The times depend on steps and seed alone, not
// on how calls fare, and never decrease. Not thread-safe.
class PoissonArrivals {
 public:
  PoissonArrivals(std::vector<RateStep> steps, uint64_t seed);

  // The next call's time since the start; nothing once the steps are over.
  std::optional<absl::Duration> Next();

 private:
  std::vector<RateStep> steps_;
  RandomNumbers numbers_;
  size_t step_ = 0;
  double step_start_ = 0;  // Seconds since the start, as below.
  double now_ = 0;
};

}  // namespace attention::cli

#endif  // ATTENTION_CLIENT_CPP_CLI_BENCH_ARRIVALS_H_
