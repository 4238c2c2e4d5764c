// The computation of a task's rows, dispatched to the best SIMD target of the
// CPU. Internal; attention.cc cuts the work into tasks.
#ifndef ATTENTION_KERNEL_ATTENTION_SIMD_H_
#define ATTENTION_KERNEL_ATTENTION_SIMD_H_

#include <cstdint>

#include "absl/types/span.h"
#include "base/executor.h"
#include "kernel/attention.h"
#include "kernel/problem.h"
#include "kernel/scratch.h"

namespace attention {

// T is the precision of the computation, float or double. Each goes on from
// `state` until the task is done (true) or the turn is over (false: `state`
// holds what the next call needs). Thread-safe for different tasks. `then` is
// what the thread will probably read next: it is prefetched while the last
// block of keys is computed. All throw std::bad_alloc.
template <typename T>
struct RowFunctions {
  // Attention of the task's rows over all keys, into `outputs`.
  bool (*compute_rows)(const Problem& problem, const RowTask& task,
                       const RowStretch& then, const AttentionOutputs& outputs,
                       TaskState* state, const Turn& turn);

  // The task's rows of `part`, over the keys of that part.
  bool (*compute_part)(const Problem& problem, const RowTask& task,
                       const RowStretch& then, const SubtreePartial<T>& part,
                       TaskState* state, const Turn& turn);

  // Attention of the task's rows, merged from parts that together are all
  // blocks of keys, in ascending order.
  bool (*merge_parts)(const Problem& problem, const RowTask& task,
                      absl::Span<const SubtreePartial<T>> parts,
                      const AttentionOutputs& outputs, TaskState* state,
                      const Turn& turn);

  // Bytes of memory that a task of `rows` rows works in.
  int64_t (*scratch_bytes)(const Problem& problem, int64_t rows);
};

// Those for this CPU and the problem, whose precision is T.
template <typename T>
RowFunctions<T> FunctionsFor(const Problem& problem);
template <>
RowFunctions<float> FunctionsFor(const Problem& problem);
template <>
RowFunctions<double> FunctionsFor(const Problem& problem);

}  // namespace attention

#endif  // ATTENTION_KERNEL_ATTENTION_SIMD_H_
