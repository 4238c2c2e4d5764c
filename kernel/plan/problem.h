// The checked geometry of one attention computation, in the form the compute
// code wants it: every layout reduced to offsets and strides. Internal.
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

// Rows of one head: element (b, h, row, column) is at
// data + (b * batch_stride + h * head_stride + row * row_stride + column).
struct Operand {
  const void* data = nullptr;
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

// The mask tensor; strides are 0 along broadcast axes.
struct MaskOperand : Operand {
  // The key of its first column: 0, or the first of the keys that are being
  // added to an accumulator.
  int64_t first_key = 0;
  // Keys it covers; those from here to T are masked.
  int64_t length = 0;
  // As it came: 1 to 4 axes, the last of `length`.
  Shape shape;
};

// Keys [begin, end); empty where begin >= end.
struct KeyRange {
  int64_t begin = 0;
  int64_t end = 0;
};

// One sequence: the whole of a batch entry, or a stretch of a ragged tensor.
struct Sequence {
  int64_t number = 0;
  int64_t batch = 0;        // as an index into operands
  int64_t query_begin = 0;  // first row in query, output (ragged), else 0
  int64_t query_length = 0;
  int64_t key_begin = 0;   // first row in key and value (ragged), else 0
  int64_t key_length = 0;  // past included
  int64_t valid_length = 0;
  int64_t offset = 0;  // of causal mask, window and ALiBi
};

struct Problem {
  bool ragged = false;
  int64_t batch = 0;  // sequences
  int64_t query_heads = 0;
  int64_t kv_heads = 0;
  int64_t query_length = 0;   // ragged: of all sequences together
  int64_t key_length = 0;     // L; ragged: of all sequences together
  int64_t past_length = 0;    // P
  int64_t longest_query = 0;  // of any sequence
  int64_t longest_keys = 0;   // of any sequence, past included
  int64_t head_size = 0;
  int64_t value_head_size = 0;

  Operand query, key, value;
  Operand past_key, past_value;  // data null without past
  // An accumulator's keys and values, in place of those operands: of the
  // sequences from first_view on. The others have none while `by_views`.
  bool by_views = false;
  absl::Span<const KeyValueView> key_views;
  int64_t first_view = 0;
  // The block of keys that an accumulator begins at.
  int64_t first_block = 0;
  Operand output;  // strides only
  std::optional<MaskOperand> mask;
  std::vector<int64_t> valid_lengths;
  std::vector<int64_t> query_starts, key_starts;

  bool double_precision = false;
  double scale = 1;
  double softcap = 0;
  Causal causal = Causal::kNone;
  int64_t window_left = -1;
  int64_t window_right = -1;
  std::vector<double> alibi_slopes;
  std::vector<double> sinks;
  bool fast_math = false;  // by bf16_pairs-inl.h or bf16_tiles-inl.h
  Scores scores = Scores::kNone;
  bool return_log_sum_exp = false;
  bool return_present = false;

  int64_t group() const { return query_heads / kv_heads; }
  int64_t total_keys() const { return past_length + key_length; }

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

  // Keys that causal mask, window and valid length let query `row` see.
  KeyRange Visible(const Sequence& s, int64_t row) const {
    const int64_t position = row + s.offset;
    KeyRange range{0, s.valid_length};
    if (causal != Causal::kNone) range.end = std::min(range.end, position + 1);
    if (window_right >= 0) {
      range.end = std::min(range.end, position + window_right + 1);
    }
    if (window_left >= 0) {
      range.begin = std::max<int64_t>(0, position - window_left);
    }
    range.end = std::max(range.end, range.begin);
    return range;
  }
};

}  // namespace attention

#endif  // ATTENTION_KERNEL_PLAN_PROBLEM_H_
