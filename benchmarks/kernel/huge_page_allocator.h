// Memory for what is measured.
#ifndef ATTENTION_BENCHMARKS_KERNEL_HUGE_PAGE_ALLOCATOR_H_
#define ATTENTION_BENCHMARKS_KERNEL_HUGE_PAGE_ALLOCATOR_H_

#include <cstddef>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace attention::benchmarks {

// Aligned to cache lines, as the server's buffers. Large allocations are asked
// to be in huge pages on Linux, as NumPy's are, which the peers compute with:
// reading them depends less on where pages happen to lie.
template <typename T>
struct HugePageAllocator {
  using value_type = T;

  HugePageAllocator() = default;
  template <typename U>
  HugePageAllocator(const HugePageAllocator<U>&) {}

  T* allocate(size_t count) {
    const size_t bytes = count * sizeof(T);
    void* memory = ::operator new(bytes, Alignment(bytes));
#ifdef __linux__
    // No more than advice.
    if (bytes >= kHugePage) madvise(memory, bytes, MADV_HUGEPAGE);
#endif
    return static_cast<T*>(memory);
  }
  void deallocate(T* memory, size_t count) {
    ::operator delete(memory, Alignment(count * sizeof(T)));
  }

  friend bool operator==(const HugePageAllocator&, const HugePageAllocator&) {
    return true;
  }
  friend bool operator!=(const HugePageAllocator&, const HugePageAllocator&) {
    return false;
  }

 private:
  static constexpr size_t kHugePage = size_t{2} << 20;
  static constexpr size_t kCacheLine = 64;

  static std::align_val_t Alignment(size_t bytes) {
    return std::align_val_t{bytes >= kHugePage ? kHugePage : kCacheLine};
  }
};

}  // namespace attention::benchmarks

#endif  // ATTENTION_BENCHMARKS_KERNEL_HUGE_PAGE_ALLOCATOR_H_
