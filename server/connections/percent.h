// Percent-encoding, as gRPC uses it in addresses.
#ifndef ATTENTION_SERVER_CONNECTIONS_PERCENT_H_
#define ATTENTION_SERVER_CONNECTIONS_PERCENT_H_

#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/string_view.h"

namespace attention::server {

// "%5B" becomes "[". A % that no two hexadecimal digits follow stays.
inline std::string PercentDecoded(absl::string_view text) {
  std::string decoded;
  for (size_t i = 0; i < text.size(); ++i) {
    int byte;
    if (text[i] == '%' && i + 2 < text.size() &&
        absl::ascii_isxdigit(text[i + 1]) &&
        absl::SimpleHexAtoi(text.substr(i + 1, 2), &byte)) {
      decoded += static_cast<char>(byte);
      i += 2;
    } else {
      decoded += text[i];
    }
  }
  return decoded;
}

}  // namespace attention::server

#endif  // ATTENTION_SERVER_CONNECTIONS_PERCENT_H_
