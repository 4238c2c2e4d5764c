// A page: keys and values of at most kKeyBlock tokens of one layer, which the
// kernel reads as a block.
#ifndef ATTENTION_SESSIONS_PAGE_H_
#define ATTENTION_SESSIONS_PAGE_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "base/buffer_pool.h"
#include "kernel/data_type.h"
#include "kernel/key_values.h"
#include "kernel/scaled.h"
#include "sessions/memory_account.h"

namespace attention {

// How the rows of a page look.
struct PageFormat {
  int64_t kv_heads = 1;    // Hkv
  int64_t key_size = 1;    // D, in elements
  int64_t value_size = 1;  // Dv
  // Of keys and of values: a float type, or that of scaled rows
  // (kernel/scaled.h).
  DataType type = DataType::kFloat32;
  // Values are the first Dv columns of keys, and take no memory of their own.
  bool value_is_key_prefix = false;

  bool scaled() const { return IsScaled(type); }
  // What queries are, and keys and values computed as.
  DataType computed_type() const {
    return scaled() ? DataType::kFloat32 : type;
  }
  int64_t element_bytes() const { return static_cast<int64_t>(SizeOf(type)); }
  int64_t key_row_bytes() const { return key_size * element_bytes(); }
  int64_t value_row_bytes() const { return value_size * element_bytes(); }
  // Between the rows of two tokens of one head, in elements.
  int64_t value_row_stride() const {
    return value_is_key_prefix ? key_size : value_size;
  }
  // The memory of a page with room for `rows` tokens; saturates at the largest
  // int64_t.
  int64_t PageBytes(int64_t rows) const;

  friend bool operator==(const PageFormat&, const PageFormat&) = default;
};

// Keys [Hkv, rows, D], then values [Hkv, rows, Dv]; of scaled rows then the
// scales of keys and those of values, [Hkv, rows] each.
//
// Invariants:
//   1. Rows are claimed in order, each once. Who has claimed rows writes them,
//      and nobody else does.
//   2. Rows are shown to readers only once they have been written; from then
//      on they never change.
// So whoever holds a page may read the rows that it was shown, without a lock,
// while others are written.
class Page {
 public:
  // With room for `rows` tokens. Null if `account` has no room for it. Throws
  // std::bad_alloc.
  static std::shared_ptr<Page> Create(const PageFormat& format, int64_t rows,
                                      BufferPool& pool,
                                      std::shared_ptr<MemoryAccount> account);
  // What such a page takes of the account: PageBytes() and the object itself.
  static int64_t Bytes(const PageFormat& format, int64_t rows);
  Page(const Page&) = delete;
  Page& operator=(const Page&) = delete;

  int64_t rows() const { return rows_; }
  const KeyValueView::Block& block() const { return block_; }

  // Rows [begin, end) become the caller's to write: if there is room for them,
  // all before them are claimed and none of them is. Thread-safe.
  bool Claim(int64_t begin, int64_t end);

  // Gives back rows that the caller has claimed and shown to nobody. Where
  // others have been claimed after them they are lost to the page.
  void Unclaim(int64_t begin, int64_t end);

  // Claims rows [0, count) of a new page and copies them from another one of
  // the same format.
  void CopyRows(const Page& from, int64_t count);

  std::byte* key_row(int64_t head, int64_t row) const {
    return memory_.data() + (head * rows_ + row) * format_.key_row_bytes();
  }
  std::byte* value_row(int64_t head, int64_t row) const {
    if (format_.value_is_key_prefix) return key_row(head, row);
    return memory_.data() + values_at_ +
           (head * rows_ + row) * format_.value_row_bytes();
  }
  // Of scaled rows.
  uint8_t* key_scale(int64_t head, int64_t row) const {
    return scales(key_scales_at_) + head * rows_ + row;
  }
  uint8_t* value_scale(int64_t head, int64_t row) const {
    return scales(value_scales_at_) + head * rows_ + row;
  }

 private:
  Page(const PageFormat& format, int64_t rows, MemoryCharge charge,
       Buffer memory);

  const PageFormat format_;
  const int64_t rows_;
  uint8_t* scales(int64_t at) const {
    return reinterpret_cast<uint8_t*>(memory_.data() + at);
  }

  // In memory_.
  const int64_t values_at_, key_scales_at_, value_scales_at_;
  // Given back after the memory.
  const MemoryCharge charge_;
  const Buffer memory_;
  KeyValueView::Block block_;
  std::atomic<int64_t> claimed_{0};  // rows
};

// The pages of one layer, all full but the last: those from number `first` on,
// page i being that of tokens [i * kKeyBlock, (i + 1) * kKeyBlock). Immutable:
// sessions and readers share it.
struct PageTable {
  // Copies pages [begin, end) of `from`, which has them, with room for `more`
  // behind them. `from` may be null where there are none. Null if `account` has
  // no room for it. Throws std::bad_alloc.
  static std::shared_ptr<PageTable> Create(
      const PageTable* from, int64_t begin, int64_t end, int64_t more,
      std::shared_ptr<MemoryAccount> account);
  // What a table of so many pages takes of the account, without the pages.
  static int64_t Bytes(int64_t pages);

  explicit PageTable(MemoryCharge taken) : charge(std::move(taken)) {}

  void Add(std::shared_ptr<Page> page);

  const std::shared_ptr<Page>& page(int64_t number) const {
    return pages[static_cast<size_t>(number - first)];
  }

  // Given back after the rest.
  const MemoryCharge charge;
  int64_t first = 0;
  std::vector<std::shared_ptr<Page>> pages;
  // Those of the pages, as the kernel takes them.
  std::vector<KeyValueView::Block> blocks;
};

}  // namespace attention

#endif  // ATTENTION_SESSIONS_PAGE_H_
