#include "client/cpp/cli/report.h"

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/time.h"
#include "attention/status.h"

namespace attention::cli {

ExitCode ExitCodeOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return kSuccess;
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDeadlineExceeded:
    case absl::StatusCode::kCancelled:
      return kNoAnswer;
    case absl::StatusCode::kFailedPrecondition:
      // Of the client itself, whose flags are wrong, without a reason; or of
      // the server, about what a session holds (TOKENS_RELEASED).
      return ErrorReason(status).empty() ? kBadInput : kRefused;
    default:
      return kRefused;
  }
}

std::string Describe(const absl::Status& status) {
  std::vector<std::string> parts;
  for (const FieldViolation& violation : FieldViolations(status)) {
    parts.push_back(absl::StrCat(violation.field, ": ", violation.description));
  }
  if (parts.empty()) parts.emplace_back(status.message());
  std::string text = absl::StrCat(absl::StatusCodeToString(status.code()), ": ",
                                  absl::StrJoin(parts, "; "));
  std::vector<std::string> hints;
  // Not what the line says already.
  if (std::string reason = ErrorReason(status);
      !reason.empty() && reason != "INVALID_FIELD" &&
      reason != absl::StatusCodeToString(status.code())) {
    hints.push_back(std::move(reason));
  }
  if (const std::optional<absl::Duration> delay = RetryDelay(status)) {
    hints.push_back(
        absl::StrCat("try again in ", absl::FormatDuration(*delay)));
  }
  if (!hints.empty()) {
    absl::StrAppend(&text, " (", absl::StrJoin(hints, ", "), ")");
  }
  return OneLine(std::move(text));
}

ExitCode BadInput(const absl::Status& status, std::ostream& err) {
  err << "attention_client: " << OneLine(std::string(status.message())) << "\n";
  return kBadInput;
}

std::string OneLine(std::string text) {
  for (char& c : text) {
    if (absl::ascii_iscntrl(c)) c = ' ';
  }
  absl::StripTrailingAsciiWhitespace(&text);
  return text;
}

}  // namespace attention::cli
