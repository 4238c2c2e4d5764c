#include "attention/internal/stream_status.h"

#include <string>

#include "absl/strings/cord.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "absl/types/optional.h"
#include "attention/details/v1/details.pb.h"

namespace attention::internal {
namespace {

constexpr char kBadRequest[] = "type.googleapis.com/google.rpc.BadRequest";

std::string Renamed(absl::string_view text) {
  if (!absl::ConsumePrefix(&text, "header.")) {
    absl::ConsumePrefix(&text, "chunk.");
  }
  return std::string(text);
}

}  // namespace

absl::Status NamedAsInRequest(const absl::Status& status) {
  details::v1::BadRequest detail;
  const absl::optional<absl::Cord> payload = status.GetPayload(kBadRequest);
  if (!payload || !detail.ParseFromString(std::string(*payload))) return status;
  absl::Status renamed(status.code(), Renamed(status.message()));
  status.ForEachPayload([&](absl::string_view url, const absl::Cord& bytes) {
    renamed.SetPayload(url, bytes);
  });
  for (auto& violation : *detail.mutable_field_violations()) {
    violation.set_field(Renamed(violation.field()));
  }
  renamed.SetPayload(kBadRequest, absl::Cord(detail.SerializeAsString()));
  return renamed;
}

}  // namespace attention::internal
