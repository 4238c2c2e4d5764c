#include "sessions/page.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/saturating.h"

namespace attention {
namespace {

// Each kind of rows begins at a cache line.
int64_t Aligned(int64_t bytes) {
  constexpr int64_t kLine = Buffer::kAlignment;
  return SaturatingAdd(bytes, kLine - 1) / kLine * kLine;
}

int64_t RowsBytes(int64_t heads, int64_t rows, int64_t row_bytes) {
  return Aligned(
      SaturatingMultiply(SaturatingMultiply(heads, rows), row_bytes));
}

// What malloc() and a shared_ptr keep beside an object.
constexpr int64_t kAllocationBytes = 48;

}  // namespace

int64_t PageFormat::PageBytes(int64_t rows) const {
  const int64_t keys =
      RowsBytes(kv_heads, rows, SaturatingMultiply(key_size, element_bytes()));
  const int64_t scales = scaled() ? RowsBytes(kv_heads, rows, 1) : 0;
  if (value_is_key_prefix) return SaturatingAdd(keys, scales);
  const int64_t values = RowsBytes(
      kv_heads, rows, SaturatingMultiply(value_size, element_bytes()));
  return SaturatingAdd(SaturatingAdd(keys, values),
                       SaturatingMultiply(2, scales));
}

std::shared_ptr<Page> Page::Create(const PageFormat& format, int64_t rows,
                                   BufferPool& pool,
                                   std::shared_ptr<MemoryAccount> account) {
  MemoryCharge charge(std::move(account), Bytes(format, rows));
  if (!charge) return nullptr;
  return std::shared_ptr<Page>(
      new Page(format, rows, std::move(charge),
               pool.Allocate(static_cast<size_t>(format.PageBytes(rows)))));
}

int64_t Page::Bytes(const PageFormat& format, int64_t rows) {
  return SaturatingAdd(format.PageBytes(rows),
                       static_cast<int64_t>(sizeof(Page)) + kAllocationBytes);
}

Page::Page(const PageFormat& format, int64_t rows, MemoryCharge charge,
           Buffer memory)
    : format_(format),
      rows_(rows),
      values_at_(RowsBytes(format.kv_heads, rows, format.key_row_bytes())),
      key_scales_at_(format.value_is_key_prefix
                         ? values_at_
                         : values_at_ + RowsBytes(format.kv_heads, rows,
                                                  format.value_row_bytes())),
      value_scales_at_(format.value_is_key_prefix
                           ? key_scales_at_
                           : key_scales_at_ +
                                 RowsBytes(format.kv_heads, rows, 1)),
      charge_(std::move(charge)),
      memory_(std::move(memory)) {
  block_.key = key_row(0, 0);
  block_.value = value_row(0, 0);
  block_.key_head_stride = rows * format.key_size;
  block_.value_head_stride = rows * format.value_row_stride();
  if (!format.scaled()) return;
  block_.key_scales = key_scale(0, 0);
  block_.value_scales = value_scale(0, 0);
  block_.scale_head_stride = rows;
}

bool Page::Claim(int64_t begin, int64_t end) {
  return end <= rows_ && claimed_.compare_exchange_strong(begin, end);
}

void Page::Unclaim(int64_t begin, int64_t end) {
  claimed_.compare_exchange_strong(end, begin);
}

void Page::CopyRows(const Page& from, int64_t count) {
  claimed_ = count;
  if (count == 0) return;
  for (int64_t head = 0; head < format_.kv_heads; ++head) {
    std::memcpy(key_row(head, 0), from.key_row(head, 0),
                static_cast<size_t>(count * format_.key_row_bytes()));
    if (format_.scaled()) {
      std::copy_n(from.key_scale(head, 0), count, key_scale(head, 0));
    }
    if (format_.value_is_key_prefix) continue;
    if (format_.scaled()) {
      std::copy_n(from.value_scale(head, 0), count, value_scale(head, 0));
    }
    std::memcpy(value_row(head, 0), from.value_row(head, 0),
                static_cast<size_t>(count * format_.value_row_bytes()));
  }
}

std::shared_ptr<PageTable> PageTable::Create(
    const PageTable* from, int64_t begin, int64_t end, int64_t more,
    std::shared_ptr<MemoryAccount> account) {
  const int64_t count = end - begin;
  MemoryCharge charge(std::move(account), Bytes(count + more));
  if (!charge) return nullptr;
  auto table = std::make_shared<PageTable>(std::move(charge));
  table->first = begin;
  table->pages.reserve(static_cast<size_t>(count + more));
  table->blocks.reserve(static_cast<size_t>(count + more));
  if (count == 0) return table;
  const int64_t skipped = begin - from->first;
  const auto page = from->pages.begin() + skipped;
  const auto block = from->blocks.begin() + skipped;
  table->pages.assign(page, page + count);
  table->blocks.assign(block, block + count);
  return table;
}

int64_t PageTable::Bytes(int64_t pages) {
  constexpr int64_t kPerPage =
      sizeof(std::shared_ptr<Page>) + sizeof(KeyValueView::Block);
  return static_cast<int64_t>(sizeof(PageTable)) + 3 * kAllocationBytes +
         kPerPage * pages;
}

void PageTable::Add(std::shared_ptr<Page> page) {
  blocks.push_back(page->block());
  pages.push_back(std::move(page));
}

}  // namespace attention
