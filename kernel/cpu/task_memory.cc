#include "kernel/cpu/task_memory.h"

#include <cstdint>
#include <new>
#include <utility>

#include "hwy/aligned_allocator.h"

namespace attention {
namespace {

struct Kept {
  TaskMemory state;
  TaskMemory scratch;
};

Kept& OfThisThread() {
  thread_local Kept kept;
  return kept;
}

char* Reserve(TaskMemory& memory, int64_t bytes) {
  if (bytes > memory.bytes) {
    memory = {};  // Before more is taken.
    memory = AllocateTaskMemory(bytes);
  }
  return memory.data.get();
}

}  // namespace

TaskMemory AllocateTaskMemory(int64_t bytes) {
  TaskMemory memory;
  memory.data = hwy::AllocateAligned<char>(static_cast<size_t>(bytes));
  if (memory.data == nullptr) throw std::bad_alloc();
  memory.bytes = bytes;
  return memory;
}

char* ReserveState(int64_t bytes) {
  return Reserve(OfThisThread().state, bytes);
}

char* ReserveScratch(int64_t bytes) {
  return Reserve(OfThisThread().scratch, bytes);
}

TaskMemory TakeState() { return std::exchange(OfThisThread().state, {}); }

void TrimTaskMemory() {
  Kept& kept = OfThisThread();
  if (kept.state.bytes + kept.scratch.bytes > kKeptScratchBytes) kept = {};
}

void FreeTaskMemory() { OfThisThread() = {}; }

}  // namespace attention
