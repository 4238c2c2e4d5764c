// The state of a task's rows between two blocks of keys. Internal.
#ifndef ATTENTION_KERNEL_CPU_ROW_STATE_H_
#define ATTENTION_KERNEL_CPU_ROW_STATE_H_

#include <array>
#include <bit>
#include <cstdint>

#include "kernel/cpu/partials.h"
#include "kernel/cpu/row_task.h"
#include "kernel/plan/problem.h"

namespace attention {

// How far a task has come. It stands at the beginning of the state's memory, so
// that whoever takes the memory up goes on from there.
struct RowProgress {
  int64_t next_block = 0;
  // First key whose scores are still to be returned; -1: not there yet.
  int64_t next_score = -1;
  // Open nodes of the tree of blocks (PartialStack), and where the list of
  // their last blocks is.
  int64_t depth = 0;
};

// The members of a state, laid out in memory of Bytes(): in the same way for
// the same arguments. In elements of T, with R rows rounded up to a multiple of
// 16 and Dv' = Dv rounded up to the lanes of a vector, at most
//   R D + 16 + levels (2 R + R Dv')
// and some 8 (levels + 11) bytes of progress, where `levels`, the open nodes of
// the tree, are 2 + log2(1 + T / 256), or twice as many where the keys do not
// begin at the first block.
template <typename T>
class RowState {
 public:
  static constexpr int kMaxLevels = 128;

  // `lanes` is the number of T in a vector.
  RowState(const Problem& problem, int64_t rows, int64_t lanes, char* memory)
      : output_stride(RoundUp(problem.value_head_size, lanes)),
        progress(reinterpret_cast<RowProgress*>(memory)),
        last_blocks(reinterpret_cast<int64_t*>(memory + sizeof(RowProgress))) {
    const Sizes sizes(problem, rows, lanes);
    query = reinterpret_cast<T*>(memory + sizes.head_bytes);
    T* next = query + sizes.query;
    for (int level = 0; level < sizes.levels; ++level) {
      levels[level] = {next, next + sizes.padded_rows,
                       next + 2 * sizes.padded_rows};
      next += sizes.level;
    }
  }

  // What the constructor takes for these arguments, in bytes.
  static int64_t Bytes(const Problem& problem, int64_t rows, int64_t lanes) {
    const Sizes sizes(problem, rows, lanes);
    return sizes.head_bytes + (sizes.query + sizes.levels * sizes.level) *
                                  static_cast<int64_t>(sizeof(T));
  }

  // Columns of partial outputs: Dv and zeros up to a whole vector.
  const int64_t output_stride;
  RowProgress* progress;
  int64_t* last_blocks;  // [levels]
  T* query;              // [rows, D], as the arithmetic reads it
  std::array<PartialRows<T>, kMaxLevels> levels;  // [rows], [rows, Dv'] each

 private:
  struct Sizes {
    Sizes(const Problem& problem, int64_t rows, int64_t lanes)
        : padded_rows(RoundUp(rows, 16)),
          // The last row is filled up to a whole vector; the few rows of a
          // decode may stand there in two forms (rows-inl.h).
          query(RoundUp(padded_rows * problem.head_size + 15, 16)) {
      const int64_t blocks = problem.longest_keys / kKeyBlock + 1;
      const int depth = std::bit_width(static_cast<uint64_t>(blocks)) + 1;
      levels = problem.first_block == 0 ? depth : 2 * depth;
      level = RoundUp(
          2 * padded_rows + rows * RoundUp(problem.value_head_size, lanes), 16);
      head_bytes = RoundUp(static_cast<int64_t>(sizeof(RowProgress)) +
                               levels * static_cast<int64_t>(sizeof(int64_t)),
                           64);
    }
    int64_t padded_rows;
    int64_t query;  // elements
    int levels;
    int64_t level;  // elements
    int64_t head_bytes;
  };
};

}  // namespace attention

#endif  // ATTENTION_KERNEL_CPU_ROW_STATE_H_
