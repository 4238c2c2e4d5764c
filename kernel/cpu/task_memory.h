// The memory of tasks: what a thread keeps from one task for the next, and what
// stays with a task that is left before it is done. Internal.
#ifndef ATTENTION_KERNEL_CPU_TASK_MEMORY_H_
#define ATTENTION_KERNEL_CPU_TASK_MEMORY_H_

#include <cstdint>

#include "hwy/aligned_allocator.h"

namespace attention {

// Memory aligned to vectors.
struct TaskMemory {
  hwy::AlignedFreeUniquePtr<char[]> data;
  int64_t bytes = 0;
};

// Throws std::bad_alloc.
TaskMemory AllocateTaskMemory(int64_t bytes);

// What is left of a task between two turns, laid out as a RowState.
struct TaskState {
  TaskMemory memory;
  // Whether the memory holds queries and partials already.
  bool begun = false;
};

// Each thread keeps memory of its last task for the next one, as far as it has
// no more than this.
inline constexpr int64_t kKeptScratchBytes = int64_t{4} << 20;

// This thread's memory for at least `bytes`: one piece for the state of a
// task's rows, one for its scratch. Valid until the thread's next call. Both
// throw std::bad_alloc.
char* ReserveState(int64_t bytes);
char* ReserveScratch(int64_t bytes);
// Takes this thread's memory for a state away.
TaskMemory TakeState();
// Frees this thread's memory if it is more than is kept.
void TrimTaskMemory();
// Frees it.
void FreeTaskMemory();

}  // namespace attention

#endif  // ATTENTION_KERNEL_CPU_TASK_MEMORY_H_
