#include "server/last_words.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <initializer_list>
#include <new>
#include <system_error>

#include "absl/time/time.h"
#include "server/line_writer.h"

namespace attention::server {
namespace {

constexpr absl::string_view kProgram = "attention_server: ";
constexpr char kAdvice[] =
    "; if memory, threads or file descriptors are short, raise their limits "
    "(ulimit -v, -u, -n, or the container's) or lower --threads";

// Read by a signal handler.
std::atomic<bool> starting{true};
std::atomic<bool> told{false};

static_assert(std::atomic<bool>::is_always_lock_free);

// `parts` after one another, cut at what fits.
void TellParts(std::initializer_list<absl::string_view> parts) noexcept {
  char line[1024];
  size_t size = 0;
  for (absl::string_view part : parts) {
    const size_t count = std::min(part.size(), sizeof(line) - 1 - size);
    std::memcpy(line + size, part.data(), count);
    size += count;
  }
  line[size++] = '\n';
  WriteWithin(STDERR_FILENO, {line, size}, absl::Seconds(1));
}

[[noreturn]] void OnTerminate() {
  if (!told.exchange(true)) {
    if (std::current_exception()) {
      TellOfException();
    } else {
      TellParts({kProgram, "terminated", kAdvice});
    }
  }
  std::abort();
}

void OnAbort(int) {
  if (!told.exchange(true)) TellParts({kProgram, "aborted", kAdvice});
  if (starting) _exit(1);
  // abort() goes on to end the process.
}

}  // namespace

void TellOnStderr(absl::string_view text) noexcept {
  TellParts({kProgram, text});
}

void InstallLastWords() {
  std::set_terminate(OnTerminate);
  std::signal(SIGABRT, OnAbort);
}

void StartSucceeded() { starting = false; }

void TellOfException() noexcept {
  try {
    throw;
  } catch (const std::bad_alloc&) {
    TellParts({kProgram, "out of memory", kAdvice});
  } catch (const std::system_error& error) {
    TellParts({kProgram, "the system refused: ", error.what(), kAdvice});
  } catch (const std::exception& error) {
    TellParts({kProgram, error.what()});
  } catch (...) {
    TellParts({kProgram, "an unknown exception"});
  }
}

}  // namespace attention::server
