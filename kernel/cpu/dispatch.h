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
#include "kernel/cpu/row_stretch.h"
#include "kernel/cpu/row_task.h"
#include "kernel/cpu/task_memory.h"
#include "kernel/plan/problem.h"

namespace attention {

// Where a task stands after a call of one of the functions below.
enum class TaskEnd : uint8_t {
  // The turn was over before the work was done: call again.
  kLeft,
  // The work was done; rows still wait for keys.
  kWaiting,
  // The rows' outputs are written. Their state has been freed.
  kFinished,
};

// Blocks of keys [begin, end); an end beyond the last block stands for it.
struct BlockRange {
  int64_t begin = 0;
  int64_t end = std::numeric_limits<int64_t>::max();
};

// T is the precision of the computation, float or double. Each function goes on
// from `state`, and leaves there what the next call for the same task needs. A
// state without memory is begun in the thread's own. Thread-safe for different
// tasks. `then` is what the thread will probably read next: it is prefetched
// while the last block of keys is computed. All throw std::bad_alloc.
template <typename T>
struct RowFunctions {
  // Attends to the keys of `blocks`. Where no row sees a key after them, and
  // `outputs` is not null, finishes the rows.
  TaskEnd (*attend)(const Problem& problem, const RowTask& task,
                    const BlockRange& blocks, const RowStretch& then,
                    const AttentionOutputs* outputs, TaskState* state,
                    const Turn& turn);

  // Attends to the keys of `subtree` alone and stores the partials of the
  // task's rows there. Ends kLeft or kFinished.
  TaskEnd (*attend_subtree)(const Problem& problem, const RowTask& task,
                            const RowStretch& then,
                            const SubtreePartial<T>& subtree, TaskState* state,
                            const Turn& turn);

  // Takes the task's rows of `subtrees`, in ascending order, in place of their
  // keys. Finishes the rows if `outputs` is not null.
  TaskEnd (*merge_subtrees)(const Problem& problem, const RowTask& task,
                            absl::Span<const SubtreePartial<T>> subtrees,
                            const AttentionOutputs* outputs, TaskState* state,
                            const Turn& turn);

  // Moves the partials of the task's rows into `subtrees`, which are ascending
  // and hold every block that the rows have attended to. Ends kFinished.
  TaskEnd (*store_subtrees)(const Problem& problem, const RowTask& task,
                            absl::Span<const SubtreePartial<T>> subtrees,
                            TaskState* state);

  // Memory of a task of `rows` rows: its state, and what a thread works in.
  int64_t (*state_bytes)(const Problem& problem, int64_t rows);
  int64_t (*scratch_bytes)(const Problem& problem);
};

// Those for this CPU and the problem, whose precision is T.
template <typename T>
RowFunctions<T> FunctionsFor(const Problem& problem);
template <>
RowFunctions<float> FunctionsFor(const Problem& problem);
template <>
RowFunctions<double> FunctionsFor(const Problem& problem);

}  // namespace attention

#endif  // ATTENTION_KERNEL_CPU_DISPATCH_H_
