#include "base/buffer_pool.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

namespace attention {
namespace {

// Smaller buffers go to the allocator, which keeps them itself.
constexpr size_t kMinPooled = size_t{64} << 10;
constexpr size_t kGranularity = 4096;
// From here on huge pages are asked for: fewer faults while they fill, fewer
// misses of the TLB while keys and values are read.
constexpr size_t kMinHuge = size_t{8} << 20;

std::byte* New(size_t bytes) {
  if (bytes < kMinPooled) {
    return static_cast<std::byte*>(
        ::operator new(bytes, std::align_val_t{Buffer::kAlignment}));
  }
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) throw std::bad_alloc();
  if (bytes >= kMinHuge) madvise(data, bytes, MADV_HUGEPAGE);
  return static_cast<std::byte*>(data);
}

void Delete(std::byte* data, size_t bytes) noexcept {
  if (bytes < kMinPooled) {
    ::operator delete(data, std::align_val_t{Buffer::kAlignment});
  } else {
    munmap(data, bytes);
  }
}

}  // namespace

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  if (this == &other) return *this;
  Release();
  pool_ = std::move(other.pool_);
  data_ = std::exchange(other.data_, nullptr);
  capacity_ = std::exchange(other.capacity_, 0);
  return *this;
}

void Buffer::Release() {
  if (data_ != nullptr) pool_->Return({data_, capacity_});
  data_ = nullptr;
  capacity_ = 0;
  pool_.reset();
}

std::shared_ptr<BufferPool> BufferPool::Create(size_t retained_bytes,
                                               size_t total_bytes,
                                               Poison poison) {
  return std::shared_ptr<BufferPool>(
      new BufferPool(retained_bytes, total_bytes, poison));
}

BufferPool::~BufferPool() {
  for (size_t i = 0; i < num_unused_; ++i) {
    Delete(unused_[i].data, unused_[i].capacity);
  }
}

void BufferPool::Fill(Chunk chunk) const {
  if (poison_ == Poison::kNan) std::memset(chunk.data, 0xFF, chunk.capacity);
}

Buffer BufferPool::Allocate(size_t bytes) {
  Buffer buffer = AllocateUnfilled(bytes);
  if (bytes > 0) Fill({buffer.data(), buffer.capacity()});
  return buffer;
}

Buffer BufferPool::AllocateUnfilled(size_t bytes) {
  if (bytes == 0) return Buffer();
  if (bytes < kMinPooled) return Buffer(shared_from_this(), New(bytes), bytes);
  if (bytes > std::numeric_limits<size_t>::max() / 2) throw std::bad_alloc();
  bytes = (bytes + kGranularity - 1) / kGranularity * kGranularity;
  const Chunk chunk = TakeUnused(bytes);
  if (chunk.data != nullptr) {
    return Buffer(shared_from_this(), chunk.data, chunk.capacity);
  }
  std::byte* data;
  try {
    data = New(bytes);
  } catch (const std::bad_alloc&) {
    std::lock_guard<std::mutex> lock(mutex_);
    in_use_ -= bytes;
    throw;
  }
  return Buffer(shared_from_this(), data, bytes);
}

BufferPool::Chunk BufferPool::TakeUnused(size_t bytes) {
  for (;;) {
    Chunk evicted{};
    {
      std::lock_guard<std::mutex> lock(mutex_);
      // The newest first: its pages are the likeliest to be in the cache.
      for (size_t i = num_unused_; i-- > 0;) {
        const Chunk chunk = unused_[i];
        if (chunk.capacity < bytes || chunk.capacity - bytes > bytes / 4) {
          continue;
        }
        RemoveUnused(i);
        in_use_ += chunk.capacity;
        return chunk;
      }
      if (num_unused_ == 0 || in_use_ + retained_ + bytes <= max_total_) {
        in_use_ += bytes;
        return {};
      }
      evicted = Evict();
    }
    Delete(evicted.data, evicted.capacity);
  }
}

void BufferPool::RemoveUnused(size_t index) {
  retained_ -= unused_[index].capacity;
  std::move(unused_.begin() + index + 1, unused_.begin() + num_unused_,
            unused_.begin() + index);
  --num_unused_;
}

BufferPool::Chunk BufferPool::Evict() {
  const Chunk oldest = unused_[0];
  RemoveUnused(0);
  return oldest;
}

void BufferPool::Return(Chunk chunk) noexcept {
  Fill(chunk);
  if (chunk.capacity < kMinPooled) return Delete(chunk.data, chunk.capacity);
  // Chunks are freed outside the lock: giving pages back takes long.
  for (;;) {
    Chunk dropped = chunk;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (chunk.data != nullptr) in_use_ -= chunk.capacity;
      const bool fits = num_unused_ < kMaxUnused &&
                        retained_ + chunk.capacity <= max_retained_ &&
                        in_use_ + retained_ + chunk.capacity <= max_total_;
      if (fits) {
        unused_[num_unused_++] = chunk;
        retained_ += chunk.capacity;
        return;
      }
      if (num_unused_ == 0 || chunk.capacity > max_retained_) {
        dropped = chunk;
        chunk.data = nullptr;
      } else {
        dropped = Evict();
        in_use_ += chunk.capacity;  // Still to be returned, the next time.
      }
    }
    Delete(dropped.data, dropped.capacity);
    if (chunk.data == nullptr) return;
  }
}

size_t BufferPool::retained() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return retained_;
}

}  // namespace attention
