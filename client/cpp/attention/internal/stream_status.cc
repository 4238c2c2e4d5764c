#include "attention/internal/stream_status.h"

#include <string>

#include "absl/strings/cord.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "absl/types/optional.h"
#include "attention/details/v1/details.pb.h"

namespace attention::internal {
namespace {

constexpr char kBadRequest[] = "type.googleapis.com/google.rpc.BadRequest";

// Elements are counted within the chunk: their numbers would mislead.
std::string WithoutElement(absl::string_view text) {
  constexpr absl::string_view kElement = " at element ";
  const size_t begin = text.find(kElement);
  if (begin == absl::string_view::npos) return std::string(text);
  const size_t end =
      text.find_first_not_of("0123456789", begin + kElement.size());
  return absl::StrCat(text.substr(0, begin),
                      end == absl::string_view::npos ? "" : text.substr(end));
}

std::string Renamed(absl::string_view text) {
  if (absl::ConsumePrefix(&text, "chunk.")) return WithoutElement(text);
  absl::ConsumePrefix(&text, "header.");
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
    if (absl::StartsWith(violation.field(), "chunk.")) {
      violation.set_description(WithoutElement(violation.description()));
    }
    violation.set_field(Renamed(violation.field()));
  }
  const std::string bytes = detail.SerializeAsString();
  renamed.SetPayload(kBadRequest, absl::Cord(absl::string_view(bytes)));
  return renamed;
}

}  // namespace attention::internal
