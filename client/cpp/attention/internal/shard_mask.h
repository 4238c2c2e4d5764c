// A mask as each shard gets it.
#ifndef ATTENTION_INTERNAL_SHARD_MASK_H_
#define ATTENTION_INTERNAL_SHARD_MASK_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "attention/tensor.h"
#include "kernel/shard.h"

namespace attention::internal {

// The columns of `mask` that are about a shard's tokens, in memory of their
// own. The mask's bytes fit its shape.
struct MaskColumns {
  MaskColumns(const TensorSpan& mask, const ShardLayout& layout,
              int64_t shard) {
    const int64_t columns = mask.shape.back();
    const int64_t own = layout.TokensOf(shard, columns);
    const size_t element = ElementSize(mask.type);
    const size_t row_bytes = static_cast<size_t>(columns) * element;
    const size_t rows = row_bytes == 0 ? 0 : mask.bytes.size() / row_bytes;
    bytes.reserve(rows * static_cast<size_t>(own) * element);
    for (size_t row = 0; row < rows; ++row) {
      for (int64_t begin = 0; begin < own; begin += layout.run) {
        const auto piece = mask.bytes.subspan(
            row * row_bytes +
                static_cast<size_t>(layout.PlaceOf(shard, begin)) * element,
            static_cast<size_t>(std::min(layout.run, own - begin)) * element);
        bytes.insert(bytes.end(), piece.begin(), piece.end());
      }
    }
    span.type = mask.type;
    span.shape = mask.shape;
    span.shape.back() = own;
    span.bytes = bytes;
  }
  MaskColumns(const MaskColumns&) = delete;

  std::vector<std::byte> bytes;
  TensorSpan span;
};

}  // namespace attention::internal

#endif  // ATTENTION_INTERNAL_SHARD_MASK_H_
