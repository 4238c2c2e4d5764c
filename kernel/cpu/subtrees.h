// Cuts blocks into subtrees (kernel/key_values.h), and holds the partials of
// all rows of a problem over a subtree. Internal.
#ifndef ATTENTION_KERNEL_CPU_SUBTREES_H_
#define ATTENTION_KERNEL_CPU_SUBTREES_H_

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "kernel/attention.h"
#include "kernel/cpu/partials.h"
#include "kernel/cpu/tasks.h"
#include "kernel/plan/problem.h"

namespace attention {

constexpr int64_t BlocksOf(int64_t keys) {
  return (keys + kKeyBlock - 1) / kKeyBlock;
}

// Blocks [begin, end).
struct Subtree {
  int64_t begin = 0;
  int64_t end = 0;
};

// Cuts blocks [begin, end) into the largest subtrees of at most `most` blocks,
// a power of two, in ascending order. `blocks` is the number of all blocks.
inline std::vector<Subtree> CutBlocks(int64_t begin, int64_t end, int64_t most,
                                      int64_t blocks) {
  std::vector<Subtree> subtrees;
  // A subtree may extend past the last of all blocks, where nothing is missing,
  // but not past an earlier `end`: blocks there belong to other subtrees.
  const int64_t limit =
      end < blocks ? end : std::numeric_limits<int64_t>::max();
  while (begin < end) {
    int64_t size = most;
    while (begin % size != 0 || begin + size / 2 >= end ||
           begin + size > limit) {
      size /= 2;
    }
    const int64_t stop = std::min(begin + size, end);
    subtrees.push_back({begin, stop});
    begin = stop;
  }
  return subtrees;
}

// Owns the memory of a SubtreePartial.
template <typename T>
class SubtreeBuffer {
 public:
  SubtreeBuffer(const Problem& problem, const Subtree& subtree)
      : memory_(new T[NumRows(problem) * (2 + problem.value_head_size)]) {
    const int64_t rows = NumRows(problem);
    partial_.max = memory_.get();
    partial_.sum = partial_.max + rows;
    partial_.output = partial_.sum + rows;
    partial_.block_begin = subtree.begin;
    partial_.block_end = subtree.end;
  }
  const SubtreePartial<T>& partial() const { return partial_; }
  std::shared_ptr<const void> memory() const { return memory_; }

 private:
  std::shared_ptr<T[]> memory_;  // [rows (2 + Dv)]: max, sum, output
  SubtreePartial<T> partial_;
};

}  // namespace attention

#endif  // ATTENTION_KERNEL_CPU_SUBTREES_H_
