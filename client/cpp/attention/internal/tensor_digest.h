// Tells the tokens of one append from those of another.
#ifndef ATTENTION_INTERNAL_TENSOR_DIGEST_H_
#define ATTENTION_INTERNAL_TENSOR_DIGEST_H_

#include <cstddef>
#include <functional>
#include <string_view>

#include "attention/tensor.h"

namespace attention::internal {

// Of all bytes; `value` may be null. Means something in this process only.
inline size_t DigestOf(const TensorSpan& key, const TensorSpan* value) {
  const auto digest = [](const TensorSpan& tensor) {
    return std::hash<std::string_view>()(std::string_view(
               reinterpret_cast<const char*>(tensor.bytes.data()),
               tensor.bytes.size())) +
           static_cast<size_t>(tensor.type);
  };
  return digest(key) * 31 + (value == nullptr ? 0 : digest(*value));
}

}  // namespace attention::internal

#endif  // ATTENTION_INTERNAL_TENSOR_DIGEST_H_
