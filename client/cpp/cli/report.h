// How the program ends: its exit codes, and errors in one line.
#ifndef ATTENTION_CLIENT_CPP_CLI_REPORT_H_
#define ATTENTION_CLIENT_CPP_CLI_REPORT_H_

#include <ostream>
#include <string>

#include "absl/status/status.h"

namespace attention::cli {

enum ExitCode {
  kSuccess = 0,
  // The command line, a literal or a file is wrong; nothing was computed, or
  // what was computed could not be written.
  kBadInput = 1,
  // The server answered with an error; health: it is not serving.
  kRefused = 2,
  // No answer: the server is unreachable or draining, or the time was up.
  kNoAnswer = 3,
  // bench: an answer was wrong.
  kWrongAnswer = 4,
};

// The exit code for what a call met.
ExitCode ExitCodeOf(const absl::Status& status);

// What a call met, in one line: code; each wrong field with what it got and
// wanted, or the server's text; how long to wait before another try.
std::string Describe(const absl::Status& status);

// Tells in one line what is wrong with the command line, an input or a file.
ExitCode BadInput(const absl::Status& status, std::ostream& err);

// `text` without line breaks and other control characters.
std::string OneLine(std::string text);

}  // namespace attention::cli

#endif  // ATTENTION_CLIENT_CPP_CLI_REPORT_H_
