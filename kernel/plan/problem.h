// The checked geometry of one computation, with every layout reduced to offsets
// and strides. Internal.
#ifndef ATTENTION_KERNEL_PLAN_PROBLEM_H_
#define ATTENTION_KERNEL_PLAN_PROBLEM_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/types/span.h"
#include "kernel/attention.h"
#include "kernel/data_type.h"
#include "kernel/key_values.h"
#include "kernel/tensor_view.h"

namespace attention {

// A tensor of axes (batch, head, row, column), strided: its element (b, h, row,
// column) is number
//   b * batch_stride + h * head_stride + row * row_stride + column
// of `data`. A ragged tensor has b = 0 and the rows of all sequences.
struct Operand {
  const void* data = nullptr;  // [batch, heads, rows, columns], strided
  DataType type = DataType::kFloat32;
  int64_t batch_stride = 0;
  int64_t head_stride = 0;
  int64_t row_stride = 0;

  const void* Row(int64_t b, int64_t h, int64_t row) const {
    return static_cast<const char*>(data) +
           (b * batch_stride + h * head_stride + row * row_stride) *
               static_cast<int64_t>(SizeOf(type));
  }
};

// The mask tensor, [B, Hq, S, keys]; strides are 0 along broadcast axes.
struct MaskOperand : Operand {
  // The key of the first column in `data`: 0, AttentionInputs::mask_begin, or
  // the first of the keys that are being added to an accumulator.
  int64_t first_key = 0;
  // Keys [first_key, length) of a sequence are covered; keys [length, T) are
  // masked. No query sees an earlier key, but one that was added before.
  int64_t length = 0;
  // The caller's shape: 1 to 4 axes, the last of `length`.
  Shape shape;
};

// The indices tensor, [B, Hq, S, count], or [B, S, count] with head_stride 0.
struct IndexOperand : Operand {
  int64_t count = 0;      // k
  bool per_head = false;  // whether each query head has its own
};

// Keys [begin, end); empty where begin >= end.
struct KeyRange {
  int64_t begin = 0;
  int64_t end = 0;
};

// One sequence: a batch entry, or a range of rows of ragged tensors.
struct Sequence {
  int64_t number = 0;       // in [0, B)
  int64_t batch = 0;        // index into operands: `number`; ragged: 0
  int64_t query_begin = 0;  // first row in query and output: 0 unless ragged
  int64_t query_length = 0;
  int64_t key_begin = 0;     // first row in key and value: 0 unless ragged
  int64_t key_length = 0;    // past included
  int64_t valid_length = 0;  // keys from here on are masked
  // Query i stands at the position of key i + offset, for causal mask, window
  // and ALiBi.
  int64_t offset = 0;
};

// Letters are those of kernel/attention.h.
struct Problem {
  bool ragged = false;
  int64_t batch = 0;  // B
  int64_t query_heads = 0;
  int64_t kv_heads = 0;
  int64_t query_length = 0;     // S; ragged: of all sequences together
  int64_t key_length = 0;       // L; ragged: of all sequences together
  int64_t past_length = 0;      // P
  int64_t longest_query = 0;    // of any sequence
  int64_t longest_keys = 0;     // of any sequence, past included
  int64_t head_size = 0;        // D
  int64_t value_head_size = 0;  // Dv

  Operand query;                 // [B, Hq, S, D]
  Operand key, value;            // [B, Hkv, L, D], [B, Hkv, L, Dv]
  Operand past_key, past_value;  // [B, Hkv, P, ...]; data null without past
  // Of an accumulator, or WithKeys(): keys and values come from key_views, not
  // from the operands. key_views[i] is of sequence first_view + i; sequences
  // outside it have no keys for now.
  bool by_views = false;
  absl::Span<const KeyValueView> key_views;
  int64_t first_view = 0;
  // The views' rows are scaled, of this type; key.type and value.type say what
  // they are computed as.
  std::optional<DataType> scaled;
  // The block that an accumulator's keys begin at.
  int64_t first_block = 0;
  Operand output;  // [B, Hq, S, Dv], strides only
  std::optional<MaskOperand> mask;
  std::optional<IndexOperand> indices;
  std::optional<Operand> row_sinks;               // [B, Hq, S, 1]
  std::vector<int64_t> valid_lengths;             // empty or [B]
  std::vector<int64_t> query_starts, key_starts;  // ragged: [B + 1]

