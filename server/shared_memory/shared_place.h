// Where a tensor lies in memory that a client shares.
#ifndef ATTENTION_SERVER_SHARED_MEMORY_SHARED_PLACE_H_
#define ATTENTION_SERVER_SHARED_MEMORY_SHARED_PLACE_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernel/data_type.h"
#include "server/shared_memory/region_table.h"
#include "wire/tensor_fields.h"

namespace attention::server {

struct SharedPlace {
  // Keeps the memory mapped; null: no place.
  RegionPtr region;
  std::string id;
  int64_t offset = 0;

  std::byte* data() const { return region->data() + offset; }
};

// The place that the SharedMemory field `path` names. Its offset is not checked
// yet. Errors: InvalidArgument, NotFound (kRegionUnknown).
absl::StatusOr<SharedPlace> FindPlace(absl::string_view path,
                                      const wire::SharedMemoryFields& memory,
                                      const CallerRegions& regions);

// Whether `bytes` bytes of elements of `type` may lie there. Errors:
// InvalidArgument.
absl::Status CheckPlace(absl::string_view path, const SharedPlace& place,
                        int64_t bytes, DataType type);

}  // namespace attention::server

#endif  // ATTENTION_SERVER_SHARED_MEMORY_SHARED_PLACE_H_
