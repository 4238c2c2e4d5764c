#include "client/cpp/cli/terminal_line.h"

#include <unistd.h>

#include <atomic>
#include <csignal>

namespace attention::cli {
namespace {

// Whether a line stands on the terminal without its end.
std::atomic<bool> unfinished{false};
static_assert(std::atomic<bool>::is_always_lock_free);

constexpr char kEraseLine[] = "\r\x1b[K";

void EndLineAndProgram(int signal) {
  EndTerminalLine();
  // Its own handling is the system's again (SA_RESETHAND): it ends the program
  // once this returns.
  raise(signal);
}

// Puts one handling of signals in place of another, where that is in use.
void Replace(void (*old_handler)(int), void (*new_handler)(int)) {
  for (const int signal : {SIGINT, SIGQUIT, SIGTERM}) {
    struct sigaction action = {};
    sigaction(signal, nullptr, &action);
    if ((action.sa_flags & SA_SIGINFO) != 0 ||
        action.sa_handler != old_handler) {
      continue;
    }
    action = {};
    action.sa_handler = new_handler;
    action.sa_flags = static_cast<int>(SA_RESETHAND);
    sigaction(signal, &action, nullptr);
  }
}

}  // namespace

void EndTerminalLine() {
  if (!unfinished.exchange(false)) return;
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, "\n", 1);
}

TerminalLine::~TerminalLine() {
  Clear();
  if (handles_signals_) Replace(EndLineAndProgram, SIG_DFL);
}

void TerminalLine::Show(const std::string& text) {
  if (!handles_signals_) Replace(SIG_DFL, EndLineAndProgram);
  handles_signals_ = true;
  unfinished = true;
  terminal_ << kEraseLine << text << std::flush;
}

void TerminalLine::Clear() {
  if (!unfinished) return;
  terminal_ << kEraseLine << std::flush;
  unfinished = false;
}

}  // namespace attention::cli
