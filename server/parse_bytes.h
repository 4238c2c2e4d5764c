// Sizes as people write them.
#ifndef ATTENTION_SERVER_PARSE_BYTES_H_
#define ATTENTION_SERVER_PARSE_BYTES_H_

#include <cstdint>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"

namespace attention::server {

// Bytes, or a number with a suffix KiB, MiB or GiB. Whether it is one.
inline bool ParseBytes(absl::string_view text, int64_t* bytes) {
  constexpr std::pair<absl::string_view, int> kUnits[] = {
      {"KiB", 10}, {"MiB", 20}, {"GiB", 30}, {"", 0}};
  for (const auto& [unit, shift] : kUnits) {
    absl::string_view number = text;
    if (!absl::ConsumeSuffix(&number, unit)) continue;
    return absl::SimpleAtoi(number, bytes) &&
           !__builtin_mul_overflow(*bytes, int64_t{1} << shift, bytes);
  }
  return false;
}

}  // namespace attention::server

#endif  // ATTENTION_SERVER_PARSE_BYTES_H_
