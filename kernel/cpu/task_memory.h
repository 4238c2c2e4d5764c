// The memory of tasks: what a thread reuses from task to task, and what stays
// with a task that is suspended. Internal.
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

// A task between two calls, its memory laid out as a RowState.
struct TaskState {
  TaskMemory memory;
  // Whether the memory holds queries and partials already.
  bool begun = false;
};

// A thread keeps its state and scratch for the next task if they are together
// no larger than this.
inline constexpr int64_t kKeptScratchBytes = int64_t{4} << 20;

// This thread's memory for the state of a task's rows, and for scratch: at
// least `bytes` each, valid until the thread's next call. Throw std::bad_alloc.
char* ReserveState(int64_t bytes);
char* ReserveScratch(int64_t bytes);
// Moves this thread's state memory to the caller.
TaskMemory TakeState();
// Frees this thread's memory if it exceeds kKeptScratchBytes.
void TrimTaskMemory();
// Frees this thread's memory.
void FreeTaskMemory();

}  // namespace attention

#endif  // ATTENTION_KERNEL_CPU_TASK_MEMORY_H_
