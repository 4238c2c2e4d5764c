#include <langinfo.h>

#include <clocale>
#include <cstdlib>
#include <cstring>
#include <iostream>

#include "client/cpp/cli/command_line.h"
#include "client/cpp/cli/report.h"

// SIGPIPE keeps its default: a reader that has seen enough, as head(1), ends
// the program without a word, like any filter.
int main(int argc, char** argv) {
  // gRPC's own log would stand beside the one line that an error gives.
  setenv("GRPC_VERBOSITY", "NONE", /*overwrite=*/0);
  std::setlocale(LC_CTYPE, "");
  const bool utf8 = std::strcmp(nl_langinfo(CODESET), "UTF-8") == 0;
  const int code = attention::cli::Run(argc, argv, utf8, std::cout, std::cerr);
  // A full disk behind a redirection must not look like success.
  std::cout.flush();
  if (code == attention::cli::kSuccess && !std::cout) {
    std::cerr << "attention_client: cannot write to standard output\n";
    return attention::cli::kBadInput;
  }
  return code;
}
