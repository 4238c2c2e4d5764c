#include "client/cpp/cli/bench/statistics.h"

#include <grpcpp/support/status.h>

#include <algorithm>

namespace attention::cli {
namespace {

Interval* IntervalAt(absl::Duration due, RunStatistics& statistics) {
  if (statistics.timeline.empty()) return nullptr;
  absl::Duration rest;
  const int64_t index = absl::IDivDuration(due, statistics.interval, &rest);
  const auto last = static_cast<int64_t>(statistics.timeline.size()) - 1;
  return &statistics.timeline[std::clamp(index, int64_t{0}, last)];
}

}  // namespace

void CallStatistics::Merge(const CallStatistics& other) {
  calls += other.calls;
  for (const auto& [code, count] : other.by_code) by_code[code] += count;
  unsent += other.unsent;
  good += other.good;
  late += other.late;
  wrong += other.wrong;
  refused += other.refused;
  accepted.Merge(other.accepted);
  refusals.Merge(other.refusals);
  request_bytes += other.request_bytes;
  answer_bytes += other.answer_bytes;
}

CallStatistics RunStatistics::Total() const {
  CallStatistics total;
  for (const CallStatistics& kind : kinds) total.Merge(kind);
  return total;
}

void StartTimeline(absl::Duration length, RunStatistics& statistics) {
  statistics.interval = std::max(absl::Milliseconds(100), length / 1000);
  absl::Duration rest;
  const int64_t whole = absl::IDivDuration(length, statistics.interval, &rest);
  statistics.timeline.resize(whole + (rest > absl::ZeroDuration() ? 1 : 0));
}

void Count(const CallOutcome& outcome, size_t kind, RunStatistics& statistics) {
  CallStatistics& counts = statistics.kinds[kind];
  Interval* interval = IntervalAt(outcome.due, statistics);
  ++counts.calls;
  ++counts.by_code[outcome.code];
  if (interval != nullptr) ++interval->calls;
  const bool refused = outcome.code == grpc::RESOURCE_EXHAUSTED ||
                       outcome.code == grpc::UNAVAILABLE;
  const bool good = outcome.code == grpc::OK && outcome.in_time;
  if (interval != nullptr) {
    ++(good ? interval->good : refused ? interval->refused : interval->failed);
  }
  if (refused) {
    ++counts.refused;
    counts.refusals.Add(outcome.latency);
  }
  if (outcome.code != grpc::OK) return;
  ++(good ? counts.good : counts.late);
  if (!outcome.same_bits) ++counts.wrong;
  counts.accepted.Add(outcome.latency);
  if (interval != nullptr) interval->accepted.Add(outcome.latency);
  counts.request_bytes += outcome.request_bytes;
  counts.answer_bytes += outcome.answer_bytes;
}

void CountUnsent(absl::Duration due, size_t kind, RunStatistics& statistics) {
  ++statistics.kinds[kind].calls;
  ++statistics.kinds[kind].unsent;
  Interval* interval = IntervalAt(due, statistics);
  if (interval == nullptr) return;
  ++interval->calls;
  ++interval->failed;
}

}  // namespace attention::cli
