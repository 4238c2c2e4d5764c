// A planned computation as a job of stages and tasks. Internal.
#ifndef ATTENTION_KERNEL_CPU_ATTENTION_JOB_H_
#define ATTENTION_KERNEL_CPU_ATTENTION_JOB_H_

#include <cstdint>
#include <memory>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "kernel/attention.h"
#include "kernel/cpu/kernel_job.h"

namespace attention {

// Attention over all keys of the plan, on up to `threads` threads. Throws
// std::bad_alloc.
std::unique_ptr<KernelJob> MakeJob(const AttentionPlan& plan,
                                   const AttentionOutputs& outputs, int threads,
                                   absl::AnyInvocable<void(absl::Status)> done);

// The most memory that a job takes, in bytes. Both saturate at the largest
// int64_t.
struct JobMemory {
  // Of each thread while it works on the job; it reuses it for the next job.
  int64_t of_thread = 0;
  // What the job holds besides, from its first stage to its end.
  int64_t of_job = 0;
};
JobMemory MemoryOfJob(const AttentionPlan& plan, int threads);

}  // namespace attention

#endif  // ATTENTION_KERNEL_CPU_ATTENTION_JOB_H_
