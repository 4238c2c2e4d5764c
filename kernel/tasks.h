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
// this order. Large tasks cost least in all, as each packs its keys; the
// dearest come first and none has more than its share of half the work still
// left, so that all threads end at about the same time.
std::vector<RowTask> CutRows(const Problem& problem, int threads);

}  // namespace attention

#endif  // ATTENTION_KERNEL_TASKS_H_
