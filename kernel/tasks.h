// How a computation is cut into tasks. Internal.
#ifndef ATTENTION_KERNEL_TASKS_H_
#define ATTENTION_KERNEL_TASKS_H_

#include <cstdint>
#include <vector>

#include "kernel/problem.h"
#include "kernel/scratch.h"

namespace attention {

// (query, head) pairs, in the numbering of SubtreePartial.
int64_t NumRows(const Problem& problem);

// All rows of the problem, each in one task, for threads that draw tasks in
// this order: largest first, each at most remaining work / (2 * threads), as in
// guided self-scheduling, so that all threads end at about the same time. Large
// tasks cost least in all, for each packs its keys.
std::vector<RowTask> CutRows(const Problem& problem, int threads);

// Most rows in one of these tasks, and an upper bound of their number.
int64_t MostTaskRows(const Problem& problem);
int64_t MostTasks(const Problem& problem);

// Memory that CutRows takes for each task.
inline constexpr int64_t kBytesPerTask = 3 * sizeof(RowTask);

}  // namespace attention

#endif  // ATTENTION_KERNEL_TASKS_H_
