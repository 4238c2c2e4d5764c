// Partial results in memory; what they are says partial-inl.h. Internal.
#ifndef ATTENTION_KERNEL_CPU_PARTIALS_H_
#define ATTENTION_KERNEL_CPU_PARTIALS_H_

#include <cstdint>

namespace attention {

// Partial results of some rows over some keys.
template <typename T>
struct PartialRows {
  T* max = nullptr;     // [rows]
  T* sum = nullptr;     // [rows]
  T* output = nullptr;  // [rows, columns], row-major
};

// Partial results of every row of a problem over the keys of blocks
// [block_begin, block_end), a subtree of the tree of blocks. Row (query i,
// head h) is number i * Hq + h, i counted through all sequences. `output` has
// Dv columns.
template <typename T>
struct SubtreePartial : PartialRows<T> {
  int64_t block_begin = 0;
  int64_t block_end = 0;
};

}  // namespace attention

#endif  // ATTENTION_KERNEL_CPU_PARTIALS_H_
