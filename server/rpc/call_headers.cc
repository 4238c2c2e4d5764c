#include "server/rpc/call_headers.h"

#include <algorithm>
#include <array>
#include <iterator>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "server/admission/refusals.h"
#include "server/logging.h"

namespace attention::server {
namespace {

constexpr char kTraceparent[] = "traceparent";
constexpr char kRequestId[] = "x-request-id";

// Of "version-traceid-parentid-flags", in lower-case hex digits. Versions after
// 00 may add more fields.
constexpr size_t kTraceIdAt = 3, kTraceIdDigits = 32;
constexpr size_t kParentIdAt = 36, kParentIdDigits = 16;
constexpr size_t kTraceparentBytes = 55;
// Of a later version.
constexpr size_t kMaxTraceparentBytes = 128;

absl::string_view View(const grpc::string_ref& text) {
  return {text.data(), text.size()};
}

// The value of a header that comes once and is printable; else empty.
absl::string_view Only(const CallHeaders& headers, const char* name) {
  const auto [first, last] = headers.equal_range(name);
  if (first == last || std::next(first) != last) return {};
  const absl::string_view value = View(first->second);
  return std::all_of(value.begin(), value.end(), absl::ascii_isprint)
             ? value
             : absl::string_view();
}

bool IsHex(absl::string_view text) {
  return text.find_first_not_of("0123456789abcdef") == absl::string_view::npos;
}

bool IsId(absl::string_view text) {
  return IsHex(text) && text.find_first_not_of('0') != absl::string_view::npos;
}

bool IsTraceparent(absl::string_view text) {
  if (text.size() < kTraceparentBytes || text.size() > kMaxTraceparentBytes) {
    return false;
  }
  const absl::string_view version = text.substr(0, 2);
  const absl::string_view flags = text.substr(kTraceparentBytes - 2, 2);
  const std::array<size_t, 3> dashes = {kTraceIdAt - 1, kParentIdAt - 1,
                                        kTraceparentBytes - 3};
  const bool longer = text.size() > kTraceparentBytes;
  return IsHex(version) && version != "ff" && IsHex(flags) &&
         std::all_of(dashes.begin(), dashes.end(),
                     [&](size_t at) { return text[at] == '-'; }) &&
         IsId(text.substr(kTraceIdAt, kTraceIdDigits)) &&
         IsId(text.substr(kParentIdAt, kParentIdDigits)) &&
         (!longer || (version != "00" && text[kTraceparentBytes] == '-'));
}

}  // namespace

int64_t HeaderBytes(const CallHeaders& headers) {
  // Of each header beside its text (RFC 7540, 6.5.2).
  constexpr int64_t kOverhead = 32;
  int64_t bytes = 0;
  for (const auto& [name, value] : headers) {
    bytes += kOverhead + static_cast<int64_t>(name.size() + value.size());
  }
  return bytes;
}

absl::Status CheckHeaders(const CallHeaders& headers, int64_t max_bytes) {
  const int64_t bytes = HeaderBytes(headers);
  const auto count = static_cast<int64_t>(headers.size());
  if (bytes <= max_bytes && count <= kMaxHeaders) return absl::OkStatus();
  return HeadersTooLarge(count, bytes, kMaxHeaders, max_bytes);
}

bool IsOnThisMachine(const grpc::ServerContextBase& context) {
  // Colons of IPv6 are escaped.
  const std::string peer = context.peer();
  const bool here = absl::StartsWith(peer, "unix:") ||
                    absl::StartsWith(peer, "ipv4:127.") ||
                    absl::StartsWith(peer, "ipv6:%5B::1%5D") ||
                    absl::StartsWith(peer, "ipv6:[::1]");
  return here && context.client_metadata().find(kFromElsewhereHeader) ==
                     context.client_metadata().end();
}

absl::Status FromElsewhere() {
  return absl::PermissionDeniedError(
      "memory is shared with callers on the server's own machine only");
}

CallerIds::CallerIds(const CallHeaders& headers) {
  const absl::string_view traceparent = Only(headers, kTraceparent);
  if (IsTraceparent(traceparent)) traceparent_ = std::string(traceparent);
  const absl::string_view request_id = Only(headers, kRequestId);
  if (request_id.size() <= kMaxRequestIdBytes) {
    request_id_ = std::string(request_id);
  }
}

std::string CallerIds::LogText() const {
  std::string text;
  if (!traceparent_.empty()) {
    const absl::string_view all = traceparent_;
    absl::StrAppend(&text, " trace_id=", all.substr(kTraceIdAt, kTraceIdDigits),
                    " parent_id=", all.substr(kParentIdAt, kParentIdDigits));
  }
  if (!request_id_.empty()) {
    absl::StrAppend(&text, " request_id=", Quoted(request_id_));
  }
  return text;
}

std::vector<std::pair<std::string, std::string>> CallerIds::Trailers() const {
  std::vector<std::pair<std::string, std::string>> trailers;
  if (!traceparent_.empty()) trailers.emplace_back(kTraceparent, traceparent_);
  if (!request_id_.empty()) trailers.emplace_back(kRequestId, request_id_);
  return trailers;
}

}  // namespace attention::server
