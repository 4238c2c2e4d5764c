// Shared memory that clients name: "system shared memory" of the Open Inference
// Protocol, objects of shm_open().
//
// Nothing of it is mapped. Unlike memory that a client hands over as a sealed
// descriptor (region_table.h), a named object can be made smaller at any time,
// and to touch what is gone ends a process. So its bytes are copied by the
// system, which reports that as an error.
#ifndef ATTENTION_SERVER_SHARED_MEMORY_NAMED_REGIONS_H_
#define ATTENTION_SERVER_SHARED_MEMORY_NAMED_REGIONS_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "base/descriptor.h"

namespace attention::server {

// A part of an object. Thread-safe.
class NamedRegion {
 public:
  NamedRegion(Descriptor object, std::string key, int64_t offset, int64_t bytes)
      : object_(std::move(object)),
        key_(std::move(key)),
        offset_(offset),
        bytes_(bytes) {}

  // As the client registered it.
  const std::string& key() const { return key_; }
  int64_t offset() const { return offset_; }
  int64_t bytes() const { return bytes_; }

  // Whether [begin, begin + bytes) lies within the region.
  bool Holds(int64_t begin, int64_t bytes) const {
    return begin >= 0 && bytes >= 0 && begin <= bytes_ &&
           bytes <= bytes_ - begin;
  }

  // Copies what begins at `begin`, which the region holds. False where the
  // object is smaller by now, or has no memory left.
  bool Read(int64_t begin, absl::Span<std::byte> to) const;
  bool Write(int64_t begin, absl::Span<const std::byte> from) const;

 private:
  const Descriptor object_;
  const std::string key_;
  const int64_t offset_;
  const int64_t bytes_;
};

using NamedRegionPtr = std::shared_ptr<const NamedRegion>;

// The regions of each tenant by their names. A call that has found one keeps
// its object open for as long as it runs. Thread-safe.
class NamedRegions {
 public:
  // Of a tenant; each costs a descriptor.
  static constexpr size_t kMostRegions = 64;
  static constexpr size_t kMostNameBytes = 128;

  // `allowed`: whether there may be any.
  explicit NamedRegions(bool allowed) : allowed_(allowed) {}
  NamedRegions(const NamedRegions&) = delete;
  NamedRegions& operator=(const NamedRegions&) = delete;

  // Opens the object of that key. No error repeats a name or a key, nor tells
  // what is wrong with an object: that could be anybody's.
  //
  // Errors: Unimplemented if none may be named; InvalidArgument with the field,
  // if the name or key is none, or the object has no such bytes or cannot be
  // opened; AlreadyExists if the tenant has a region of this name;
  // ResourceExhausted if it has kMostRegions.
  absl::Status Register(int tenant, const std::string& name,
                        const std::string& key, uint64_t offset,
                        uint64_t bytes);

  // Forgets one region, or with an empty name all of the tenant. OK if there is
  // none.
  void Unregister(int tenant, const std::string& name);

  // Null if the tenant has none of this name.
  NamedRegionPtr Find(int tenant, const std::string& name) const;

  // The tenant's, by name; with a name that one, if it is there.
  std::vector<std::pair<std::string, NamedRegionPtr>> List(
      int tenant, const std::string& name) const;

  bool HasAny(int tenant) const;

 private:
  using Regions = std::map<std::string, NamedRegionPtr>;

  const bool allowed_;
  mutable std::mutex mutex_;
  std::map<int, Regions> tenants_;  // guarded by mutex_
};

// Those that a call may name.
struct NamedCaller {
  const NamedRegions* regions = nullptr;  // null: none
  int tenant = 0;
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_SHARED_MEMORY_NAMED_REGIONS_H_
