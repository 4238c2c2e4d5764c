// Copies tokens from where they arrived into the blocks of a PageSet: one copy,
// nothing in between.
#ifndef ATTENTION_SESSIONS_PAGE_WRITER_H_
#define ATTENTION_SESSIONS_PAGE_WRITER_H_

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>

#include "kernel/key_values.h"
#include "sessions/page_set.h"

namespace attention {

// A forward position in bytes. Copies are cheap and independent.
template <typename T>
concept ByteReader =
    std::copyable<T> && requires(T reader, void* target, size_t count) {
      reader.ReadBytes(target, count);
      reader.Skip(count);
    };

// Tokens [begin, end) of the stream.
struct TokenRange {
  int64_t begin = 0;
  int64_t end = 0;
};

enum class KeyOrValue : uint8_t { kKey, kValue };

// A part of what tokens consist of: of the sequences that each belongs to, or
// of the mask's rows. By default all.
struct PartRange {
  int64_t begin = 0;
  int64_t end = std::numeric_limits<int64_t>::max();
};

// The functions below copy a part of tokens `range`, which `pages` and `chunk`
// both contain; `bytes` are all those of the chunk's key, value or mask. Calls
// that differ in the operand, or whose ranges or whose parts do not overlap,
// may run at the same time.

namespace internal {

// Where the tokens of one sequence go.
template <ByteReader Reader>
class SequenceWriter {
 public:
  SequenceWriter(const KeyValueGeometry& geometry, const KeyValueView& view,
                 KeyOrValue operand)
      : view_(view),
        heads_(geometry.kv_heads),
        key_(operand == KeyOrValue::kKey),
        row_bytes_(key_ ? geometry.key_row_bytes()
                        : geometry.value_row_bytes()),
        element_bytes_(key_ ? geometry.key_element_bytes
                            : geometry.value_element_bytes) {}

  int64_t row_bytes() const { return row_bytes_; }

  // Rows [begin, end) of one head, tokens counted from the view's first.
  void WriteHead(int64_t head, int64_t begin, int64_t end, Reader& from) {
    for (int64_t row = begin; row < end;) {
      const int64_t stop = std::min(end, (row / kKeyBlock + 1) * kKeyBlock);
      from.ReadBytes(Row(head, row), (stop - row) * row_bytes_);
      row = stop;
    }
  }

  // The same of all heads, whose rows follow one another token by token.
  void WriteTokens(int64_t begin, int64_t end, Reader& from) {
    if (heads_ == 1) return WriteHead(0, begin, end, from);
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t head = 0; head < heads_; ++head) {
        from.ReadBytes(Row(head, row), row_bytes_);
      }
    }
  }

 private:
  std::byte* Row(int64_t head, int64_t row) const {
    const KeyValueView::Block& block = view_.blocks[row / kKeyBlock];
    const int64_t head_stride =
        (key_ ? block.key_head_stride : block.value_head_stride) *
        element_bytes_;
    // The page set's own memory, which the view shows to readers.
    auto* const data = const_cast<std::byte*>(
        static_cast<const std::byte*>(key_ ? block.key : block.value));
    return data + head * head_stride + row % kKeyBlock * row_bytes_;
  }

  const KeyValueView& view_;
  const int64_t heads_;
  const bool key_;
  const int64_t row_bytes_;
  const int64_t element_bytes_;
};

template <ByteReader Reader>
void WriteRaggedTokens(const PageSet& pages, KeyOrValue operand,
                       TokenRange range, Reader from) {
  const KeyValueGeometry& g = pages.geometry();
  const auto next =
      std::upper_bound(g.key_starts.begin(), g.key_starts.end(), range.begin);
  int64_t sequence = next - g.key_starts.begin() - 1;
  for (int64_t token = range.begin; token < range.end; ++sequence) {
    const KeyValueView& view = pages.views()[sequence - pages.first_sequence()];
    const int64_t first = g.key_starts[sequence] + view.begin;
    const int64_t stop = std::min(range.end, first + view.length);
    SequenceWriter<Reader>(g, view, operand)
        .WriteTokens(token - first, stop - first, from);
    token = stop;
  }
}

}  // namespace internal

// Ragged tokens belong to one sequence: there is nothing to choose.
template <ByteReader Reader>
void WriteTokens(const PageSet& pages, KeyOrValue operand, TokenRange chunk,
                 TokenRange range, const Reader& bytes,
                 PartRange sequences = {}) {
  const KeyValueGeometry& g = pages.geometry();
  const int64_t in_chunk = chunk.end - chunk.begin;
  const int64_t before = range.begin - chunk.begin;
  const int64_t begin = range.begin - pages.begin();
  const int64_t end = range.end - pages.begin();
  Reader from = bytes;
  if (g.ragged()) {
    from.Skip(before * g.kv_heads *
              (operand == KeyOrValue::kKey ? g.key_row_bytes()
                                           : g.value_row_bytes()));
    return internal::WriteRaggedTokens(pages, operand, range, from);
  }
  // Heads that stand apart, each a run of rows, or one run of tokens.
  const int64_t runs = g.heads_first ? g.kv_heads : 1;
  const int64_t row_heads = g.heads_first ? 1 : g.kv_heads;
  const int64_t after = in_chunk - before - (range.end - range.begin);
  const int64_t row_bytes =
      operand == KeyOrValue::kKey ? g.key_row_bytes() : g.value_row_bytes();
  from.Skip(sequences.begin * g.kv_heads * in_chunk * row_bytes);
  sequences.end = std::min(sequences.end, g.sequences);
  for (int64_t i = sequences.begin; i < sequences.end; ++i) {
    internal::SequenceWriter<Reader> writer(g, pages.views()[i], operand);
    const int64_t token_bytes = row_heads * writer.row_bytes();
    for (int64_t head = 0; head < runs; ++head) {
      from.Skip(before * token_bytes);
      if (g.heads_first) {
        writer.WriteHead(head, begin, end, from);
      } else {
        writer.WriteTokens(begin, end, from);
      }
      from.Skip(after * token_bytes);
    }
  }
}

// Of the mask, of which the chunk has `columns`, [mask_rows, columns]; the
// range must lie within them. With `bools`, the first element of the chunk's
// mask, within the range, that is neither 0 nor 1; nothing else is returned.
template <ByteReader Reader>
std::optional<int64_t> WriteMask(const PageSet& pages, TokenRange chunk,
                                 int64_t columns, TokenRange range, bool bools,
                                 const Reader& bytes, PartRange rows = {}) {
  const KeyValueGeometry& g = pages.geometry();
  const int64_t element = g.mask_element_bytes;
  const int64_t before = range.begin - chunk.begin;
  const int64_t count = range.end - range.begin;
  Reader from = bytes;
  from.Skip(rows.begin * columns * element);
  rows.end = std::min(rows.end, g.mask_rows);
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    std::byte* const target =
        pages.mask() +
        (row * pages.mask_stride() + range.begin - pages.begin()) * element;
    from.Skip(before * element);
    from.ReadBytes(target, count * element);
    from.Skip((columns - before - count) * element);
    if (!bools) continue;
    // A loop that compilers turn into SIMD.
    std::byte bits{0};
    for (int64_t j = 0; j < count; ++j) bits |= target[j];
    if (bits <= std::byte{1}) continue;
    const auto* const wrong = std::find_if(
        target, target + count, [](std::byte b) { return b > std::byte{1}; });
    return row * columns + before + (wrong - target);
  }
  return std::nullopt;
}

}  // namespace attention

#endif  // ATTENTION_SESSIONS_PAGE_WRITER_H_
