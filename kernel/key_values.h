// Keys and values as blocks of memory: what a request's tensors, a stream's
// pages and a cache's pages are to the kernel.
#ifndef ATTENTION_KERNEL_KEY_VALUES_H_
#define ATTENTION_KERNEL_KEY_VALUES_H_

#include <cstdint>

#include "absl/types/span.h"

namespace attention {

// Tokens per block, the leaves of the tree along which partial results merge.
// Partial results over ranges of keys merge to the bits of the whole where the
// ranges begin at multiples of it.
inline constexpr int64_t kKeyBlock = 256;

// Tokens [begin, begin + length) of one sequence, of every key/value head.
// Owns nothing. Strides are in elements, of the types that the plan says.
//
// Invariants:
//   1. begin is a multiple of kKeyBlock.
//   2. Every block but the last holds kKeyBlock tokens; the last holds the
//      rest.
//   3. Head h of token i is the head size's elements at
//        block.key + h * block.key_head_stride
//                  + i % kKeyBlock * key_row_stride,
//      block being blocks[(i - begin) / kKeyBlock]; values likewise.
struct KeyValueView {
  struct Block {
    const void* key = nullptr;    // [Hkv, 256, D] by its strides
    const void* value = nullptr;  // [Hkv, 256, Dv] by its strides
    int64_t key_head_stride = 0;
    int64_t value_head_stride = 0;
  };

  int64_t begin = 0;
  int64_t length = 0;
  int64_t key_row_stride = 0;
  int64_t value_row_stride = 0;
  // ceil(length / kKeyBlock) of them.
  absl::Span<const Block> blocks;
};

}  // namespace attention

#endif  // ATTENTION_KERNEL_KEY_VALUES_H_
