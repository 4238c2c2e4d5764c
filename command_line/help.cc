#include "command_line/help.h"

namespace attention::command_line {
namespace {

// A template, so that what older versions lack is not looked up.
template <typename Formatter>
void PrintFootersAsWritten(Formatter& formatter) {
  if constexpr (requires { formatter.enable_footer_formatting(false); }) {
    formatter.enable_footer_formatting(false);
  }
}

}  // namespace

void KeepFooters(CLI::App& app) { PrintFootersAsWritten(*app.get_formatter()); }

}  // namespace attention::command_line
