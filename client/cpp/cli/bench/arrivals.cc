#include "client/cpp/cli/bench/arrivals.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "command_line/duration.h"

namespace attention::cli {

absl::StatusOr<std::vector<RateStep>> ParseRate(absl::string_view text,
                                                absl::Duration duration) {
  std::vector<RateStep> steps;
  for (absl::string_view item : absl::StrSplit(text, ',')) {
    const std::vector<std::string> parts = absl::StrSplit(item, ':');
    RateStep step{0, duration};
    const bool number = absl::SimpleAtod(parts[0], &step.calls_per_second);
    const auto time = parts.size() == 2 ? command_line::ParseDuration(parts[1])
                                        : std::nullopt;
    if (time) step.duration = *time;
    const bool timed = time.has_value();
    const bool alone = parts.size() == 1 && text == item;
    if (!number || !(timed || alone) || !(step.calls_per_second > 0) ||
        step.calls_per_second > 1e7 || step.duration <= absl::ZeroDuration() ||
        step.duration == absl::InfiniteDuration()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "got '", text,
          "', wanted calls per second (above 0, at most 1e7) such as 200, or "
          "steps such as 2000:5s,160:10s"));
    }
    steps.push_back(step);
  }
  return steps;
}

WeightedChoice::WeightedChoice(const std::vector<double>& weights,
                               uint64_t seed)
    : numbers_(seed) {
  double sum = 0;
  for (const double weight : weights) upper_.push_back(sum += weight);
}

size_t WeightedChoice::Next() {
  if (upper_.size() == 1) return 0;
  const double drawn = numbers_.Next() * upper_.back();
  const auto found = std::upper_bound(upper_.begin(), upper_.end() - 1, drawn);
  return static_cast<size_t>(found - upper_.begin());
}

PoissonArrivals::PoissonArrivals(std::vector<RateStep> steps, uint64_t seed)
    : steps_(std::move(steps)), numbers_(seed) {}

std::optional<absl::Duration> PoissonArrivals::Next() {
  // The gap as an expected number of calls, of mean 1: what of it a step does
  // not use up is left for the next, at that one's rate.
  double calls = -std::log1p(-numbers_.Next());
  for (; step_ < steps_.size(); ++step_) {
    const RateStep& step = steps_[step_];
    const double end = step_start_ + absl::ToDoubleSeconds(step.duration);
    const double next = now_ + calls / step.calls_per_second;
    if (next < end) {
      now_ = next;
      return absl::Seconds(now_);
    }
    calls -= (end - now_) * step.calls_per_second;
    now_ = step_start_ = end;
  }
  return std::nullopt;
}

}  // namespace attention::cli
