// Keys and values as blocks of memory: how the kernel sees a stream's or a
// cache's pages.
#ifndef ATTENTION_KERNEL_KEY_VALUES_H_
#define ATTENTION_KERNEL_KEY_VALUES_H_

#include <cstdint>

#include "absl/types/span.h"

namespace attention {

// Keys per block. Block b of a sequence holds its keys [256 b, 256 b + 256).
//
// The tree of blocks is the binary tree whose leaves are the blocks: a subtree
// of 2^k blocks begins at a multiple of 2^k. The last subtree may end early,
// with the sequence. Partial results merge along this tree, so that their bits
// do not depend on who computed them.
inline constexpr int64_t kKeyBlock = 256;

// Tokens [begin, begin + length) of one sequence, of every key/value head.
// Owns nothing. Strides are in elements, of the types that the plan says.
//
// Invariants:
//   1. begin is a multiple of kKeyBlock.
//   2. Every block but the last holds kKeyBlock tokens; the last holds the
//      rest.
//   3. The key of head h and token i, D consecutive elements, begins at
//        block.key + h * block.key_head_stride
//                  + i % kKeyBlock * key_row_stride
//      where block = blocks[(i - begin) / kKeyBlock]; values likewise.
struct KeyValueView {
  struct Block {
    const void* key = nullptr;    // [Hkv, kKeyBlock, D], strided
    const void* value = nullptr;  // [Hkv, kKeyBlock, Dv], strided
    int64_t key_head_stride = 0;
    int64_t value_head_stride = 0;
    // Of scaled rows (kernel/scaled.h), [Hkv, kKeyBlock], heads
    // scale_head_stride apart. Null for others.
    const uint8_t* key_scales = nullptr;
    const uint8_t* value_scales = nullptr;
    int64_t scale_head_stride = 0;
  };

  int64_t begin = 0;
  int64_t length = 0;
  int64_t key_row_stride = 0;
  int64_t value_row_stride = 0;
  // [ceil(length / kKeyBlock)]
  absl::Span<const Block> blocks;
};

}  // namespace attention

#endif  // ATTENTION_KERNEL_KEY_VALUES_H_
