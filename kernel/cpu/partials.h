// Partials in memory. What a partial is: partial-inl.h. Internal.
//
//   PartialRows<T>      of the rows of one task; laid out by RowState
//   SubtreePartial<T>   of all rows of a problem, over one subtree of blocks;
//                       owned by a SubtreeBuffer or a caller's Partial
//   Partial             the same for callers (kernel/accumulator.h)
#ifndef ATTENTION_KERNEL_CPU_PARTIALS_H_
#define ATTENTION_KERNEL_CPU_PARTIALS_H_

#include <cstdint>

namespace attention {

// Partials of some rows over some keys.
template <typename T>
struct PartialRows {
  T* max = nullptr;     // [rows]
  T* sum = nullptr;     // [rows]
  T* output = nullptr;  // [rows, columns], row-major
};

// Partials of every row of a problem over the keys of blocks [block_begin,
// block_end), one subtree of the tree of blocks. Row i * Hq + h is query i and
// query head h; i counts through all sequences. `output` has Dv columns.
template <typename T>
struct SubtreePartial : PartialRows<T> {
  int64_t block_begin = 0;
  int64_t block_end = 0;
};

}  // namespace attention

#endif  // ATTENTION_KERNEL_CPU_PARTIALS_H_
