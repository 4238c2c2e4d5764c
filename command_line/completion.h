// Completion of a program's flags in shells.
//
// The scripts are made from the flags as CLI11 knows them, so that no list has
// to be kept beside them. What a flag's value completes to goes by its type
// name: "a|b|c" to these words, FILE and TENSOR to files, others to nothing.
#ifndef ATTENTION_COMMAND_LINE_COMPLETION_H_
#define ATTENTION_COMMAND_LINE_COMPLETION_H_

#include <CLI/CLI.hpp>
#include <string>

namespace attention::command_line {

// Adds the command `completion SHELL`, whose argument goes to `shell`.
CLI::App* AddCompletionCommand(CLI::App& app, std::string& shell);

// The script for a shell that the command takes. `app` has all its flags.
std::string CompletionScript(const CLI::App& app, const std::string& shell);

}  // namespace attention::command_line

#endif  // ATTENTION_COMMAND_LINE_COMPLETION_H_
