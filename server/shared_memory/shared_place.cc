#include "server/shared_memory/shared_place.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/field_error.h"
#include "server/status.h"

namespace attention::server {

absl::StatusOr<SharedPlace> FindPlace(absl::string_view path,
                                      const wire::SharedMemoryFields& memory,
                                      const CallerRegions& regions) {
  const std::string field = absl::StrCat(path, ".region");
  wire::SliceReader reader = memory.region;
  if (reader.remaining() != kRegionIdBytes) {
    return FieldError(
        field, absl::StrCat("got ", reader.remaining(), " bytes, wanted the ",
                            kRegionIdBytes, " of a region's id"));
  }
  SharedPlace place;
  place.id.resize(kRegionIdBytes);
  reader.ReadBytes(place.id.data(), place.id.size());
  place.offset = memory.offset;
  if (regions.table != nullptr) {
    place.region = regions.table->Find(place.id, regions.tenant);
  }
  if (place.region == nullptr) return UnknownRegion(field);
  return place;
}

absl::Status CheckPlace(absl::string_view path, const SharedPlace& place,
                        int64_t bytes, DataType type) {
  const auto size = static_cast<int64_t>(SizeOf(type));
  const int64_t room = place.region->bytes() - bytes;
  if (place.offset >= 0 && place.offset <= room && place.offset % size == 0) {
    return absl::OkStatus();
  }
  const std::string field = absl::StrCat(path, ".offset");
  if (room < 0) {
    return FieldError(field,
                      absl::StrCat("got a region of ", place.region->bytes(),
                                   " bytes, wanted at least the ", bytes,
                                   " of the elements"));
  }
  return FieldError(
      field,
      absl::StrCat("got ", place.offset, ", wanted 0 to ", room,
                   " and a multiple of ", size, " for ", bytes, " bytes of ",
                   Name(type), " in a region of ", place.region->bytes()));
}

}  // namespace attention::server
