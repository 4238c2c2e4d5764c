// Errors of sessions as clients get them.
#ifndef ATTENTION_SERVER_SESSION_ERROR_H_
#define ATTENTION_SERVER_SESSION_ERROR_H_

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace attention::server {

// `status`, which the store or a session gave for session `id`, with its
// Reason.
absl::Status SessionError(absl::string_view id, const absl::Status& status);

}  // namespace attention::server

#endif  // ATTENTION_SERVER_SESSION_ERROR_H_
