#include "server/shared_memory/named_regions.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <limits>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/field_error.h"

namespace attention::server {
namespace {

// Longer names of files there are not.
constexpr size_t kMostKeyBytes = 255;

bool IsKey(absl::string_view key) {
  absl::ConsumePrefix(&key, "/");
  return !key.empty() && key.size() <= kMostKeyBytes && key.front() != '.' &&
         std::all_of(key.begin(), key.end(), [](char c) {
           return absl::ascii_isalnum(c) || c == '.' || c == '_' || c == '-';
         });
}

bool IsName(absl::string_view name) {
  return !name.empty() && name.size() <= NamedRegions::kMostNameBytes &&
         std::all_of(name.begin(), name.end(), absl::ascii_isgraph);
}

// The size of an object of shm_open(), which is a file of its own; nothing if
// it is something else.
std::optional<int64_t> SizeOf(const Descriptor& object) {
  struct stat file;
  if (!object.valid() || fstat(object.get(), &file) != 0 ||
      !S_ISREG(file.st_mode)) {
    return std::nullopt;
  }
  return file.st_size;
}

}  // namespace

bool NamedRegion::Read(int64_t begin, absl::Span<std::byte> to) const {
  while (!to.empty()) {
    const ssize_t bytes =
        pread(object_.get(), to.data(), to.size(), offset_ + begin);
    if (bytes < 0 && errno == EINTR) continue;
    if (bytes <= 0) return false;
    begin += bytes;
    to.remove_prefix(bytes);
  }
  return true;
}

bool NamedRegion::Write(int64_t begin, absl::Span<const std::byte> from) const {
  // To write past its end would make it larger.
  const std::optional<int64_t> size = SizeOf(object_);
  if (!size || *size < offset_ + bytes_) return false;
  while (!from.empty()) {
    const ssize_t bytes =
        pwrite(object_.get(), from.data(), from.size(), offset_ + begin);
    if (bytes < 0 && errno == EINTR) continue;
    if (bytes <= 0) return false;
    begin += bytes;
    from.remove_prefix(bytes);
  }
  return true;
}

absl::Status NamedRegions::Register(int tenant, const std::string& name,
                                    const std::string& key, uint64_t offset,
                                    uint64_t bytes) {
  if (!allowed_) {
    return absl::UnimplementedError(
        "memory is not shared here: the server was started without "
        "--shared-memory");
  }
  if (!IsName(name)) {
    return FieldError("name", absl::StrCat("wanted 1 to ", kMostNameBytes,
                                           " characters of printable ASCII, "
                                           "no spaces"));
  }
  if (!IsKey(key)) {
    return FieldError("key",
                      absl::StrCat("wanted a name of shm_open(): a slash, then "
                                   "1 to ",
                                   kMostKeyBytes,
                                   " letters, digits, '.', '_' and '-', the "
                                   "first one no '.'"));
  }
  constexpr auto kMost =
      static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
  Descriptor object(
      shm_open(key.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0));
  const std::optional<int64_t> size = SizeOf(object);
  if (!size) {
    return FieldError("key",
                      "there is no shared memory of this name that the server "
                      "may read and write");
  }
  if (bytes == 0 || offset > kMost || bytes > kMost - offset ||
      offset + bytes > static_cast<uint64_t>(*size)) {
    return FieldError("byte_size",
                      absl::StrCat("got ", bytes, " at offset ", offset,
                                   ", wanted bytes that the memory has"));
  }
  const auto region = std::make_shared<const NamedRegion>(
      std::move(object), key, static_cast<int64_t>(offset),
      static_cast<int64_t>(bytes));
  const std::lock_guard<std::mutex> lock(mutex_);
  Regions& regions = tenants_[tenant];
  if (regions.contains(name)) {
    return absl::AlreadyExistsError(
        "name: there is a region of this name, to be unregistered first");
  }
  if (regions.size() >= kMostRegions) {
    return absl::ResourceExhaustedError(
        absl::StrCat("there are ", kMostRegions,
                     " regions, as many as a caller may have: unregister one"));
  }
  regions.emplace(name, region);
  return absl::OkStatus();
}

void NamedRegions::Unregister(int tenant, const std::string& name) {
  // Closed without the lock.
  Regions gone;
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto its = tenants_.find(tenant);
  if (its == tenants_.end()) return;
  if (name.empty()) {
    gone.swap(its->second);
  } else if (auto node = its->second.extract(name); !node.empty()) {
    gone.insert(std::move(node));
  }
  if (its->second.empty()) tenants_.erase(its);
}

NamedRegionPtr NamedRegions::Find(int tenant, const std::string& name) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto its = tenants_.find(tenant);
  if (its == tenants_.end()) return nullptr;
  const auto region = its->second.find(name);
  return region == its->second.end() ? nullptr : region->second;
}

std::vector<std::pair<std::string, NamedRegionPtr>> NamedRegions::List(
    int tenant, const std::string& name) const {
  std::vector<std::pair<std::string, NamedRegionPtr>> found;
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto its = tenants_.find(tenant);
  if (its == tenants_.end()) return found;
  for (const auto& region : its->second) {
    if (name.empty() || region.first == name) found.push_back(region);
  }
  return found;
}

bool NamedRegions::HasAny(int tenant) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return tenants_.contains(tenant);
}

}  // namespace attention::server
