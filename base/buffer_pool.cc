#include "base/buffer_pool.h"

#include <new>
#include <utility>

namespace attention {
namespace {

// Smaller buffers go to the allocator, which keeps them itself.
constexpr size_t kMinPooled = size_t{64} << 10;
// Few enough to search one by one.
constexpr size_t kMaxUnused = 64;
constexpr size_t kGranularity = 4096;

std::byte* New(size_t bytes) {
  return static_cast<std::byte*>(
      ::operator new(bytes, std::align_val_t{Buffer::kAlignment}));
}

void Delete(std::byte* data) {
  ::operator delete(data, std::align_val_t{Buffer::kAlignment});
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

std::shared_ptr<BufferPool> BufferPool::Create(size_t retained_bytes) {
  return std::shared_ptr<BufferPool>(new BufferPool(retained_bytes));
}

BufferPool::~BufferPool() {
  for (const Chunk& chunk : unused_) Delete(chunk.data);
}

Buffer BufferPool::Allocate(size_t bytes) {
  if (bytes == 0) return Buffer();
  if (bytes < kMinPooled) return Buffer(shared_from_this(), New(bytes), bytes);
  bytes = (bytes + kGranularity - 1) / kGranularity * kGranularity;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    // The newest first: its pages are the likeliest to be in the cache.
    for (size_t i = unused_.size(); i-- > 0;) {
      const Chunk chunk = unused_[i];
      if (chunk.capacity < bytes || chunk.capacity - bytes > bytes / 4) {
        continue;
      }
      unused_.erase(unused_.begin() + static_cast<ptrdiff_t>(i));
      retained_ -= chunk.capacity;
      return Buffer(shared_from_this(), chunk.data, chunk.capacity);
    }
  }
  return Buffer(shared_from_this(), New(bytes), bytes);
}

void BufferPool::Return(Chunk chunk) {
  std::vector<Chunk> dropped;
  if (chunk.capacity < kMinPooled || chunk.capacity > max_retained_) {
    dropped.push_back(chunk);
  } else {
    std::lock_guard<std::mutex> lock(mutex_);
    while (unused_.size() >= kMaxUnused ||
           retained_ + chunk.capacity > max_retained_) {
      retained_ -= unused_.front().capacity;
      dropped.push_back(unused_.front());
      unused_.erase(unused_.begin());
    }
    unused_.push_back(chunk);
    retained_ += chunk.capacity;
  }
  // Outside the lock: giving pages back takes long.
  for (const Chunk& old : dropped) Delete(old.data);
}

size_t BufferPool::retained() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return retained_;
}

}  // namespace attention