  bool double_precision = false;
  double scale = 1;
  double softcap = 0;
  Causal causal = Causal::kNone;
  int64_t window_left = -1;
  int64_t window_right = -1;
  int64_t chunk_size = 0;
  std::vector<double> alibi_slopes;  // empty or [Hq]
  std::vector<double> sinks;         // empty or [Hq]; not with row_sinks
  bool fast_math = false;            // bf16_pairs-inl.h or bf16_tiles-inl.h
  Scores scores = Scores::kNone;
  bool return_log_sum_exp = false;
  bool return_present = false;

  // Query heads per key/value head.
  int64_t group() const { return query_heads / kv_heads; }
  int64_t total_keys() const { return past_length + key_length; }  // T
  bool has_sinks() const { return row_sinks || !sinks.empty(); }
  // Neighbouring rows of a sequence and key/value head (kernel/cpu/row_task.h)
  // that share a list of indices; 0 without indices.
  int64_t rows_per_list() const {
    if (!indices) return 0;
    return indices->per_head ? 1 : group();
  }

  // 0 <= b < batch.
  Sequence GetSequence(int64_t b) const {
    Sequence s;
    s.number = b;
    if (ragged) {
      s.query_begin = query_starts[b];
      s.query_length = query_starts[b + 1] - s.query_begin;
      s.key_begin = key_starts[b];
      s.key_length = key_starts[b + 1] - s.key_begin;
    } else {
      s.batch = b;
      s.query_length = query_length;
      s.key_length = total_keys();
    }
    s.valid_length = valid_lengths.empty() ? s.key_length : valid_lengths[b];
    if (causal == Causal::kBottomRight || !valid_lengths.empty()) {
      s.offset = s.valid_length - s.query_length;
    } else {
      s.offset = past_length;
    }
    return s;
  }

  // Keys that causal mask, window, chunk and valid length let a query see.
  // Neither end decreases from one query to the next.
  KeyRange Visible(const Sequence& s, int64_t query_index) const {
    const int64_t position = query_index + s.offset;
    KeyRange range{0, s.valid_length};
    if (causal != Causal::kNone) range.end = std::min(range.end, position + 1);
    if (window_right >= 0) {
      range.end = std::min(range.end, position + window_right + 1);
    }
    if (window_left >= 0) {
      range.begin = std::max<int64_t>(0, position - window_left);
    }
    if (chunk_size > 0) {
      // Before the first key, whose chunk is whole, no key is seen anyway.
      const int64_t chunk =
          position < 0 ? -chunk_size : position / chunk_size * chunk_size;
      range.begin = std::max(range.begin, chunk);
      range.end = std::min(range.end, chunk + chunk_size);
    }
    range.end = std::max(range.end, range.begin);
    return range;
  }

  // The first key that any query of the sequence sees, as above; its number of
  // keys if none sees one.
  int64_t FirstVisible(const Sequence& s) const {
    // The first query that does not stand before all keys: neither end
    // decreases, so that no later one begins before.
    int64_t query = 0;
    for (int64_t count = s.query_length; count > 0;) {
      const int64_t half = count / 2;
      if (Visible(s, query + half).end > 0) {
        count = half;
      } else {
        query += half + 1;
        count -= half + 1;
      }
    }
    if (query == s.query_length) return s.key_length;
    const KeyRange seen = Visible(s, query);
    return seen.begin < seen.end ? seen.begin : s.key_length;
  }
};

}  // namespace attention

#endif  // ATTENTION_KERNEL_PLAN_PROBLEM_H_
