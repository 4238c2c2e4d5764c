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

// All rows of the problem, each in one task, the dearest tasks first: threads
// that draw them in this order end at about the same time.
std::vector<RowTask> CutRows(const Problem& problem);

}  // namespace attention

#endif  // ATTENTION_KERNEL_TASKS_H_
