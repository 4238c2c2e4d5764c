// The keys and values of a request as blocks of memory of their own.
#ifndef ATTENTION_TESTS_SUPPORT_KEY_BLOCKS_H_
#define ATTENTION_TESTS_SUPPORT_KEY_BLOCKS_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "kernel/accumulator.h"
#include "kernel/attention.h"
#include "kernel/key_values.h"
#include "tests/support/attention_case.h"
#include "tests/support/tensor.h"

namespace attention::test {

// `request`'s inputs, but for the data of all that comes with the keys.
AttentionInputs WithoutKeys(const AttentionCase& request);

// The number of sequences, and of one's keys, past ones included.
int64_t SequencesOf(const AttentionCase& request);
int64_t KeysOf(const AttentionCase& request, int64_t sequence);

// Keys [begin, end) of some sequences, and the mask's columns for them. Each
// block has memory of its own, in which heads and tokens stand in either order
// and at random distances.
class KeyBlocks {
 public:
  // Keys [begin, min(end, the sequence's)) of the sequences [first, last).
  KeyBlocks(Random& random, const AttentionCase& request, int64_t first,
            int64_t last, int64_t begin, int64_t end);
  // Views point into the object.
  KeyBlocks(const KeyBlocks&) = delete;
  KeyBlocks& operator=(const KeyBlocks&) = delete;

  AddedKeys added() const;

 private:
  std::vector<Tensor> tensors_;
  std::vector<std::vector<KeyValueView::Block>> blocks_;
  std::vector<KeyValueView> views_;
  int64_t first_ = 0;
  std::optional<Tensor> mask_;
};

}  // namespace attention::test

#endif  // ATTENTION_TESTS_SUPPORT_KEY_BLOCKS_H_
