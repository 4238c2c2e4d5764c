// A tensor that somebody else owns: pointer, type, shape, strides.
#ifndef ATTENTION_KERNEL_TENSOR_VIEW_H_
#define ATTENTION_KERNEL_TENSOR_VIEW_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/container/inlined_vector.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/types/span.h"
#include "kernel/data_type.h"

namespace attention {

// Dimensions, outermost first.
using Shape = absl::InlinedVector<int64_t, 4>;

// "(2, 8, 16, 64)".
inline std::string ToString(absl::Span<const int64_t> shape) {
  return absl::StrCat("(", absl::StrJoin(shape, ", "), ")");
}

// Number of elements of `shape`; nothing if a dimension is negative or the
// number overflows int64_t.
inline std::optional<int64_t> NumElements(absl::Span<const int64_t> shape) {
  int64_t count = 1;
  bool empty = false;
  for (int64_t dim : shape) {
    if (dim < 0) return std::nullopt;
    if (dim == 0) {
      empty = true;
    } else if (__builtin_mul_overflow(count, dim, &count)) {
      return std::nullopt;
    }
  }
  return empty ? 0 : count;
}

// Type and shape of a tensor yet to be allocated, row-major.
struct TensorSpec {
  DataType type = DataType::kFloat32;
  Shape shape;

  int64_t num_elements() const { return NumElements(shape).value_or(0); }
  int64_t num_bytes() const {
    return num_elements() * static_cast<int64_t>(SizeOf(type));
  }
};

// `Pointer` is const void* (inputs) or void* (outputs). Does not own; the
// memory must outlive every use. `data` may be null where there are no
// elements, and must otherwise be aligned to the element's size.
template <typename Pointer>
struct BasicTensorView {
  DataType type = DataType::kFloat32;
  Shape shape;
  // Distance between neighbours along each axis, in elements. Empty: row-major
  // without padding. Otherwise one per axis, the last 1, none negative.
  Shape strides;
  Pointer data = nullptr;
};

using ConstTensorView = BasicTensorView<const void*>;
using TensorView = BasicTensorView<void*>;

}  // namespace attention

#endif  // ATTENTION_KERNEL_TENSOR_VIEW_H_
