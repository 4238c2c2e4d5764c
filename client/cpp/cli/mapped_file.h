// Files read through memory: what is not looked at takes none.
#ifndef ATTENTION_CLIENT_CPP_CLI_MAPPED_FILE_H_
#define ATTENTION_CLIENT_CPP_CLI_MAPPED_FILE_H_

#include <cstddef>
#include <span>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "base/descriptor.h"

namespace attention::cli {

// The bytes of a file, for reading. Movable. If another process shortens the
// file meanwhile, the first look at what is gone ends this process with a line
// on standard error and exit code 1.
class MappedFile {
 public:
  // InvalidArgument, with what the system said, if the file cannot be mapped.
  static absl::StatusOr<MappedFile> Open(const std::string& path);

  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return bytes_; }

  // Whether the file has become shorter. Who sends what is gone meets an error
  // that says nothing of it.
  bool Shortened() const;

  // Gives back the memory of what has been looked at. It is read again from the
  // file when it is looked at again.
  void DropPages() const;

 private:
  MappedFile(Descriptor file, std::span<const std::byte> bytes)
      : file_(std::move(file)), bytes_(bytes) {}

  Descriptor file_;
  std::span<const std::byte> bytes_;
};

}  // namespace attention::cli

#endif  // ATTENTION_CLIENT_CPP_CLI_MAPPED_FILE_H_
