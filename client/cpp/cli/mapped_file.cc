#include "client/cpp/cli/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/descriptor.h"
#include "client/cpp/cli/terminal_line.h"

namespace attention::cli {
namespace {

// Of what a signal handler may do, enough to say what happened.
void EndForWantOfTheFile(int /*signal*/) {
  EndTerminalLine();
  constexpr char kText[] =
      "attention_client: an input file became shorter while it was read\n";
  [[maybe_unused]] const ssize_t written =
      write(STDERR_FILENO, kText, sizeof(kText) - 1);
  _exit(1);
}

void HandleShortenedFiles() {
  struct sigaction action = {};
  action.sa_handler = EndForWantOfTheFile;
  sigaction(SIGBUS, &action, nullptr);
}

}  // namespace

absl::StatusOr<MappedFile> MappedFile::Open(const std::string& path) {
  const auto failed = [] {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot map: ", std::strerror(errno)));
  };
  Descriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  struct stat status = {};
  if (!file.valid() || fstat(file.get(), &status) != 0) return failed();
  const auto size = static_cast<size_t>(status.st_size);
  if (size == 0) return MappedFile(std::move(file), {});
  void* memory =
      mmap(nullptr, size, PROT_READ, MAP_SHARED, file.get(), /*offset=*/0);
  if (memory == MAP_FAILED) return failed();
  HandleShortenedFiles();
  return MappedFile(std::move(file),
                    {static_cast<const std::byte*>(memory), size});
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : file_(std::move(other.file_)), bytes_(std::exchange(other.bytes_, {})) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(file_, other.file_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) {
    munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
  }
}

bool MappedFile::Shortened() const {
  struct stat status = {};
  return file_.valid() && fstat(file_.get(), &status) == 0 &&
         static_cast<size_t>(status.st_size) < bytes_.size();
}

void MappedFile::DropPages() const {
  if (bytes_.empty()) return;
  madvise(const_cast<std::byte*>(bytes_.data()), bytes_.size(), MADV_DONTNEED);
}

}  // namespace attention::cli
