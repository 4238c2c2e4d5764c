#include "kernel/attention.h"

#include <atomic>
#include <cstdint>
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "base/executor.h"
#include "kernel/cpu/attention_job.h"
#include "kernel/cpu/kernel_job.h"

namespace attention {

int64_t WorkingBytes(const AttentionPlan& plan, int threads) {
  return JobBytes(plan, threads);
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
