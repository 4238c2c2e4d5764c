// Durations as flags take them.
#ifndef ATTENTION_COMMAND_LINE_DURATION_H_
#define ATTENTION_COMMAND_LINE_DURATION_H_

#include <optional>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace attention::command_line {

// What an error says that was wanted.
inline constexpr char kWantedDuration[] =
    "a time such as 5 (seconds), 500ms or 1m30s";

// Reads "5" or "2.5" (seconds), "500ms", "1m30s", "inf", with a sign or
// without. Nothing if `text` is no duration.
std::optional<absl::Duration> ParseDuration(absl::string_view text);

}  // namespace attention::command_line

#endif  // ATTENTION_COMMAND_LINE_DURATION_H_
