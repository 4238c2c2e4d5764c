#include "command_line/duration.h"

#include <cmath>

#include "absl/strings/numbers.h"

namespace attention::command_line {

std::optional<absl::Duration> ParseDuration(absl::string_view text) {
  double seconds;
  if (absl::SimpleAtod(text, &seconds)) {
    if (std::isnan(seconds)) return std::nullopt;
    return absl::Seconds(seconds);
  }
  absl::Duration duration;
  if (!absl::ParseDuration(text, &duration)) return std::nullopt;
  return duration;
}

}  // namespace attention::command_line
