#include "kernel/scratch.h"

#include <cstdint>
#include <new>
#include <utility>

#include "hwy/aligned_allocator.h"

namespace attention {
namespace {

ScratchMemory& Kept() {
  thread_local ScratchMemory kept;
  return kept;
}

}  // namespace

char* ReserveScratch(int64_t bytes) {
  ScratchMemory& kept = Kept();
  if (bytes > kept.bytes) {
    kept = {};
    kept.data = hwy::AllocateAligned<char>(static_cast<size_t>(bytes));
    if (kept.data == nullptr) throw std::bad_alloc();
    kept.bytes = bytes;
  }
  return kept.data.get();
}

ScratchMemory TakeScratch() { return std::exchange(Kept(), {}); }

void PutScratch(ScratchMemory memory) { Kept() = std::move(memory); }

void TrimScratch() {
  if (Kept().bytes > kKeptScratchBytes) Kept() = {};
}

}  // namespace attention
