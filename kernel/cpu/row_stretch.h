// Rows at equal distances in memory. Internal.
#ifndef ATTENTION_KERNEL_CPU_ROW_STRETCH_H_
#define ATTENTION_KERNEL_CPU_ROW_STRETCH_H_

#include <cstdint>

namespace attention {

struct RowStretch {
  const void* data = nullptr;  // [count, row_bytes], stride_bytes apart
  int64_t count = 0;
  int64_t row_bytes = 0;
  int64_t stride_bytes = 0;

  template <typename Element>
  const Element* Row(int64_t i) const {
    return reinterpret_cast<const Element*>(static_cast<const char*>(data) +
                                            i * stride_bytes);
  }
};

}  // namespace attention

#endif  // ATTENTION_KERNEL_CPU_ROW_STRETCH_H_
