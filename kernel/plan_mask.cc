// The mask tensor: how it broadcasts, and whether its bools are.
#include <cstddef>
#include <cstdint>
#include <optional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "kernel/attention.h"
#include "kernel/plan.h"
#include "kernel/problem.h"

namespace attention {
namespace {

// Whether every byte is 0 or 1.
absl::Status CheckBools(const ConstTensorView& mask, const Shape& strides) {
  if (mask.type != DataType::kBool) return absl::OkStatus();
  const int64_t count = NumElements(mask.shape).value_or(0);
  if (count == 0) return absl::OkStatus();
  // Without gaps all rows are one.
  const int64_t length = mask.strides.empty() ? count : mask.shape.back();
  Shape index(mask.shape.size(), 0);
  for (int64_t first = 0; first < count; first += length) {
    int64_t offset = 0;
    for (size_t axis = 0; axis < index.size(); ++axis) {
      offset += index[axis] * strides[axis];
    }
    const uint8_t* row = static_cast<const uint8_t*>(mask.data) + offset;
    // A loop that compilers turn into SIMD.
    uint8_t bits = 0;
    for (int64_t j = 0; j < length; ++j) bits |= row[j];
    for (int64_t j = 0; bits > 1 && j < length; ++j) {
      if (row[j] > 1) {
        return FieldError(
            "mask.data",
            absl::StrCat("got byte ", static_cast<int>(row[j]), " at element ",
                         first + j, ", wanted 0 or 1"));
      }
    }
    for (int axis = static_cast<int>(index.size()) - 2; axis >= 0; --axis) {
      if (++index[axis] < mask.shape[axis]) break;
      index[axis] = 0;
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<MaskOperand> PlanMask(const ConstTensorView& mask,
                                     const Problem& problem) {
  const Shape& shape = mask.shape;
  ATTENTION_RETURN_IF_ERROR(CheckView("mask", mask));
  const Shape full = {problem.batch, problem.query_heads, problem.query_length,
                      problem.total_keys()};
  if (shape.empty() || shape.size() > 4) {
    return FieldError("mask.shape", Got(shape, "1 to 4 dimensions"));
  }
  const int64_t length = shape.back();
  if (length > full[3]) {
    return FieldError(
        "mask.shape",
        Got(shape, absl::StrCat("a last dimension of at most ", full[3],
                                ", the number of "
                                "keys")));
  }
  if (length == 1 && full[3] > 1) {
    return FieldError(
        "mask.shape",
        Got(shape, absl::StrCat("a last dimension of ", full[3],
                                ": 1 could mean broadcast or padding")));
  }
  MaskOperand operand;
  operand.data = mask.data;
  operand.type = mask.type;
  operand.length = length;
  const Shape strides = Strides(mask);
  int64_t* const targets[] = {&operand.batch_stride, &operand.head_stride,
                              &operand.row_stride};
  const size_t missing = 4 - shape.size();
  for (size_t axis = missing; axis < 3; ++axis) {
    const int64_t dim = shape[axis - missing];
    if (dim == full[axis]) {
      *targets[axis] = dim == 1 ? 0 : strides[axis - missing];
    } else if (dim != 1) {
      return FieldError("mask.shape",
                        Got(shape, absl::StrCat("a shape that broadcasts to ",
                                                ToString(full))));
    }
  }
  ATTENTION_RETURN_IF_ERROR(CheckBools(mask, strides));
  return operand;
}

}  // namespace attention
