// The computation of a task's rows, dispatched to the best SIMD target of the
// CPU. Internal; attention.cc cuts the work into tasks.
#ifndef ATTENTION_KERNEL_ATTENTION_SIMD_H_
#define ATTENTION_KERNEL_ATTENTION_SIMD_H_

#include <atomic>

#include "absl/types/span.h"
#include "kernel/attention.h"
#include "kernel/problem.h"
#include "kernel/scratch.h"

namespace attention {

// T is the precision of the computation, float or double. Each returns early,
// its results unspecified, once `cancelled` (may be null) is true. Thread-safe
// for different tasks. `then` is what the thread will probably read next: it is
// asked for while the last block of keys is computed.
template <typename T>
struct RowFunctions {
  // Attention of the task's rows over all keys, into `outputs`.
  void (*compute_rows)(const Problem& problem, const RowTask& task,
                       const RowStretch& then, const AttentionOutputs& outputs,
                       const std::atomic<bool>* cancelled);

  // The task's rows of `part`, over the keys of that part.
  void (*compute_part)(const Problem& problem, const RowTask& task,
                       const RowStretch& then, const SubtreePartial<T>& part,
                       const std::atomic<bool>* cancelled);

  // Attention of the task's rows, merged from parts that together are all
  // blocks of keys, in ascending order.
  void (*merge_parts)(const Problem& problem, const RowTask& task,
                      absl::Span<const SubtreePartial<T>> parts,
                      const AttentionOutputs& outputs,
                      const std::atomic<bool>* cancelled);
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
