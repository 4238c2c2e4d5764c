#include "kernel/scratch.h"

#include <cstdint>

#include "hwy/aligned_allocator.h"

namespace attention {
namespace {

// Memory above this is given back after a task that needed it.
constexpr int64_t kKeptBytes = int64_t{32} << 20;

struct ThreadMemory {
  hwy::AlignedFreeUniquePtr<char[]> memory;
  int64_t bytes = 0;
};

char* ReserveBytes(int64_t bytes) {
  thread_local ThreadMemory kept;
  if (bytes > kept.bytes || kept.bytes > kKeptBytes) {
    kept.memory.reset();
    kept.memory = hwy::AllocateAligned<char>(static_cast<size_t>(bytes));
    kept.bytes = bytes;
  }
  return kept.memory.get();
}

}  // namespace

template <>
float* Scratch<float>::Reserve(int64_t size) {
  return reinterpret_cast<float*>(ReserveBytes(size * sizeof(float)));
}

template <>
double* Scratch<double>::Reserve(int64_t size) {
  return reinterpret_cast<double*>(ReserveBytes(size * sizeof(double)));
}

}  // namespace attention
