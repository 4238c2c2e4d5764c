// How --help looks.
#ifndef ATTENTION_COMMAND_LINE_HELP_H_
#define ATTENTION_COMMAND_LINE_HELP_H_

#include <CLI/CLI.hpp>

namespace attention::command_line {

// Lets footers be printed as they are written, also those of commands that are
// added later: newer versions of CLI11 would break their lines anew and drop
// the indentation of examples.
void KeepFooters(CLI::App& app);

}  // namespace attention::command_line

#endif  // ATTENTION_COMMAND_LINE_HELP_H_
