// Where the keys and values of one head lie. Internal.
#ifndef ATTENTION_KERNEL_CPU_KEY_RUNS_H_
#define ATTENTION_KERNEL_CPU_KEY_RUNS_H_

#include <cstdint>

#include "kernel/cpu/strided_rows.h"
#include "kernel/key_values.h"
#include "kernel/plan/problem.h"

namespace attention {

// A sequence's keys lie in one or two runs: the past and the new keys of a
// request, each one tensor, or the view of an accumulator, a list of blocks.
// Keys are counted through the sequence.
class KeyRuns {
 public:
  KeyRuns(const Problem& problem, const Sequence& sequence, int64_t kv_head)
      : key_bytes_(ElementBytes(problem, problem.key)),
        value_bytes_(ElementBytes(problem, problem.value)),
        head_size_(problem.head_size),
        value_head_size_(problem.value_head_size) {
    if (problem.by_views) {
      const int64_t index = sequence.number - problem.first_view;
      if (index < 0 ||
          index >= static_cast<int64_t>(problem.key_views.size())) {
        return;  // No keys for now.
      }
      const KeyValueView& view = problem.key_views[index];
      last_ = {view.begin, kBlockShift,         view.blocks.data(),
               kv_head,    view.key_row_stride, view.value_row_stride};
      last_begin_ = view.begin;
      end_ = view.begin + view.length;
      return;
    }
    last_begin_ = problem.past_length;
    end_ = sequence.key_length;
    if (problem.past_length > 0) {
      past_block_ = {problem.past_key.Row(sequence.batch, kv_head, 0),
                     problem.past_value.Row(sequence.batch, kv_head, 0)};
      past_ = {0,
               kNoShift,
               &past_block_,
               0,
               problem.past_key.row_stride,
               problem.past_value.row_stride};
    }
    if (problem.key.data != nullptr) {
      block_ = {problem.key.Row(sequence.batch, kv_head, sequence.key_begin),
                problem.value.Row(sequence.batch, kv_head, sequence.key_begin)};
    }
    last_ = {last_begin_,
             kNoShift,
             &block_,
             0,
             problem.key.row_stride,
             problem.value.row_stride};
  }
  // The runs point to the blocks in here.
  KeyRuns(const KeyRuns&) = delete;
  KeyRuns& operator=(const KeyRuns&) = delete;

  const void* Key(int64_t key) const {
    const Run& run = RunOf(key);
    const KeyValueView::Block& block = run.Block(key);
    return At(block.key,
              run.kv_head * block.key_head_stride +
                  run.InBlock(key) * run.key_row_stride,
              key_bytes_);
  }
  const void* Value(int64_t key) const {
    const Run& run = RunOf(key);
    const KeyValueView::Block& block = run.Block(key);
    return At(block.value,
              run.kv_head * block.value_head_stride +
                  run.InBlock(key) * run.value_row_stride,
              value_bytes_);
  }

  // Of a row as it is stored.
  int64_t key_row_bytes() const { return head_size_ * key_bytes_; }
  int64_t value_row_bytes() const { return value_head_size_ * value_bytes_; }

  // Keys or values [begin, end), which must lie in one block of kKeyBlock keys.
  // Empty if they do not lie in one run.
  StridedRows Keys(int64_t begin, int64_t end) const {
    if (!InOneRun(begin, end)) return {};
    const Run& run = RunOf(begin);
    return {Key(begin), end - begin, head_size_ * key_bytes_,
            run.key_row_stride * key_bytes_,
            run.Scales(begin, run.Block(begin).key_scales)};
  }
  StridedRows Values(int64_t begin, int64_t end) const {
    if (!InOneRun(begin, end)) return {};
    const Run& run = RunOf(begin);
    return {Value(begin), end - begin, value_head_size_ * value_bytes_,
            run.value_row_stride * value_bytes_,
            run.Scales(begin, run.Block(begin).value_scales)};
  }

 private:
  static constexpr int kBlockShift = 8;
  static_assert(int64_t{1} << kBlockShift == kKeyBlock);
  // Of a run that is a single "block" of any length.
  static constexpr int kNoShift = 62;

  struct Run {
    int64_t begin = 0;     // first key
    int shift = kNoShift;  // log2 of the keys per block
    const KeyValueView::Block* blocks = nullptr;
    int64_t kv_head = 0;  // in the blocks
    int64_t key_row_stride = 0;
    int64_t value_row_stride = 0;

    const KeyValueView::Block& Block(int64_t key) const {
      return blocks[(key - begin) >> shift];
    }
    int64_t InBlock(int64_t key) const {
      return (key - begin) & ((int64_t{1} << shift) - 1);
    }
    // From `key` on, of `scales` of its block; null if there are none.
    const uint8_t* Scales(int64_t key, const uint8_t* scales) const {
      if (scales == nullptr) return nullptr;
      return scales + kv_head * Block(key).scale_head_stride + InBlock(key);
    }
  };

  // As they are stored.
  static int64_t ElementBytes(const Problem& problem, const Operand& operand) {
    return static_cast<int64_t>(SizeOf(problem.scaled.value_or(operand.type)));
  }

  static const void* At(const void* data, int64_t elements, int64_t bytes) {
    return static_cast<const char*>(data) + elements * bytes;
  }

  const Run& RunOf(int64_t key) const {
    return key < last_begin_ ? past_ : last_;
  }
  bool InOneRun(int64_t begin, int64_t end) const {
    return begin < end && end <= end_ &&
           (begin >= last_begin_ || end <= last_begin_);
  }

  const int64_t key_bytes_;
  const int64_t value_bytes_;
  const int64_t head_size_;
  const int64_t value_head_size_;
  int64_t last_begin_ = 0;  // first key of last_; those before are in past_
  int64_t end_ = 0;         // of all keys
  Run past_;
  Run last_;
  KeyValueView::Block past_block_;  // of past_
  KeyValueView::Block block_;       // of last_, if it is a tensor
};

}  // namespace attention

#endif  // ATTENTION_KERNEL_CPU_KEY_RUNS_H_
