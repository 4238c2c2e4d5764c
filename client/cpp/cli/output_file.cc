#include "client/cpp/cli/output_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <random>
#include <system_error>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace attention::cli {
namespace {

namespace fs = std::filesystem;

// As the kernel's own limit.
constexpr int kMaxLinks = 40;

// Permissions of a temporary file: what the umask leaves of all, or, in the
// place of an old file, nobody else's until it gets those of the old one.
mode_t TemporaryMode(const OutputPlace& place) {
  return place.exists ? 0600 : 0666;
}

absl::Status Failed(absl::string_view what, int error) {
  return absl::InvalidArgumentError(
      absl::StrCat(what, ": ", std::strerror(error)));
}

std::string OpenPath(const Descriptor& file) {
  return absl::StrCat("/proc/self/fd/", file.get());
}

// Where the links that begin at `path` lead. What /proc links to is open
// already, as /dev/stdout is: such a link is not followed.
absl::StatusOr<fs::path> FollowLinks(fs::path path) {
  std::error_code error;
  for (int i = 0; i < kMaxLinks; ++i) {
    if (absl::StartsWith(path.native(), "/proc/") ||
        !fs::is_symlink(fs::symlink_status(path, error))) {
      return path;
    }
    const fs::path target = fs::read_symlink(path, error);
    if (error) return Failed("cannot follow it", error.value());
    path = path.parent_path() / target;
  }
  return Failed("cannot follow it", ELOOP);
}

// A name that no other file has, in all likelihood.
std::string TemporaryName(const std::string& folder) {
  std::random_device random;
  const uint64_t number = uint64_t{random()} << 32 | random();
  return absl::StrCat(folder, "/.attention_client.",
                      absl::Hex(number, absl::kZeroPad16), ".tmp");
}

}  // namespace

absl::StatusOr<OutputPlace> FindPlace(const std::string& path) {
  absl::StatusOr<fs::path> end = FollowLinks(path);
  if (!end.ok()) return end.status();
  const fs::path parent = end->has_parent_path() ? end->parent_path() : ".";
  std::error_code error;
  const fs::path folder = fs::canonical(parent, error);
  if (error == std::errc::no_such_file_or_directory) {
    return absl::InvalidArgumentError(
        absl::StrCat("no such folder: '", parent.native(), "'"));
  }
  if (error) return Failed("cannot reach its folder", error.value());

  OutputPlace place;
  place.folder = folder.native();
  place.path = (folder / end->filename()).native();
  const fs::file_type type = fs::status(*end, error).type();
  if (type == fs::file_type::directory) {
    return absl::InvalidArgumentError("is a folder, wanted a file");
  }
  if (type == fs::file_type::none) {
    return Failed("cannot look at it", error.value());
  }
  place.exists = type != fs::file_type::not_found;
  place.direct = place.exists && (type != fs::file_type::regular ||
                                  absl::StartsWith(end->native(), "/proc/"));
  // Another name of what is open: its folder is none to write to.
  if (place.direct) place.path = end->native();
  return place;
}

FolderLock::FolderLock(const std::string& folder)
    : folder_(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {
  if (!folder_.valid()) return;
  while (::flock(folder_.get(), LOCK_EX) != 0 && errno == EINTR) {
  }
}

absl::Status OutputFile::Check(const OutputPlace& place) {
  if (place.exists &&
      ::faccessat(AT_FDCWD, place.path.c_str(), W_OK, AT_EACCESS) != 0) {
    return Failed("cannot write", errno);
  }
  // Nobody may read from a pipe yet: opening it could wait for long.
  if (place.direct) return absl::OkStatus();
  return Create(place).status();
}

absl::StatusOr<OutputFile> OutputFile::Create(const OutputPlace& place,
                                              bool unnamed) {
  OutputFile file(place);
  if (place.direct) {
    file.stream_.open(place.path, std::ios::binary | std::ios::trunc);
  } else if ((unnamed && file.CreateUnnamed()) || file.CreateNamed()) {
    file.stream_.open(
        file.name_.empty() ? OpenPath(file.temporary_) : file.name_,
        std::ios::binary);
  }
  if (file.stream_.is_open()) return file;
  return Failed(place.direct ? "cannot write"
                             : absl::StrCat("cannot create a file in '",
                                            place.folder, "'"),
                errno);
}

OutputFile::OutputFile(OutputFile&& other) noexcept
    : place_(std::move(other.place_)),
      temporary_(std::move(other.temporary_)),
      name_(std::exchange(other.name_, "")),
      stream_(std::move(other.stream_)) {}

OutputFile::~OutputFile() {
  if (!name_.empty()) ::unlink(name_.c_str());
}

bool OutputFile::CreateUnnamed() {
  temporary_ =
      Descriptor(::open(place_.folder.c_str(), O_TMPFILE | O_WRONLY | O_CLOEXEC,
                        TemporaryMode(place_)));
  // Without /proc it could be given no name later.
  if (temporary_.valid() && ::access(OpenPath(temporary_).c_str(), W_OK) != 0) {
    temporary_ = Descriptor();
  }
  return temporary_.valid();
}

bool OutputFile::CreateNamed() {
  std::string name = TemporaryName(place_.folder);
  temporary_ =
      Descriptor(::open(name.c_str(), O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC,
                        TemporaryMode(place_)));
  if (temporary_.valid()) name_ = std::move(name);
  return temporary_.valid();
}

absl::Status OutputFile::Finish() {
  stream_.close();
  if (!stream_) return Failed("cannot write", errno);
  if (place_.direct) return absl::OkStatus();
  // Else a crash soon after could leave the new name with none of the bytes.
  if (::fsync(temporary_.get()) != 0) return Failed("cannot write", errno);
  return KeepOwnerAndMode();
}

absl::Status OutputFile::KeepOwnerAndMode() const {
  struct stat old = {};
  if (::stat(place_.path.c_str(), &old) != 0) return absl::OkStatus();
  // Only root can give files away; others keep the group where they can.
  mode_t mode = old.st_mode & 0777;
  if (::fchown(temporary_.get(), old.st_uid, old.st_gid) != 0 &&
      ::fchown(temporary_.get(), -1, old.st_gid) != 0) {
    if (errno != EPERM) return Failed("cannot keep its owner", errno);
    // What the old group could do is not for the new one.
    mode &= ~mode_t{070};
  }
  if (::fchmod(temporary_.get(), mode) != 0) {
    return Failed("cannot keep its permissions", errno);
  }
  return absl::OkStatus();
}

bool OutputFile::Link(const std::string& name) const {
  return ::linkat(AT_FDCWD, OpenPath(temporary_).c_str(), AT_FDCWD,
                  name.c_str(), AT_SYMLINK_FOLLOW) == 0;
}

absl::Status OutputFile::Commit() {
  if (place_.direct) return absl::OkStatus();
  if (name_.empty()) {
    if (Link(place_.path)) return absl::OkStatus();
    // An old file is there, which only a file with a name can replace.
    std::string name = TemporaryName(place_.folder);
    if (!Link(name)) return Failed("cannot write", errno);
    name_ = std::move(name);
  }
  if (::rename(name_.c_str(), place_.path.c_str()) != 0) {
    return Failed("cannot replace it", errno);
  }
  name_.clear();
  return absl::OkStatus();
}

}  // namespace attention::cli
