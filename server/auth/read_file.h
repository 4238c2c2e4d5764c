// Small files as text.
#ifndef ATTENTION_SERVER_AUTH_READ_FILE_H_
#define ATTENTION_SERVER_AUTH_READ_FILE_H_

#include <string>

#include "absl/status/statusor.h"

namespace attention::server {

// Larger files are refused: none that is meant comes near it.
inline constexpr size_t kMaxFileBytes = size_t{1} << 20;

// All of a regular file or a pipe. Errors: InvalidArgument with the reason, as
// it continues "--flag: PATH: ".
absl::StatusOr<std::string> ReadSmallFile(const std::string& path);

}  // namespace attention::server

#endif  // ATTENTION_SERVER_AUTH_READ_FILE_H_
