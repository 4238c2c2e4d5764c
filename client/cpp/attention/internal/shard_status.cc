#include "attention/internal/shard_status.h"

#include <google/protobuf/message_lite.h>

#include <algorithm>
#include <cstddef>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "attention/details/v1/details.pb.h"
#include "attention/sharded_session.h"
#include "attention/status.h"
#include "base/field_error.h"

namespace attention {
namespace internal {
namespace {

// Ranges of tokens that a text names; the details have all.
constexpr size_t kRangesInText = 8;

constexpr char kErrorInfo[] = "type.googleapis.com/google.rpc.ErrorInfo";
constexpr char kBadRequest[] = "type.googleapis.com/google.rpc.BadRequest";
constexpr char kMissing[] = "missing";

void SetDetail(absl::Status& status, const char* url,
               const google::protobuf::MessageLite& detail) {
  const std::string bytes = detail.SerializeAsString();
  status.SetPayload(url, absl::Cord(absl::string_view(bytes)));
}

std::string JoinRanges(const std::vector<TokenRange>& ranges) {
  return absl::StrJoin(ranges, ",", [](std::string* out, TokenRange range) {
    absl::StrAppend(out, range.begin, "-", range.end);
  });
}

std::string SayRanges(const std::vector<TokenRange>& ranges) {
  const size_t said = std::min(ranges.size(), kRangesInText);
  std::string text = absl::StrJoin(
      ranges.begin(), ranges.begin() + static_cast<std::ptrdiff_t>(said), ", ",
      [](std::string* out, TokenRange range) {
        absl::StrAppend(out, "[", range.begin, ", ", range.end, ")");
      });
  if (said < ranges.size()) {
    absl::StrAppend(&text, " and ", ranges.size() - said, " ranges more");
  }
  return text;
}

}  // namespace

absl::Status WithReason(absl::Status status, const std::string& reason,
                        const std::string& key, const std::string& value) {
  details::v1::ErrorInfo info;
  info.set_reason(reason);
  info.set_domain("attention");
  if (!key.empty()) (*info.mutable_metadata())[key] = value;
  SetDetail(status, kErrorInfo, info);
  return status;
}

absl::Status Detailed(absl::Status status) {
  const std::string field = ErrorField(status);
  if (field.empty()) return status;
  details::v1::BadRequest request;
  auto* const violation = request.add_field_violations();
  violation->set_field(field);
  violation->set_description(std::string(status.message()));
  SetDetail(status, kBadRequest, request);
  return WithReason(std::move(status), "INVALID_FIELD");
}

absl::Status WrongField(absl::string_view field, absl::string_view what) {
  return Detailed(FieldError(field, what));
}

absl::Status OfShard(int64_t shard, const absl::Status& status,
                     absl::string_view then) {
  absl::Status changed(status.code(), absl::StrCat("shard ", shard, ": ",
                                                   status.message(), then));
  status.ForEachPayload([&](absl::string_view url, const absl::Cord& bytes) {
    changed.SetPayload(url, bytes);
  });
  return changed;
}

absl::Status UnknownLayer(int64_t layer, size_t layers) {
  return WithReason(absl::OutOfRangeError(absl::StrCat(
                        "layer: got ", layer, ", wanted one below ", layers)),
                    "LAYER_UNKNOWN");
}

absl::Status LengthConflictOf(const std::string& what, int64_t length) {
  return WithReason(absl::AbortedError(what), "LENGTH_CONFLICT", "length",
                    absl::StrCat(length));
}

absl::Status ShardLost(int64_t layer, const std::vector<TokenRange>& missing,
                       const absl::Status& why) {
  return WithReason(absl::UnavailableError(absl::StrCat(
                        "layer ", layer, ": tokens ", SayRanges(missing),
                        " are missing: ", why.message())),
                    "SHARD_LOST", kMissing, JoinRanges(missing));
}

}  // namespace internal

std::vector<TokenRange> MissingTokens(const absl::Status& status) {
  std::vector<TokenRange> ranges;
  if (ErrorReason(status) != "SHARD_LOST") return ranges;
  details::v1::ErrorInfo info;
  if (!info.ParseFromString(
          std::string(*status.GetPayload(internal::kErrorInfo)))) {
    return ranges;
  }
  const std::string& missing = (*info.mutable_metadata())[internal::kMissing];
  for (absl::string_view text :
       absl::StrSplit(missing, ',', absl::SkipEmpty())) {
    const std::pair<absl::string_view, absl::string_view> ends =
        absl::StrSplit(text, absl::MaxSplits('-', 1));
    TokenRange range;
    if (absl::SimpleAtoi(ends.first, &range.begin) &&
        absl::SimpleAtoi(ends.second, &range.end)) {
      ranges.push_back(range);
    }
  }
  return ranges;
}

}  // namespace attention
