// A line on a terminal that is written anew again and again: how far something
// is.
#ifndef ATTENTION_CLIENT_CPP_CLI_TERMINAL_LINE_H_
#define ATTENTION_CLIENT_CPP_CLI_TERMINAL_LINE_H_

#include <ostream>
#include <string>

namespace attention::cli {

// Whoever interrupts the program finds the line ended, and the shell's prompt
// below it: once a line has been shown, SIGINT, SIGQUIT and SIGTERM end it on
// standard error before they end the program, unless the program has
// handlers of its own or ignores them. At most one at a time, by one thread.
class TerminalLine {
 public:
  // `terminal` must outlive this.
  explicit TerminalLine(std::ostream& terminal) : terminal_(terminal) {}
  // Clears it, and leaves signals as they were.
  ~TerminalLine();
  TerminalLine(const TerminalLine&) = delete;
  TerminalLine& operator=(const TerminalLine&) = delete;

  // Puts `text`, without line break, in place of what was shown before.
  void Show(const std::string& text);
  void Clear();

 private:
  std::ostream& terminal_;
  bool handles_signals_ = false;
};

// Ends the line that stands on standard error, if one does. For handlers of
// signals that end the program.
void EndTerminalLine();

}  // namespace attention::cli

#endif  // ATTENTION_CLIENT_CPP_CLI_TERMINAL_LINE_H_
