#include "tests/server/http/peak_memory.h"

#include <malloc.h>

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <new>

namespace {

// Of the thread's Peak.
thread_local bool counting = false;
thread_local int64_t live = 0;
thread_local int64_t most = 0;
thread_local int64_t allocations_left = 0;

// Not known to the static analyser, which would say of each new that it leaks.
void* (*volatile allocate)(size_t) = std::malloc;

[[maybe_unused]] void* Allocate(size_t bytes) {
  if (counting && --allocations_left < 0) return nullptr;
  void* const memory = allocate(bytes == 0 ? 1 : bytes);
  if (counting && memory != nullptr) {
    live += static_cast<int64_t>(malloc_usable_size(memory));
    most = std::max(most, live);
  }
  return memory;
}

[[maybe_unused]] void Free(void* memory) {
  if (counting && memory != nullptr) {
    live -= static_cast<int64_t>(malloc_usable_size(memory));
  }
  std::free(memory);
}

}  // namespace

#ifndef ATTENTION_SANITIZED
void* operator new(size_t bytes) {
  void* const memory = Allocate(bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
void* operator new(size_t bytes, const std::nothrow_t&) noexcept {
  return Allocate(bytes);
}
void operator delete(void* memory) noexcept { Free(memory); }
void operator delete(void* memory, size_t) noexcept { Free(memory); }
void operator delete(void* memory, const std::nothrow_t&) noexcept {
  Free(memory);
}
#endif

namespace attention::testing {

Peak::Peak(int64_t allocations) {
  live = 0;
  most = 0;
  allocations_left = allocations;
  counting = true;
}

Peak::~Peak() { counting = false; }

int64_t Peak::bytes() { return most; }

int64_t Peak::live_bytes() { return live; }

}  // namespace attention::testing
