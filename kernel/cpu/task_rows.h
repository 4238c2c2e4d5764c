// The rows of one task: which query, head and keys each stands for. Internal.
#ifndef ATTENTION_KERNEL_CPU_TASK_ROWS_H_
#define ATTENTION_KERNEL_CPU_TASK_ROWS_H_

#include <algorithm>
#include <cstdint>
#include <limits>

#include "kernel/attention.h"
#include "kernel/cpu/convert.h"
#include "kernel/cpu/key_runs.h"
#include "kernel/cpu/row_task.h"
#include "kernel/cpu/strided_rows.h"
#include "kernel/plan/problem.h"

namespace attention {

// Counts rows from 0 within the task, and keys from 0 within the block whose
// first key is `first`. What a row sees is decided by causal mask, window and
// valid length; mask tensor and indices are not considered unless said. Refers
// to the problem.
class TaskRows {
 public:
  TaskRows(const Problem& problem, const RowTask& task)
      : problem_(problem),
        task_(task),
        sequence_(problem.GetSequence(task.sequence)),
        group_(problem.group()),
        keys_(problem, sequence_, task.kv_head) {
    seen_ = {problem.total_keys(), 0};
    for (int64_t row = 0; row < count(); ++row) {
      visible_[row] = problem.Visible(sequence_, Query(row));
      if (visible_[row].begin < visible_[row].end) {
        seen_.begin = std::min(seen_.begin, visible_[row].begin);
        seen_.end = std::max(seen_.end, visible_[row].end);
      }
    }
  }

  const Problem& problem() const { return problem_; }
  const Sequence& sequence() const { return sequence_; }
  int64_t count() const { return task_.row_end - task_.row_begin; }
  // The range of the sequence's keys that any row sees.
  const KeyRange& seen() const { return seen_; }

  int64_t Query(int64_t row) const { return (task_.row_begin + row) / group_; }
  int64_t Head(int64_t row) const {
    return task_.kv_head * group_ + (task_.row_begin + row) % group_;
  }

  // A row's index in a SubtreePartial.
  int64_t Number(int64_t row) const {
    const int64_t first_query =
        sequence_.query_begin + sequence_.batch * problem_.query_length;
    return (first_query + Query(row)) * problem_.query_heads + Head(row);
  }
  // A row's index in [B, Hq, S], or in [S, Hq] if ragged.
  int64_t LogSumExpIndex(int64_t row) const {
    if (problem_.ragged) return Number(row);
    return (sequence_.batch * problem_.query_heads + Head(row)) *
               problem_.query_length +
           Query(row);
  }
  // Index of a row's first element in the output.
  int64_t OutputIndex(int64_t row) const {
    const Operand& output = problem_.output;
    return sequence_.batch * output.batch_stride +
           Head(row) * output.head_stride +
           (sequence_.query_begin + Query(row)) * output.row_stride;
  }
  // Index in the mask tensor of `row` and the block's first key.
  int64_t MaskIndex(int64_t first, int64_t row) const {
    const MaskOperand& mask = *problem_.mask;
    return sequence_.batch * mask.batch_stride + Head(row) * mask.head_stride +
           Query(row) * mask.row_stride + first - mask.first_key;
  }

  // The rows of the mask tensor for rows [row, row + rows) and keys `range` of
  // the block. Empty if they are not at equal distances.
  StridedRows MaskRows(int64_t first, int64_t row, int64_t rows,
                       const KeyRange& range) const {
    const MaskOperand& mask = *problem_.mask;
    const int64_t end = std::min(mask.length - first, range.end);
    if (range.begin >= end || (group_ > 1 && mask.head_stride != 0)) return {};
    const auto size = static_cast<int64_t>(SizeOf(mask.type));
    return {static_cast<const char*>(mask.data) +
                (MaskIndex(first, row) + range.begin) * size,
            Query(row + rows - 1) - Query(row) + 1, (end - range.begin) * size,
            mask.row_stride * size};
  }

  // The sink's logit of a row.
  template <typename T>
  T Sink(int64_t row) const {
    if (!problem_.row_sinks) return static_cast<T>(problem_.sinks[Head(row)]);
    const Operand& sinks = *problem_.row_sinks;
    return LoadElement<T>(sinks.Row(sequence_.batch, Head(row),
                                    sequence_.query_begin + Query(row)),
                          sinks.type, 0);
  }

  const void* QueryRow(int64_t row) const {
    return problem_.query.Row(sequence_.batch, Head(row),
                              sequence_.query_begin + Query(row));
  }

  // The list of indices of the task's rows.
  const void* List() const {
    return problem_.indices->Row(sequence_.batch, Head(0),
                                 sequence_.query_begin + Query(0));
  }

  // Keys of the block that `row` sees.
  KeyRange VisibleInBlock(int64_t first, int64_t row) const {
    const int64_t begin =
        std::clamp<int64_t>(visible_[row].begin - first, 0, kKeyBlock);
    return {begin,
            std::clamp<int64_t>(visible_[row].end - first, begin, kKeyBlock)};
  }

  // Keys of the block, up to the last that any row sees.
  KeyRange UpToSeen(int64_t first) const {
    return {0, std::clamp<int64_t>(seen_.end - first, 0, kKeyBlock)};
  }

  // What the mask tensor adds to the score of `row` and key `j`.
  template <typename T>
  T MaskAt(int64_t first, int64_t row, int64_t j) const {
    constexpr T kMasked = -std::numeric_limits<T>::infinity();
    const MaskOperand& mask = *problem_.mask;
    if (first + j >= mask.length) return kMasked;
    const T bias =
        LoadElement<T>(mask.data, mask.type, MaskIndex(first, row) + j);
    if (mask.type == DataType::kBool) return bias != 0 ? T{0} : kMasked;
    return bias;
  }

  // Whether the mask tensor lets `row` see key `j`.
  template <typename T>
  bool Unmasked(int64_t first, int64_t row, int64_t j) const {
    return !problem_.mask ||
           MaskAt<T>(first, row, j) != -std::numeric_limits<T>::infinity();
  }

  // Whether `row` sees any key of the block, the mask tensor considered.
  template <typename T>
  bool SeesAny(int64_t first, int64_t row) const {
    const KeyRange visible = VisibleInBlock(first, row);
    for (int64_t j = visible.begin; j < visible.end; ++j) {
      if (Unmasked<T>(first, row, j)) return true;
    }
    return false;
  }

  // Where the task's keys and values lie.
  const KeyRuns& keys() const { return keys_; }

 private:
  const Problem& problem_;
  const RowTask task_;
  const Sequence sequence_;
  const int64_t group_;
  const KeyRuns keys_;
  // Of each row, and of all, in keys of the sequence.
  KeyRange visible_[kTaskRows];
  KeyRange seen_;
};

// The first keys that a task reads from block `block` on, to be prefetched.
// Empty if it reads none, or if they do not lie in one run.
inline StridedRows FirstKeys(const Problem& problem, const RowTask& task,
                             int64_t block) {
  // Of indices only the task itself knows.
  if (problem.indices) return {};
  // What the first row sees is near enough.
  const TaskRows row(problem, {task.sequence, task.kv_head, task.row_begin,
                               task.row_begin + 1});
  const int64_t first =
      std::max(block, row.seen().begin / kKeyBlock) * kKeyBlock;
  return row.keys().Keys(first, first + row.UpToSeen(first).end);
}

}  // namespace attention

#endif  // ATTENTION_KERNEL_CPU_TASK_ROWS_H_
