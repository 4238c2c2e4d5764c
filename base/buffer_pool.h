// Aligned memory for tensors, kept between requests: fresh pages cost more than
// the copy into them.
#ifndef ATTENTION_BASE_BUFFER_POOL_H_
#define ATTENTION_BASE_BUFFER_POOL_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <mutex>

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

// Thread-safe. Lives as long as any of its buffers. Large buffers are mapped
// from the system one by one, so that what is freed goes back to it.
class BufferPool : public std::enable_shared_from_this<BufferPool> {
 public:
  // What memory is filled with that nobody may read, before it is handed out
  // and once it is given back.
  enum class Poison : uint8_t {
    kNone,
    // For tests: bytes of 0xFF, which are NaN in every float type, in FP8 E4M3
    // and as a scale. What reads pages too early or too late shows then.
    kNan,
  };

  // Keeps at most `retained_bytes` of unused memory, and none that would bring
  // all memory, used and unused, above `total_bytes`. That does not bound what
  // is in use.
  static std::shared_ptr<BufferPool> Create(
      size_t retained_bytes,
      size_t total_bytes = std::numeric_limits<size_t>::max(),
      Poison poison = Poison::kNone);
  ~BufferPool();
  BufferPool(const BufferPool&) = delete;
  BufferPool& operator=(const BufferPool&) = delete;

  // Uninitialised memory of at least `bytes`, aligned to Buffer::kAlignment;
  // empty for 0. Throws std::bad_alloc.
  Buffer Allocate(size_t bytes);

  // Unused bytes held.
  size_t retained() const;

 private:
  friend class Buffer;
  struct Chunk {
    std::byte* data;
    size_t capacity;
  };

  // Few enough to search one by one, and to hold without allocating: memory is
  // given back in destructors.
  static constexpr size_t kMaxUnused = 64;

  BufferPool(size_t retained_bytes, size_t total_bytes, Poison poison)
      : max_retained_(retained_bytes),
        max_total_(total_bytes),
        poison_(poison) {}
  Buffer AllocateUnfilled(size_t bytes);
  void Fill(Chunk chunk) const;
  // An unused chunk that fits; data null: none.
  Chunk TakeUnused(size_t bytes);
  void Return(Chunk chunk) noexcept;
  // Takes the oldest unused chunk away, for the caller to free.
  Chunk Evict();
  void RemoveUnused(size_t index);

  const size_t max_retained_;
  const size_t max_total_;
  const Poison poison_;
  mutable std::mutex mutex_;
  // All guarded by mutex_. Chunks of kMinPooled bytes and more only.
  std::array<Chunk, kMaxUnused> unused_;  // oldest first
  size_t num_unused_ = 0;
  size_t retained_ = 0;
  size_t in_use_ = 0;
};

}  // namespace attention

#endif  // ATTENTION_BASE_BUFFER_POOL_H_
