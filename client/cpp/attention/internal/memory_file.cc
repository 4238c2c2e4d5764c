#include "attention/internal/memory_file.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <utility>

namespace attention::internal {

std::unique_ptr<MemoryFile> MemoryFile::Create(size_t bytes) {
  Descriptor fd(memfd_create("attention", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd.valid() || ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0 ||
      fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) !=
          0) {
    return nullptr;
  }
  void* const data =
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (data == MAP_FAILED) return nullptr;
  return std::unique_ptr<MemoryFile>(
      new MemoryFile(std::move(fd), {static_cast<std::byte*>(data), bytes}));
}

MemoryFile::~MemoryFile() { munmap(bytes_.data(), bytes_.size()); }

}  // namespace attention::internal
