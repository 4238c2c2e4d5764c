// A pipe that nobody reads, or whose reader goes away.
#ifndef ATTENTION_TESTS_SUPPORT_PIPE_H_
#define ATTENTION_TESTS_SUPPORT_PIPE_H_

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <unistd.h>

#include <cstddef>
#include <string>

namespace attention::testing {

// Not thread-safe, but for what the pipe itself allows.
class Pipe {
 public:
  Pipe() { EXPECT_EQ(pipe2(ends_, O_CLOEXEC), 0); }
  ~Pipe() {
    CloseReader();
    CloseWriter();
  }
  Pipe(const Pipe&) = delete;
  Pipe& operator=(const Pipe&) = delete;

  int writer() const { return ends_[1]; }

  // Until it takes nothing more. The writer's end blocks, as before. Returns
  // the bytes that it took.
  size_t Fill() {
    size_t bytes = 0;
    const std::string page(4096, '.');
    for (pollfd end = {ends_[1], POLLOUT, 0}; poll(&end, 1, 0) > 0;) {
      const ssize_t count = write(ends_[1], page.data(), page.size());
      if (count <= 0) break;
      bytes += count;
    }
    return bytes;
  }

  // Exactly `bytes` bytes, or fewer at the end.
  std::string ReadAll(size_t bytes) {
    while (read_.size() < bytes && ReadMore()) {
    }
    return Take(bytes);
  }

  // Until `text` has come, which is included, or the end.
  std::string ReadUntil(const std::string& text) {
    size_t place;
    while ((place = read_.find(text)) == std::string::npos) {
      if (!ReadMore()) return Take(read_.size());
    }
    return Take(place + text.size());
  }

  void CloseReader() { Close(ends_[0]); }
  void CloseWriter() { Close(ends_[1]); }

 private:
  // Blocks while there is nothing; false at the end.
  bool ReadMore() {
    char part[4096];
    const ssize_t count = read(ends_[0], part, sizeof(part));
    if (count > 0) read_.append(part, count);
    return count > 0;
  }

  std::string Take(size_t bytes) {
    std::string taken = read_.substr(0, bytes);
    read_.erase(0, bytes);
    return taken;
  }

  static void Close(int& end) {
    if (end >= 0) close(end);
    end = -1;
  }

  int ends_[2] = {-1, -1};
  // Read, but not asked for yet.
  std::string read_;
};

}  // namespace attention::testing

#endif  // ATTENTION_TESTS_SUPPORT_PIPE_H_
