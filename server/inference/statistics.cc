#include "server/inference/statistics.h"

#include <algorithm>
#include <cstdint>
#include <string>

#include "absl/time/clock.h"
#include "server/inference/model.h"

namespace attention::server {
namespace {

void AddTo(inference::StatisticDuration* sum, absl::Duration duration) {
  sum->set_count(sum->count() + 1);
  const int64_t ns = std::max<int64_t>(0, absl::ToInt64Nanoseconds(duration));
  sum->set_ns(sum->ns() + static_cast<uint64_t>(ns));
}

}  // namespace

InferenceStatistics::InferenceStatistics() {
  statistics_.set_name(std::string(kModelName));
  statistics_.set_version(std::string(kModelVersion));
  // All are there from the start: clients take differences.
  inference::InferStatistics& stats = *statistics_.mutable_inference_stats();
  stats.mutable_success();
  stats.mutable_fail();
  stats.mutable_queue();
  stats.mutable_compute_input();
  stats.mutable_compute_infer();
  stats.mutable_compute_output();
}

void InferenceStatistics::Add(bool succeeded, const Phases& phases) {
  const std::lock_guard<std::mutex> lock(mutex_);
  inference::InferStatistics& stats = *statistics_.mutable_inference_stats();
  if (!succeeded) return AddTo(stats.mutable_fail(), phases.total);
  statistics_.set_last_inference(absl::ToUnixMillis(absl::Now()));
  statistics_.set_inference_count(statistics_.inference_count() + 1);
  statistics_.set_execution_count(statistics_.execution_count() + 1);
  AddTo(stats.mutable_success(), phases.total);
  AddTo(stats.mutable_queue(), phases.queue);
  AddTo(stats.mutable_compute_input(), phases.decode);
  AddTo(stats.mutable_compute_infer(), phases.compute);
  AddTo(stats.mutable_compute_output(), phases.encode);
}

inference::ModelStatistics InferenceStatistics::Get() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return statistics_;
}

}  // namespace attention::server
