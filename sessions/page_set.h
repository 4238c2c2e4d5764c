// Memory for keys and values as they arrive: whole blocks of every sequence,
// filled token by token and then handed to the kernel.
//
//   KeyValueGeometry geometry{...};
//   PageSet pages(geometry, pool.Allocate(PageSet::Bytes(geometry)));
//   for (int64_t begin = 0; begin < geometry.tokens(); begin = pages.end()) {
//     pages.Begin(begin);
//     ...  // WriteTokens() (page_writer.h) of tokens [begin, pages.end())
//     accumulator.Add(pages.keys(), executor);
//   }
//
// A *token* is what arrives together: one position of all sequences, or, where
// sequences are ragged, one position of one sequence, the sequences following
// one another. Tokens are counted from 0 through the whole stream.
#ifndef ATTENTION_SESSIONS_PAGE_SET_H_
#define ATTENTION_SESSIONS_PAGE_SET_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "base/buffer_pool.h"
#include "kernel/key_values.h"

namespace attention {

// How tokens look, and how many there are. Owns nothing.
struct KeyValueGeometry {
  int64_t sequences = 1;   // B
  int64_t kv_heads = 1;    // Hkv
  int64_t key_size = 1;    // D, in elements
  int64_t value_size = 1;  // Dv
  int64_t key_element_bytes = 4;
  int64_t value_element_bytes = 4;
  // How n tokens arrive: [B, Hkv, n, size]; else [B, n, Hkv, size], or ragged
  // [n, Hkv, size].
  bool heads_first = false;
  // Keys of each sequence, T; unused where ragged.
  int64_t length = 0;
  // Ragged: sequences + 1 ascending numbers from 0. Empty: not ragged.
  absl::Span<const int64_t> key_starts = {};
  // The mask's axes but the last, multiplied; 0: no mask. n tokens of it arrive
  // as [mask_rows, n].
  int64_t mask_rows = 0;
  int64_t mask_element_bytes = 1;
  // Its last axis, at most T: later tokens have no mask.
  int64_t mask_length = 0;

  bool ragged() const { return !key_starts.empty(); }
  int64_t tokens() const { return ragged() ? key_starts.back() : length; }
  // Sequences that a token belongs to.
  int64_t sequences_per_token() const { return ragged() ? 1 : sequences; }
  int64_t key_row_bytes() const { return key_size * key_element_bytes; }
  int64_t value_row_bytes() const { return value_size * value_element_bytes; }
  // Bytes of a token as it arrives; saturates at the largest int64_t.
  int64_t TokenBytes() const;
};

// Thread-compatible, but for what page_writer.h says. Movable.
class PageSet {
 public:
  // The memory of the largest set, and of its tables, both in bytes; saturate
  // at the largest int64_t. A set has about an eighth of all tokens, between 1
  // and 8 MiB, so that the kernel starts early and has few steps; and at least
  // a block of every sequence that its tokens belong to, which may be more.
  static int64_t Bytes(const KeyValueGeometry& geometry);
  static int64_t TableBytes(const KeyValueGeometry& geometry);
  // Whether one set holds all tokens.
  static bool HoldsAll(const KeyValueGeometry& geometry);

  // `memory` has Bytes() of the geometry, whose `key_starts` must outlive this.
  // Throws std::bad_alloc; nothing else does.
  PageSet(const KeyValueGeometry& geometry, Buffer memory);
  PageSet(PageSet&&) noexcept = default;

  // Makes room for tokens [begin, end()), whatever was there before. `begin` is
  // 0 or the end() of the set before, and less than geometry.tokens().
  void Begin(int64_t begin);

  const KeyValueGeometry& geometry() const { return geometry_; }
  int64_t begin() const { return begin_; }
  int64_t end() const { return end_; }

  // Views of sequences [first_sequence(), first_sequence() + views().size()).
  // Ragged: those that have tokens here, and empty ones between them.
  absl::Span<const KeyValueView> views() const { return views_; }
  int64_t first_sequence() const { return first_sequence_; }

  // Columns [begin(), begin() + mask_columns()) of the mask, [mask_rows,
  // mask_stride()] row-major.
  std::byte* mask() const { return mask_; }
  int64_t mask_columns() const;
  int64_t mask_stride() const { return end_ - begin_; }

 private:
  void BeginDense();
  void BeginRagged();
  // Adds a view of `length` tokens from `begin` on.
  void AddView(int64_t begin, int64_t length);

  KeyValueGeometry geometry_;
  Buffer memory_;
  int64_t begin_ = 0;
  int64_t end_ = 0;
  int64_t first_sequence_ = 0;
  std::vector<KeyValueView> views_;
  std::vector<KeyValueView::Block> blocks_;
  size_t used_ = 0;  // of memory_
  std::byte* mask_ = nullptr;
};

}  // namespace attention

#endif  // ATTENTION_SESSIONS_PAGE_SET_H_
