#include "base/field_error.h"

#include <algorithm>
#include <string>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "absl/types/optional.h"

namespace attention {
namespace {

constexpr char kFieldPayload[] = "attention/field";
constexpr char kLimitPayload[] = "attention/limit";

}  // namespace

absl::Status FieldError(absl::string_view field,
                        absl::string_view description) {
  absl::Status status =
      absl::InvalidArgumentError(absl::StrCat(field, ": ", description));
  status.SetPayload(kFieldPayload, absl::Cord(field));
  return status;
}

absl::Status LimitError(absl::string_view field,
                        absl::string_view description) {
  absl::Status status = FieldError(field, description);
  status.SetPayload(kLimitPayload, absl::Cord());
  return status;
}

bool IsLimitError(const absl::Status& status) {
  return status.GetPayload(kLimitPayload).has_value();
}

absl::Status InField(absl::string_view parent, const absl::Status& status) {
  return OfField(absl::StrCat(parent, ".", ErrorField(status)), status);
}

absl::Status OfField(absl::string_view path, const absl::Status& status) {
  const std::string field = ErrorField(status);
  if (field.empty()) return status;
  // Behind "<field>: ".
  const absl::string_view description = status.message().substr(
      std::min(status.message().size(), field.size() + 2));
  return IsLimitError(status) ? LimitError(path, description)
                              : FieldError(path, description);
}

std::string ErrorField(const absl::Status& status) {
  const absl::optional<absl::Cord> field = status.GetPayload(kFieldPayload);
  return field ? std::string(*field) : std::string();
}

}  // namespace attention
