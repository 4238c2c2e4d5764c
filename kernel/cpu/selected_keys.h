// The keys that a list of indices selects. Internal.
#ifndef ATTENTION_KERNEL_CPU_SELECTED_KEYS_H_
#define ATTENTION_KERNEL_CPU_SELECTED_KEYS_H_

#include <algorithm>
#include <bit>
#include <cstdint>

#include "kernel/attention.h"
#include "kernel/plan/problem.h"

namespace attention {

// A bit for each key of a sequence: so the order of a list does not matter, and
// a key that comes twice counts once.
class SelectedKeys {
 public:
  // Words that a sequence of so many keys takes.
  static int64_t Words(int64_t keys) {
    return (keys / kKeyBlock + 1) * kWordsPerBlock;
  }

  // In `words`, [Words(keys)].
  explicit SelectedKeys(uint64_t* words) : words_(words) {}

  // Selects the keys of `list` that are in `keys`; the bits of other blocks
  // than those of `keys` are unspecified afterwards. Numbers beyond `keys` are
  // passed over, whatever they are: the list's memory may be shared with others
  // who write to it.
  void Select(const void* list, const IndexOperand& operand, KeyRange keys) {
    if (keys.begin >= keys.end) return;
    const int64_t first = keys.begin / kKeyBlock * kWordsPerBlock;
    std::fill(words_ + first, words_ + Words(keys.end), uint64_t{0});
    if (operand.type == DataType::kInt32) {
      SelectAs(static_cast<const int32_t*>(list), operand.count, keys);
    } else {
      SelectAs(static_cast<const int64_t*>(list), operand.count, keys);
    }
  }

  // Whether a key of the block is selected.
  bool Any(int64_t block) const {
    const uint64_t* words = words_ + block * kWordsPerBlock;
    return (words[0] | words[1] | words[2] | words[3]) != 0;
  }

  // The first block in [begin, end) with a selected key; `end` if there is
  // none.
  int64_t NextBlock(int64_t begin, int64_t end) const {
    while (begin < end && !Any(begin)) ++begin;
    return begin;
  }

  bool Has(int64_t key) const {
    return (words_[key / 64] >> key % 64 & 1) != 0;
  }

  // The selected keys of the block, counted in it, in ascending order. Returns
  // their number.
  int64_t List(int64_t block, uint8_t (&keys)[kKeyBlock]) const {
    int64_t count = 0;
    for (int64_t w = 0; w < kWordsPerBlock; ++w) {
      for (uint64_t bits = words_[block * kWordsPerBlock + w]; bits != 0;
           bits &= bits - 1) {
        keys[count++] = static_cast<uint8_t>(w * 64 + std::countr_zero(bits));
      }
    }
    return count;
  }

 private:
  static constexpr int64_t kWordsPerBlock = kKeyBlock / 64;
  static_assert(kWordsPerBlock == 4);

  template <typename Number>
  void SelectAs(const Number* list, int64_t count, const KeyRange& keys) {
    const auto length = static_cast<uint64_t>(keys.end - keys.begin);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t key = list[i];
      if (static_cast<uint64_t>(key - keys.begin) >= length) continue;
      words_[key / 64] |= uint64_t{1} << key % 64;
    }
  }

  uint64_t* words_;
};

}  // namespace attention

#endif  // ATTENTION_KERNEL_CPU_SELECTED_KEYS_H_
