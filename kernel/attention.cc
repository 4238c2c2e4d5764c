#include "kernel/attention.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "base/executor.h"
#include "base/field_error.h"
#include "base/saturating.h"
#include "kernel/cpu/attention_job.h"
#include "kernel/cpu/kernel_job.h"
#include "kernel/key_values.h"
#include "kernel/plan/problem.h"
#include "kernel/scaled.h"

namespace attention {

namespace {

absl::Status CheckScaled(const Problem& problem,
                         const std::optional<DataType>& scaled) {
  if (!scaled || (IsScaled(*scaled) && problem.key.type == DataType::kFloat32 &&
                  problem.value.type == DataType::kFloat32)) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "got scaled rows of ", Name(*scaled), " for keys of ",
      Name(problem.key.type), " and values of ", Name(problem.value.type),
      ", wanted INT8 or FLOAT8_E4M3 for FLOAT32"));
}

}  // namespace

absl::StatusOr<AttentionPlan> WithScaledKeys(AttentionPlan plan,
                                             DataType scaled) {
  absl::Status status = CheckScaled(*plan.problem, scaled);
  if (!status.ok()) return status;
  auto problem = std::make_shared<Problem>(*plan.problem);
  problem->scaled = scaled;
  plan.problem = std::move(problem);
  return plan;
}

int64_t FirstVisibleKey(const AttentionPlan& plan, int64_t sequence) {
  const Problem& problem = *plan.problem;
  return problem.FirstVisible(problem.GetSequence(sequence));
}

absl::StatusOr<AttentionPlan> WithKeys(AttentionPlan plan,
                                       absl::Span<const KeyValueView> views,
                                       std::optional<DataType> scaled) {
  if (plan.problem->past_length > 0) {
    return FieldError("past_key", "not with keys in blocks");
  }
  if (plan.problem->return_present) {
    return FieldError("options.return_present", "not with keys in blocks");
  }
  auto problem = std::make_shared<Problem>(*plan.problem);
  absl::Status status = CheckScaled(*problem, scaled);
  if (!status.ok()) return status;
  if (static_cast<int64_t>(views.size()) != problem->batch) {
    return absl::InvalidArgumentError(
        absl::StrCat("got ", views.size(), " views, wanted ", problem->batch));
  }
  for (int64_t b = 0; b < problem->batch; ++b) {
    const KeyValueView& view = views[b];
    const int64_t length = problem->GetSequence(b).key_length;
    const int64_t last_begin =
        view.begin <= 0 || plan.scores ? 0 : FirstVisibleKey(plan, b);
    if (view.begin >= 0 && view.begin <= last_begin &&
        view.begin % kKeyBlock == 0 && view.length == length - view.begin &&
        view.length >= 0) {
      continue;
    }
    return absl::InvalidArgumentError(absl::StrCat(
        "views[", b, "]: got keys ", view.begin, " to ",
        view.begin + view.length, ", wanted them from a multiple of ",
        kKeyBlock, " up to ", last_begin, " on, to ", length));
  }
  problem->by_views = true;
  problem->key_views = views;
  problem->scaled = scaled;
  plan.problem = std::move(problem);
  return plan;
}

int64_t WorkingBytes(const AttentionPlan& plan, int threads) {
  const AttentionPlan* const plans[] = {&plan};
  return WorkingBytes(plans, threads);
}

int64_t WorkingBytes(absl::Span<const AttentionPlan* const> plans,
                     int threads) {
  int64_t of_thread = 0, of_jobs = 0;
  for (const AttentionPlan* plan : plans) {
    const JobMemory memory = MemoryOfJob(*plan, threads);
    of_thread = std::max(of_thread, memory.of_thread);
    of_jobs = SaturatingAdd(of_jobs, memory.of_job);
  }
  return SaturatingAdd(SaturatingMultiply(threads, of_thread), of_jobs);
}

absl::Status RunAttention(const AttentionPlan& plan,
                          const AttentionOutputs& outputs, Executor& executor,
                          const std::atomic<bool>* cancelled) {
  return Guarded([&] {
    absl::Status result;
    const auto job =
        MakeJob(plan, outputs, executor.threads() + 1,
                [&](absl::Status status) { result = std::move(status); });
    RunBlocking(*job, plan.flops, executor, cancelled);
    return result;
  });
}

std::unique_ptr<Executor::Job> MakeAttentionJob(
    const AttentionPlan& plan, const AttentionOutputs& outputs, int threads,
    absl::AnyInvocable<void(absl::Status)> done) {
  return MakeJob(plan, outputs, threads, std::move(done));
}

}  // namespace attention
