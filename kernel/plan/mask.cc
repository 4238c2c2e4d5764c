// The mask tensor: how it broadcasts, and that bytes of a bool mask are 0 or 1.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "kernel/attention.h"
#include "kernel/plan/checks.h"
#include "kernel/plan/problem.h"

namespace attention {
namespace {

// That every byte of a bool mask with data is 0 or 1.
absl::Status CheckBools(const ConstTensorView& mask, const Shape& strides) {
  if (mask.type != DataType::kBool || mask.data == nullptr) {
    return absl::OkStatus();
  }
  const int64_t count = NumElements(mask.shape).value_or(0);
  if (count == 0) return absl::OkStatus();
  // Without gaps between rows the whole tensor is one row.
  const int64_t length = mask.strides.empty() ? count : mask.shape.back();
  Shape index(mask.shape.size(), 0);
  for (int64_t first = 0; first < count; first += length) {
    int64_t offset = 0;
    for (size_t axis = 0; axis < index.size(); ++axis) {
      offset += index[axis] * strides[axis];
    }
    const uint8_t* row = static_cast<const uint8_t*>(mask.data) + offset;
    // Compilers vectorize this loop.
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

// That a mask may leave out the keys before `begin`.
absl::Status CheckBegin(int64_t begin, const Problem& problem) {
  if (begin == 0) return absl::OkStatus();
  int64_t most = problem.total_keys();
  for (int64_t b = 0; b < problem.batch; ++b) {
    most = std::min(most, problem.FirstVisible(problem.GetSequence(b)));
  }
  if (begin > 0 && begin <= most && begin % kKeyBlock == 0) {
    return absl::OkStatus();
  }
  return FieldError(
      "mask_begin",
      GotNumber(begin,
                absl::StrCat("a multiple of ", kKeyBlock, " up to ", most,
                             ", the first key that a query sees")));
}

}  // namespace

absl::StatusOr<MaskOperand> PlanMask(const ConstTensorView& mask, int64_t begin,
                                     const Problem& problem) {
  const Shape& shape = mask.shape;
  ATTENTION_RETURN_IF_ERROR(CheckView("mask", mask));
  ATTENTION_RETURN_IF_ERROR(CheckBegin(begin, problem));
  const Shape full = {problem.batch, problem.query_heads, problem.query_length,
                      problem.total_keys() - begin};
  if (shape.empty() || shape.size() > 4) {
    return FieldError("mask.shape", Got(shape, "1 to 4 dimensions"));
  }
  const int64_t length = shape.back();
  if (length > full[3]) {
    return FieldError(
        "mask.shape",
        Got(shape, absl::StrCat("a last dimension of at most ", full[3],
                                begin == 0 ? ", the number of keys"
                                           : ", the keys from mask_begin on")));
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
  operand.first_key = begin;
  operand.length = begin + length;
  operand.shape = shape;
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

absl::StatusOr<MaskOperand> PlanMaskColumns(
    const std::optional<ConstTensorView>& columns, bool checked,
    const MaskOperand& whole, int64_t begin, int64_t end) {
  const int64_t count =
      std::clamp<int64_t>(whole.length - begin, 0, end - begin);
  MaskOperand operand = whole;
  operand.first_key = begin;
  operand.data = nullptr;
  if (!columns) {
    if (count == 0) return operand;
    return FieldError(
        "mask", absl::StrCat("missing, wanted the mask's columns of keys [",
                             begin, ", ", begin + count, ")"));
  }
  if (columns->type != whole.type) {
    return FieldError("mask.data_type",
                      absl::StrCat("got ", Name(columns->type), ", wanted ",
                                   Name(whole.type)));
  }
  ATTENTION_RETURN_IF_ERROR(CheckView("mask", *columns));
  Shape wanted = whole.shape;
  wanted.back() = count;
  if (columns->shape != wanted) {
    return FieldError("mask.shape", Got(columns->shape, ToString(wanted)));
  }
  const Shape strides = Strides(*columns);
  if (!checked) ATTENTION_RETURN_IF_ERROR(CheckBools(*columns, strides));
  operand.data = columns->data;
  int64_t* const targets[] = {&operand.batch_stride, &operand.head_stride,
                              &operand.row_stride};
  const size_t missing = 4 - wanted.size();
  for (size_t axis = missing; axis < 3; ++axis) {
    // Broadcast as the whole mask is.
    if (*targets[axis] != 0) *targets[axis] = strides[axis - missing];
  }
  return operand;
}

}  // namespace attention
