// Aligned memory for tensors, kept between requests: fresh pages cost more than
// the copy into them.
#ifndef ATTENTION_BASE_BUFFER_POOL_H_
#define ATTENTION_BASE_BUFFER_POOL_H_

#include <cstddef>
#include <memory>
#include <mutex>
#include <vector>

namespace attention {

class BufferPool;

// Owns memory of a pool and gives it back when destroyed. Movable; keeps the
// pool alive. A moved-from or default buffer is empty.
class Buffer {
 public:
  static constexpr size_t kAlignment = 64;

  Buffer() = default;
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept;
  ~Buffer() { Release(); }

  std::byte* data() const { return data_; }
  // At least what was asked for.
  size_t capacity() const { return capacity_; }

 private:
  friend class BufferPool;
  Buffer(std::shared_ptr<BufferPool> pool, std::byte* data, size_t capacity)
      : pool_(std::move(pool)), data_(data), capacity_(capacity) {}
  void Release();

  std::shared_ptr<BufferPool> pool_;
  std::byte* data_ = nullptr;
  size_t capacity_ = 0;
};

// Thread-safe. Lives as long as any of its buffers.
class BufferPool : public std::enable_shared_from_this<BufferPool> {
 public:
  // Keeps at most `retained_bytes` of unused memory.
  static std::shared_ptr<BufferPool> Create(size_t retained_bytes);
  ~BufferPool();
  BufferPool(const BufferPool&) = delete;
  BufferPool& operator=(const BufferPool&) = delete;

  // Uninitialised memory of at least `bytes`, aligned to Buffer::kAlignment;
  // empty for 0.
  Buffer Allocate(size_t bytes);

  // Unused bytes held.
  size_t retained() const;

 private:
  friend class Buffer;
  struct Chunk {
    std::byte* data;
    size_t capacity;
  };

  explicit BufferPool(size_t retained_bytes) : max_retained_(retained_bytes) {}
  void Return(Chunk chunk);

  const size_t max_retained_;
  mutable std::mutex mutex_;
  // Oldest first; both guarded by mutex_.
  std::vector<Chunk> unused_;
  size_t retained_ = 0;
};

}  // namespace attention

#endif  // ATTENTION_BASE_BUFFER_POOL_H_
