// The command line as options.
#ifndef ATTENTION_SERVER_FLAGS_H_
#define ATTENTION_SERVER_FLAGS_H_

#include <optional>
#include <string>

#include "server/options.h"

namespace attention::server {

// What a command line asks for: to serve with valid options, or to print and
// exit.
struct Invocation {
  // Set: serve.
  std::optional<Options> options;
  // Else: print these and exit with this code.
  std::string standard_output;
  std::string standard_error;
  int exit_code = 0;
};

// Parses and validates; an error gives one line each in standard_error and exit
// code 2.
Invocation ParseFlags(int argc, const char* const* argv);

}  // namespace attention::server

#endif  // ATTENTION_SERVER_FLAGS_H_
