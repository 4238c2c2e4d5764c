// A task: rows of one key/value head that are computed together. Internal.
#ifndef ATTENTION_KERNEL_CPU_ROW_TASK_H_
#define ATTENTION_KERNEL_CPU_ROW_TASK_H_

#include <cstdint>

namespace attention {

// Rows of the largest register tile that a SIMD target has (tile-inl.h).
inline constexpr int64_t kMaxTileRows = 14;

// Most rows of a task, in whole tiles. At this number packing a block of keys
// takes a hundredth of the time of computing with it.
inline constexpr int64_t kTaskRows = 32 * kMaxTileRows;

// Rows [row_begin, row_end) of a sequence and key/value head. With group = Hq /
// Hkv, row r is query r / group and query head kv_head * group + r % group.
struct RowTask {
  int64_t sequence = 0;
  int64_t kv_head = 0;
  int64_t row_begin = 0;
  int64_t row_end = 0;  // at most row_begin + kTaskRows
};

constexpr int64_t RoundUp(int64_t number, int64_t multiple) {
  return (number + multiple - 1) / multiple * multiple;
}

}  // namespace attention

#endif  // ATTENTION_KERNEL_CPU_ROW_TASK_H_
