#include "tests/support/subprocess.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

extern char** environ;

namespace attention::testing {
namespace {

// Appends what there is to read; false at the end.
bool ReadSome(int fd, std::string* bytes) {
  char buffer[4096];
  const ssize_t count = read(fd, buffer, sizeof(buffer));
  if (count < 0) return errno == EINTR;
  bytes->append(buffer, count);
  return count > 0;
}

struct Stream {
  // -1 if the caller reads.
  int read;
  int write;
};

// The caller's descriptor if there is one, else a pipe of our own.
Stream OpenStream(int callers) {
  if (callers >= 0) return {-1, callers};
  int ends[2];
  EXPECT_EQ(pipe2(ends, O_CLOEXEC), 0);
  return {ends[0], ends[1]};
}

}  // namespace

Subprocess::Subprocess(const std::vector<std::string>& argv,
                       const Streams& streams) {
  const Stream output = OpenStream(streams.standard_output);
  const Stream error = OpenStream(streams.standard_error);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, output.write, STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&actions, error.write, STDERR_FILENO);
  std::vector<char*> arguments;
  for (const std::string& argument : argv) {
    arguments.push_back(const_cast<char*>(argument.c_str()));
  }
  arguments.push_back(nullptr);
  EXPECT_EQ(posix_spawn(&pid_, argv[0].c_str(), &actions, nullptr,
                        arguments.data(), environ),
            0);
  posix_spawn_file_actions_destroy(&actions);
  if (output.read >= 0) close(output.write);
  if (error.read >= 0) close(error.write);
  output_ = output.read;
  error_ = error.read;
}

Subprocess::~Subprocess() {
  if (pid_ > 0) {
    kill(pid_, SIGKILL);
    Wait();
  }
  if (output_ >= 0) close(output_);
  if (error_ >= 0) close(error_);
}

std::string Subprocess::ReadLine() {
  while (buffered_.find('\n') == std::string::npos) {
    if (!ReadSome(output_, &buffered_)) return std::exchange(buffered_, "");
  }
  const size_t end = buffered_.find('\n');
  const std::string line = buffered_.substr(0, end);
  buffered_.erase(0, end + 1);
  return line;
}

void Subprocess::Signal(int signal) { EXPECT_EQ(kill(pid_, signal), 0); }

Subprocess::Result Subprocess::Wait() {
  Result result;
  result.standard_output = std::exchange(buffered_, "");
  // Both at once, lest one pipe fills while the other is awaited.
  pollfd fds[] = {{output_, POLLIN, 0}, {error_, POLLIN, 0}};
  std::string* const targets[] = {&result.standard_output,
                                  &result.standard_error};
  while (fds[0].fd >= 0 || fds[1].fd >= 0) {
    if (poll(fds, 2, -1) < 0) continue;
    for (int i = 0; i < 2; ++i) {
      if (fds[i].fd >= 0 && fds[i].revents != 0 &&
          !ReadSome(fds[i].fd, targets[i])) {
        fds[i].fd = -1;
      }
    }
  }
  int status = 0;
  EXPECT_EQ(waitpid(pid_, &status, 0), pid_);
  pid_ = -1;
  result.exit_code =
      WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return result;
}

bool Subprocess::EndsWithin(std::chrono::milliseconds limit) {
  const int process = static_cast<int>(syscall(SYS_pidfd_open, pid_, 0));
  EXPECT_GE(process, 0);
  pollfd entry = {process, POLLIN, 0};
  const bool ended = poll(&entry, 1, static_cast<int>(limit.count())) > 0;
  close(process);
  return ended;
}

}  // namespace attention::testing
