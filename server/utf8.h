// Whether bytes are text.
#ifndef ATTENTION_SERVER_UTF8_H_
#define ATTENTION_SERVER_UTF8_H_

#include <cstddef>

#include "absl/strings/string_view.h"

namespace attention::server {

// The bytes of the UTF-8 character that `text`, which is not empty, begins
// with; 0 if it begins with none.
size_t Utf8CharacterBytes(absl::string_view text);

// Whether a proto3 string may hold `text`.
bool IsUtf8(absl::string_view text);

}  // namespace attention::server

#endif  // ATTENTION_SERVER_UTF8_H_
