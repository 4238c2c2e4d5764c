// The command line of attention_client.
#ifndef ATTENTION_CLIENT_CPP_CLI_COMMAND_LINE_H_
#define ATTENTION_CLIENT_CPP_CLI_COMMAND_LINE_H_

#include <ostream>

namespace attention::cli {

// Does what the arguments say. Answers go to `out`, errors to `err`, a line
// each; `utf8` tells whether `out` shows UTF-8. Returns an ExitCode.
int Run(int argc, const char* const* argv, bool utf8, std::ostream& out,
        std::ostream& err);

}  // namespace attention::cli

#endif  // ATTENTION_CLIENT_CPP_CLI_COMMAND_LINE_H_
