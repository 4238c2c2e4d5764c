// The computation of a task's rows, dispatched to the best SIMD target of the
// CPU. Internal; attention_job.cc and accumulator.cc cut the work into tasks.
#ifndef ATTENTION_KERNEL_CPU_DISPATCH_H_
#define ATTENTION_KERNEL_CPU_DISPATCH_H_

#include <cstdint>
#include <limits>

#include "absl/types/span.h"
#include "base/executor.h"
#include "kernel/attention.h"
#include "kernel/cpu/partials.h"
#include "kernel/cpu/row_task.h"
#include "kernel/cpu/strided_rows.h"
#include "kernel/cpu/task_memory.h"
#include "kernel/plan/problem.h"

namespace attention {

// Where a task stands after a call of one of the functions below.
enum class TaskEnd : uint8_t {
  // The turn was over before the work was done: call again.
  kSuspended,
  // The work is done, but the rows wait for more keys or for their outputs.
  kWaiting,
  // The rows are done and their state has been freed.
  kFinished,
};

// Blocks of keys [begin, end); `end` may lie beyond the last block.
struct BlockRange {
  int64_t begin = 0;
  int64_t end = std::numeric_limits<int64_t>::max();
};

// T is the precision of the computation, float or double. Each function goes on
// from `state`, and leaves there what the next call for the same task needs. A
// state without memory begins in the thread's own. `next_keys` are the keys
// that the thread will probably read next: they are prefetched during the last
// block. Thread-safe for different tasks. All throw std::bad_alloc.
template <typename T>
struct RowFunctions {
  // Attends to the keys of `blocks`. Where no row sees a key after them, and
  // `outputs` is not null, finishes the rows.
  TaskEnd (*attend)(const Problem& problem, const RowTask& task,
                    const BlockRange& blocks, const StridedRows& next_keys,
                    const AttentionOutputs* outputs, TaskState* state,
                    const Turn& turn);

  // Attends to the keys of `subtree` alone and stores the partials of the
  // task's rows there. Ends kSuspended or kFinished.
  TaskEnd (*attend_subtree)(const Problem& problem, const RowTask& task,
                            const StridedRows& next_keys,
                            const SubtreePartial<T>& subtree, TaskState* state,
                            const Turn& turn);

  // Merges the task's rows of `subtrees`, in ascending order, in place of
  // attending to their keys. Finishes the rows if `outputs` is not null.
  TaskEnd (*merge_subtrees)(const Problem& problem, const RowTask& task,
                            absl::Span<const SubtreePartial<T>> subtrees,
                            const AttentionOutputs* outputs, TaskState* state,
                            const Turn& turn);

  // Moves the partials of the task's rows into `subtrees`, which are ascending
  // and hold every block that the rows have attended to. Ends kFinished.
  TaskEnd (*store_subtrees)(const Problem& problem, const RowTask& task,
                            absl::Span<const SubtreePartial<T>> subtrees,
                            TaskState* state);

  // Bytes of the state of a task of `rows` rows, and of a thread's scratch.
  int64_t (*state_bytes)(const Problem& problem, int64_t rows);
  int64_t (*scratch_bytes)(const Problem& problem);
};

// The functions for this CPU and the problem, whose precision is T.
template <typename T>
RowFunctions<T> FunctionsFor(const Problem& problem);
template <>
RowFunctions<float> FunctionsFor(const Problem& problem);
template <>
RowFunctions<double> FunctionsFor(const Problem& problem);

}  // namespace attention

#endif  // ATTENTION_KERNEL_CPU_DISPATCH_H_
