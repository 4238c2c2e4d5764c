// What errors say, and the checks that many fields share.
#include "kernel/plan/checks.h"

#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "kernel/attention.h"

namespace attention {

std::string Got(absl::Span<const int64_t> shape, absl::string_view wanted) {
  return absl::StrCat("got ", ToString(shape), ", wanted ", wanted);
}

std::string GotNumber(double number, absl::string_view wanted) {
  return absl::StrCat("got ", number, ", wanted ", wanted);
}

std::string GotNumber(int64_t number, absl::string_view wanted) {
  return absl::StrCat("got ", number, ", wanted ", wanted);
}

absl::Status CheckFloat(absl::string_view field, DataType type) {
  if (IsFloat(type)) return absl::OkStatus();
  return FieldError(absl::StrCat(field, ".data_type"),
                    absl::StrCat("got ", Name(type),
                                 ", wanted FLOAT32, FLOAT16, BFLOAT16 or "
                                 "FLOAT64"));
}

absl::Status CheckSameType(absl::string_view field, DataType type,
                           absl::string_view other, DataType wanted) {
  if (type == wanted) return absl::OkStatus();
  return FieldError(absl::StrCat(field, ".data_type"),
                    absl::StrCat("got ", Name(type), ", wanted ", other, "'s ",
                                 Name(wanted)));
}

absl::Status CheckSize(const std::string& field,
                       absl::Span<const int64_t> shape) {
  for (int64_t dim : shape) {
    if (dim < 0) return FieldError(field, Got(shape, "no negative dimension"));
  }
  const std::optional<int64_t> count = NumElements(shape);
  if (!count || *count > std::numeric_limits<int64_t>::max() / 8) {
    return FieldError(field, Got(shape, "fewer than 2^60 elements"));
  }
  return absl::OkStatus();
}

absl::Status CheckView(absl::string_view field, const ConstTensorView& view) {
  const std::string shape_field = absl::StrCat(field, ".shape");
  ATTENTION_RETURN_IF_ERROR(CheckSize(shape_field, view.shape));
  if (view.strides.empty()) return absl::OkStatus();
  bool good = view.strides.size() == view.shape.size() &&
              (view.strides.empty() || view.strides.back() == 1);
  for (int64_t stride : view.strides) good = good && stride >= 0;
  if (good) return absl::OkStatus();
  return FieldError(
      absl::StrCat(field, ".strides"),
      Got(view.strides, "one per axis, none negative, the last 1"));
}

absl::Status CheckRank(absl::string_view field, const ConstTensorView& view,
                       size_t rank, absl::string_view axes) {
  if (view.shape.size() == rank) return absl::OkStatus();
  return FieldError(absl::StrCat(field, ".shape"),
                    Got(view.shape, absl::StrCat(rank, " dimensions ", axes)));
}

Shape Strides(const ConstTensorView& view) {
  if (!view.strides.empty()) return view.strides;
  Shape strides(view.shape.size(), 1);
  for (int axis = static_cast<int>(view.shape.size()) - 2; axis >= 0; --axis) {
    const int64_t inner = std::max<int64_t>(1, view.shape[axis + 1]);
    if (__builtin_mul_overflow(strides[axis + 1], inner, &strides[axis])) {
      return Shape(view.shape.size(), 0);
    }
  }
  return strides;
}

}  // namespace attention
