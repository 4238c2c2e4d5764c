// Errors about a field of a request: which one, what came, what was wanted.
#ifndef ATTENTION_BASE_FIELD_ERROR_H_
#define ATTENTION_BASE_FIELD_ERROR_H_

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace attention {

// The path of the field that an error below is about ("key.shape",
// "options.softcap"); empty for other statuses.
std::string ErrorField(const absl::Status& status);

// An InvalidArgument error whose ErrorField() is `field` and whose text is
// "<field>: <description>".
absl::Status FieldError(absl::string_view field, absl::string_view description);

// The same where the field would be right if a limit were higher, and whether
// an error is such a one.
absl::Status LimitError(absl::string_view field, absl::string_view description);
bool IsLimitError(const absl::Status& status);

// The same error where the message that the field belongs to is itself the
// field `parent` of another: "key.shape" becomes "header.key.shape". Other
// statuses stay as they are.
absl::Status InField(absl::string_view parent, const absl::Status& status);

// The same error where the field has another path: "query.data_type" becomes
// "inputs.query.datatype". Other statuses stay as they are.
absl::Status OfField(absl::string_view path, const absl::Status& status);

}  // namespace attention

#endif  // ATTENTION_BASE_FIELD_ERROR_H_
