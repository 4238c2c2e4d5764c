#include "server/shared_memory/region_table.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <new>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace attention::server {
namespace {

absl::Status Refused(absl::string_view got, absl::string_view wanted) {
  return absl::InvalidArgumentError(
      absl::StrCat("descriptor: got ", got, ", wanted ", wanted));
}

// Its size, if it can be relied on: neither a file that anybody may cut off,
// which would end the process by SIGBUS, nor one whose pages may run out.
absl::StatusOr<int64_t> SizeOfMemory(const Descriptor& memory) {
  const int seals = fcntl(memory.get(), F_GET_SEALS);
  if (seals < 0) return Refused("something else", "a memfd that can be sealed");
  if ((seals & F_SEAL_SHRINK) == 0) {
    return Refused("memory without F_SEAL_SHRINK",
                   "a memfd that can not become smaller");
  }
  struct statfs system;
  if (fstatfs(memory.get(), &system) != 0 || system.f_type != TMPFS_MAGIC) {
    return Refused("memory of huge pages", "a memfd without MFD_HUGETLB");
  }
  struct stat file;
  if (fstat(memory.get(), &file) != 0) {
    return absl::ResourceExhaustedError(std::strerror(errno));
  }
  if (file.st_size <= 0) return Refused("no bytes", "at least one");
  return file.st_size;
}

absl::StatusOr<std::string> NewId() {
  std::string id(kRegionIdBytes, '\0');
  if (getrandom(id.data(), id.size(), 0) !=
      static_cast<ssize_t>(kRegionIdBytes)) {
    return absl::ResourceExhaustedError(
        absl::StrCat("no random numbers: ", std::strerror(errno)));
  }
  return id;
}

absl::Status TooMuch(absl::string_view whose, int64_t bytes, int64_t most) {
  return absl::ResourceExhaustedError(
      absl::StrCat("got ", bytes, " bytes, wanted at most ", most,
                   " more bytes of ", whose));
}

}  // namespace

Region::~Region() {
  munmap(data_, static_cast<size_t>(bytes_));
  *total_ -= bytes_;
}

absl::StatusOr<RegionTable::Added> RegionTable::Add(const Descriptor& memory,
                                                    int tenant,
                                                    int64_t most_bytes) {
  const absl::StatusOr<int64_t> bytes = SizeOfMemory(memory);
  if (!bytes.ok()) return bytes.status();
  if (*bytes > most_bytes) {
    return TooMuch("one connection", *bytes, most_bytes);
  }
  absl::StatusOr<std::string> id = NewId();
  if (!id.ok()) return id.status();
  const int64_t before = total_->fetch_add(*bytes);
  if (before > max_bytes_ - *bytes) {
    *total_ -= *bytes;
    return TooMuch("all connections", *bytes, max_bytes_ - before);
  }
  void* const data = mmap(nullptr, static_cast<size_t>(*bytes),
                          PROT_READ | PROT_WRITE, MAP_SHARED, memory.get(), 0);
  if (data == MAP_FAILED) {
    const int error = errno;
    *total_ -= *bytes;
    // The seal forbids to write, or the descriptor is one to read only.
    if (error == EPERM || error == EACCES) {
      return Refused("memory that cannot be written to", "one that can be");
    }
    return absl::ResourceExhaustedError(
        absl::StrCat("the memory cannot be mapped: ", std::strerror(error)));
  }
  std::unique_ptr<Region> made;
  try {
    made.reset(new Region(static_cast<std::byte*>(data), *bytes, total_));
  } catch (const std::bad_alloc&) {
    munmap(data, static_cast<size_t>(*bytes));
    *total_ -= *bytes;
    throw;
  }
  RegionPtr region(std::move(made));
  const std::lock_guard<std::mutex> lock(mutex_);
  regions_[*id] = {std::move(region), tenant};
  return Added{*std::move(id), *bytes};
}

void RegionTable::Remove(const std::string& id) {
  RegionPtr removed;  // Unmapped without the lock, which takes milliseconds.
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = regions_.find(id);
  if (found == regions_.end()) return;
  removed = std::move(found->second.region);
  regions_.erase(found);
}

RegionPtr RegionTable::Find(const std::string& id, int tenant) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = regions_.find(id);
  if (found == regions_.end() || found->second.tenant != tenant) return nullptr;
  return found->second.region;
}

}  // namespace attention::server
