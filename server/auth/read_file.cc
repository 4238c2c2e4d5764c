#include "server/auth/read_file.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/descriptor.h"

namespace attention::server {
namespace {

// How long whoever writes into a pipe may take in all.
constexpr absl::Duration kWriterTime = absl::Seconds(1);

absl::Status Failed(int error) {
  return absl::InvalidArgumentError(
      absl::StrCat("cannot be read: ", strerrordesc_np(error)));
}

}  // namespace

absl::StatusOr<std::string> ReadSmallFile(const std::string& path) {
  // Not to wait for whoever never writes into a pipe.
  const Descriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!file.valid()) return Failed(errno);
  const absl::Time until = absl::Now() + kWriterTime;
  std::string text;
  for (;;) {
    const size_t before = text.size();
    text.resize(before + 16384);
    const ssize_t got = read(file.get(), text.data() + before, 16384);
    if (got < 0 && errno == EINTR) {
      text.resize(before);
      continue;
    }
    if (got < 0 && errno == EAGAIN) {
      text.resize(before);
      pollfd ready{file.get(), POLLIN, 0};
      const int left =
          static_cast<int>(absl::ToInt64Milliseconds(until - absl::Now()));
      if (left > 0 && poll(&ready, 1, left) > 0) continue;
      return absl::InvalidArgumentError(
          "cannot be read: nobody writes into this pipe, or too slowly");
    }
    if (got < 0) return Failed(errno);
    text.resize(before + got);
    if (got == 0) return text;
    if (text.size() > kMaxFileBytes) {
      return absl::InvalidArgumentError(absl::StrCat(
          "has more than ", kMaxFileBytes, " bytes, the most that are read"));
    }
  }
}

}  // namespace attention::server
