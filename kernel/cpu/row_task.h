// A task: rows of one key/value head that are computed together. Internal.
#ifndef ATTENTION_KERNEL_CPU_ROW_TASK_H_
#define ATTENTION_KERNEL_CPU_ROW_TASK_H_

#include <cstdint>

namespace attention {

// Rows of the largest register tile that a SIMD target has (tile-inl.h).
inline constexpr int64_t kMaxTileRows = 14;

// Most rows of a task, in whole tiles: packing a block of keys then takes a
// hundredth of the time that computing with it does.
inline constexpr int64_t kTaskRows = 32 * kMaxTileRows;

// Row r stands for query r / group of the sequence and query head
// kv_head * group + r % group, group being Hq / Hkv.
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
