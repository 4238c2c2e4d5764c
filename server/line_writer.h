// Writes lines to a descriptor that somebody else may not read.
//
//   LineWriter log({.fd = STDERR_FILENO});
//   log.Write("level=info event=start");   // returns at once, whatever happens
#ifndef ATTENTION_SERVER_LINE_WRITER_H_
#define ATTENTION_SERVER_LINE_WRITER_H_

#include <climits>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace attention::server {

// Queues lines and writes them on a thread of its own, so that no caller waits
// for the reader of the descriptor. Thread-safe.
//
// Memory: one buffer of a fixed size, allocated at the start. A line that does
// not fit is dropped and counted.
// The descriptor: its flags are left alone, because O_NONBLOCK would hold for
// every process that shares the terminal or pipe. Written to only when poll()
// says there is room, and then at most PIPE_BUF bytes, which a pipe with room
// takes without blocking. Lines that cannot be written (EPIPE, EIO, ENOSPC,
// ...) are dropped and counted; later ones are tried again. No SIGPIPE is
// raised. Its end: the destructor waits for lines still queued, but for no
// longer than Settings say. A thread that is stuck in write() by then (a
// terminal or pipe that another process filled in between) is left behind: it
// owns what it uses.
class LineWriter {
 public:
  // Longer lines are cut, and end in "...". With its end a line fits a write
  // that pipes do not mix with those of others.
  static constexpr size_t kMaxLineBytes = PIPE_BUF - 1;

  struct Settings {
    // Not owned; open until the process ends.
    int fd = -1;
    // Of lines that wait, their ends included; at least kMaxLineBytes + 1.
    size_t buffer_bytes = size_t{64} << 10;
    // How long the destructor waits at most, and how long if nothing is read.
    absl::Duration flush_time = absl::Seconds(1);
    absl::Duration stall_time = absl::Milliseconds(250);
    // The line that tells of `count` > 0 dropped lines. It is written as soon
    // as the lines queued before them are. Called on the writer's thread. None
    // by default.
    std::function<std::string(int64_t count)> dropped_line = nullptr;
  };

  // Throws std::bad_alloc or std::system_error if there is no memory or thread.
  explicit LineWriter(Settings settings);
  ~LineWriter();
  LineWriter(const LineWriter&) = delete;
  LineWriter& operator=(const LineWriter&) = delete;

  // Queues `line`, which has no end of line, or drops it. Allocates nothing and
  // never waits for I/O.
  void Write(absl::string_view line) noexcept;

  // Counts a line that was lost before it came here.
  void CountDropped() noexcept;

  // Lines dropped since the start.
  int64_t dropped() const noexcept;

 private:
  class Queue;

  // Shared with the thread, which may outlive this.
  std::shared_ptr<Queue> queue_;
  std::thread thread_;
};

// Writes `text` to `fd` while there is room, for at most `limit`; for last
// words that have no thread to write them. Allocates nothing, safe in signal
// handlers. False if not all was written.
bool WriteWithin(int fd, absl::string_view text, absl::Duration limit) noexcept;

}  // namespace attention::server

#endif  // ATTENTION_SERVER_LINE_WRITER_H_
