// Memory that clients on this machine share with the server, by its ids.
#ifndef ATTENTION_SERVER_SHARED_MEMORY_REGION_TABLE_H_
#define ATTENTION_SERVER_SHARED_MEMORY_REGION_TABLE_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/descriptor.h"

namespace attention::server {

inline constexpr size_t kRegionIdBytes = 16;

// A client's memory, mapped while this lives. It cannot become smaller, so that
// every byte of it can be read and written at any time; but the client may
// write to it at any time too. So nothing that is read from it may decide
// which memory is touched. Page-aligned. Thread-safe.
class Region {
 public:
  ~Region();
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;

  std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  friend class RegionTable;
  // Bytes mapped by all regions of a table, which may die before them.
  using Total = std::shared_ptr<std::atomic<int64_t>>;

  Region(std::byte* data, int64_t bytes, Total total)
      : data_(data), bytes_(bytes), total_(std::move(total)) {}

  std::byte* const data_;
  const int64_t bytes_;
  const Total total_;
};

using RegionPtr = std::shared_ptr<const Region>;

// The regions that calls may name. A call that has found one keeps it mapped
// for as long as it runs, whatever happens here. Thread-safe; nothing waits for
// more than a look into a table.
class RegionTable {
 public:
  // Of all regions together, those that calls alone keep included.
  explicit RegionTable(int64_t max_bytes) : max_bytes_(max_bytes) {}
  RegionTable(const RegionTable&) = delete;
  RegionTable& operator=(const RegionTable&) = delete;

  struct Added {
    std::string id;  // kRegionIdBytes at random
    int64_t bytes = 0;
  };

  // Maps all of `memory`, of `most_bytes` at the most, for calls of `tenant`.
  //
  // Errors: InvalidArgument if it is no memfd, or one that could become smaller
  // or cannot be written to; ResourceExhausted if there would be too many
  // bytes, or the system refuses.
  absl::StatusOr<Added> Add(const Descriptor& memory, int tenant,
                            int64_t most_bytes);

  // No call finds it any more.
  void Remove(const std::string& id);

  // Null for ids that are not known or belong to another tenant.
  RegionPtr Find(const std::string& id, int tenant) const;

  // Mapped now.
  int64_t bytes() const { return *total_; }

 private:
  struct Entry {
    RegionPtr region;
    int tenant = 0;
  };

  const int64_t max_bytes_;
  const Region::Total total_ = std::make_shared<std::atomic<int64_t>>(0);
  mutable std::mutex mutex_;
  std::unordered_map<std::string, Entry> regions_;  // guarded by mutex_
};

// The regions that a call may name.
struct CallerRegions {
  const RegionTable* table = nullptr;  // null: none
  int tenant = 0;
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_SHARED_MEMORY_REGION_TABLE_H_
