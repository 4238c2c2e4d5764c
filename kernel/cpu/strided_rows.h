// Rows at equal distances in memory: keys, values or rows of a mask. Internal.
#ifndef ATTENTION_KERNEL_CPU_STRIDED_ROWS_H_
#define ATTENTION_KERNEL_CPU_STRIDED_ROWS_H_

#include <cstdint>

namespace attention {

struct StridedRows {
  const void* data = nullptr;  // [count, row_bytes], rows stride_bytes apart
  int64_t count = 0;
  int64_t row_bytes = 0;
  int64_t stride_bytes = 0;
  const uint8_t* scales = nullptr;  // [count], of scaled rows

  template <typename Element>
  const Element* Row(int64_t i) const {
    return reinterpret_cast<const Element*>(static_cast<const char*>(data) +
                                            i * stride_bytes);
  }
};

// Rows anywhere in memory.
struct GatheredRows {
  const void* const* rows = nullptr;  // [count]
  int64_t count = 0;

  template <typename Element>
  const Element* Row(int64_t i) const {
    return static_cast<const Element*>(rows[i]);
  }
};

}  // namespace attention

#endif  // ATTENTION_KERNEL_CPU_STRIDED_ROWS_H_
