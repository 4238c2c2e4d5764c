// What to say about an argument that a program does not know.
#ifndef ATTENTION_COMMAND_LINE_UNKNOWN_ARGUMENT_H_
#define ATTENTION_COMMAND_LINE_UNKNOWN_ARGUMENT_H_

#include <CLI/CLI.hpp>
#include <map>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace attention::command_line {

// What other programs call a flag, to what it is called here; both without
// dashes. Names that are merely misspelt need no entry.
using OtherNames = std::map<std::string, std::string>;

// A line about the first argument that `app` or its command did not take, with
// what was probably meant: "--port: no such flag, did you mean --listen?".
// Nothing if all were taken. To be called after app.parse(), also after one
// that threw: a misspelt flag is often the reason why another one is missing.
std::optional<std::string> UnknownArgument(const CLI::App& app,
                                           const OtherNames& other_names);

// A line about the first flag with nothing behind its "=", which CLI11 would
// give the next argument: "--tokens: got no value after '='". Nothing if there
// is none. `but` is a flag that may be empty. To be called before app.parse().
std::optional<std::string> EmptyValue(int argc, const char* const* argv,
                                      absl::string_view but = {});

}  // namespace attention::command_line

#endif  // ATTENTION_COMMAND_LINE_UNKNOWN_ARGUMENT_H_
