// The state of a task's rows between two blocks of keys. Internal.
#ifndef ATTENTION_KERNEL_CPU_ROW_STATE_H_
#define ATTENTION_KERNEL_CPU_ROW_STATE_H_

#include <bit>
#include <cstdint>

#include "kernel/cpu/partials.h"
#include "kernel/cpu/row_task.h"
#include "kernel/plan/problem.h"

namespace attention {

// How far a task has come. Stands at the beginning of the state's memory, so
// that whoever takes over the memory goes on from there.
struct RowProgress {
  int64_t next_block = 0;
  // First key whose scores are still to be returned; -1 until the rows' outputs
  // are written.
  int64_t next_score = -1;
  // Number of open partials (PartialStack).
  int64_t depth = 0;
};

// The members of a state, laid out in memory of Bytes(). Equal arguments give
// equal layouts. With R rows rounded up to a multiple of 16, and Dv' = Dv
// rounded up to the lanes of a vector, there are at most
//   R D + 16 + levels (2 R + R Dv')
// numbers of type T and about 8 (levels + 11) bytes of progress. `levels`, the
// most open partials, is 2 + log2(1 + keys / 256), or twice that where the keys
// do not begin at block 0.
template <typename T>
class RowState {
 public:
  // `lanes` is the number of T in a vector.
  RowState(const Problem& problem, int64_t rows, int64_t lanes, char* memory)
      : output_stride(RoundUp(problem.value_head_size, lanes)),
        progress(reinterpret_cast<RowProgress*>(memory)),
        last_blocks(reinterpret_cast<int64_t*>(memory + sizeof(RowProgress))) {
    const Sizes sizes(problem, rows, lanes);
    query = reinterpret_cast<T*>(memory + sizes.head_bytes);
    levels_ = query + sizes.query;
    level_size_ = sizes.level;
    padded_rows_ = sizes.padded_rows;
  }

  // Open partial number `index`: max and sum [rows], output [rows, Dv'].
  PartialRows<T> Level(int64_t index) const {
    T* level = levels_ + index * level_size_;
    return {level, level + padded_rows_, level + 2 * padded_rows_};
  }

  // What the constructor takes for these arguments, in bytes.
  static int64_t Bytes(const Problem& problem, int64_t rows, int64_t lanes) {
    const Sizes sizes(problem, rows, lanes);
    return sizes.head_bytes + (sizes.query + sizes.levels * sizes.level) *
                                  static_cast<int64_t>(sizeof(T));
  }

  // Dv': columns of partial outputs, zeros from Dv on.
  const int64_t output_stride;
  RowProgress* progress;
  int64_t* last_blocks;  // [levels]: the last block of each open partial
  // [rows, D / kElements] steps (TileArithmetic), row-major. The rows of a
  // decode may follow a second time, as [rows, D] elements.
  T* query;

 private:
  struct Sizes {
    Sizes(const Problem& problem, int64_t rows, int64_t lanes)
        : padded_rows(RoundUp(rows, 16)),
          // The last row is filled up to a whole vector. The padding of a
          // decode holds its queries' second form.
          // With indices there is no such form, and many states of few rows.
          query(RoundUp(
              (problem.indices ? rows : padded_rows) * problem.head_size + 15,
              16)) {
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

  T* levels_;  // [levels, level_size_]
  int64_t level_size_;
  int64_t padded_rows_;
};

}  // namespace attention

#endif  // ATTENTION_KERNEL_CPU_ROW_STATE_H_
