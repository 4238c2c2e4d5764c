// Memory that can be shared with a server on this machine.
#ifndef ATTENTION_INTERNAL_MEMORY_FILE_H_
#define ATTENTION_INTERNAL_MEMORY_FILE_H_

#include <cstddef>
#include <memory>
#include <span>

#include "base/descriptor.h"

namespace attention::internal {

// A memfd that cannot change its size, mapped. Page-aligned, zeroed; pages are
// taken when they are first touched. Its bytes may be used by any thread.
class MemoryFile {
 public:
  // Null if the system has none to give.
  static std::unique_ptr<MemoryFile> Create(size_t bytes);
  ~MemoryFile();
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;

  std::span<std::byte> bytes() const { return bytes_; }
  int fd() const { return fd_.get(); }

 private:
  MemoryFile(Descriptor fd, std::span<std::byte> bytes)
      : fd_(std::move(fd)), bytes_(bytes) {}

  const Descriptor fd_;
  const std::span<std::byte> bytes_;
};

}  // namespace attention::internal

#endif  // ATTENTION_INTERNAL_MEMORY_FILE_H_
