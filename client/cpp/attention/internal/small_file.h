// Files that options name.
#ifndef ATTENTION_INTERNAL_SMALL_FILE_H_
#define ATTENTION_INTERNAL_SMALL_FILE_H_

#include <cstddef>
#include <string>

#include "absl/status/statusor.h"

namespace attention::internal {

// What the file (or pipe) holds. INVALID_ARGUMENT, "PATH: what is wrong", if it
// cannot be read or holds more than `most_bytes`, of which no more are read.
absl::StatusOr<std::string> ReadSmallFile(const std::string& path,
                                          size_t most_bytes);

}  // namespace attention::internal

#endif  // ATTENTION_INTERNAL_SMALL_FILE_H_
