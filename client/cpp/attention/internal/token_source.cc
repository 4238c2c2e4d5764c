#include "attention/internal/token_source.h"

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "attention/internal/small_file.h"

namespace attention::internal {
namespace {

// Longer than any token, and short enough for a header.
constexpr size_t kLongestToken = 16 << 10;

absl::Status Wrong(absl::string_view what) {
  return absl::InvalidArgumentError(what);
}

// Whether it can stand in a header as one word.
absl::Status CheckToken(absl::string_view token) {
  if (token.empty()) return Wrong("is empty, wanted a token");
  if (token.size() > kLongestToken) {
    return Wrong(absl::StrCat("is longer than ", kLongestToken, " bytes"));
  }
  if (std::any_of(token.begin(), token.end(), absl::ascii_isspace)) {
    return Wrong("has white space within the token, wanted one word");
  }
  if (!std::all_of(token.begin(), token.end(), absl::ascii_isgraph)) {
    return Wrong("has characters that are not printable ASCII");
  }
  return absl::OkStatus();
}

// The token in the file; an error names the file.
absl::StatusOr<std::string> ReadToken(const std::string& path) {
  // Twice the room, for white space.
  absl::StatusOr<std::string> text = ReadSmallFile(path, 2 * kLongestToken);
  if (!text.ok()) return text;
  absl::StripAsciiWhitespace(&*text);
  if (absl::Status status = CheckToken(*text); !status.ok()) {
    return Wrong(absl::StrCat(path, ": ", status.message()));
  }
  return text;
}

}  // namespace

TokenSource::TokenSource(std::string path, std::string token)
    : path_(std::move(path)), token_(std::move(token)), read_at_(absl::Now()) {}

absl::StatusOr<std::shared_ptr<TokenSource>> TokenSource::Of(
    std::string token) {
  if (absl::Status status = CheckToken(token); !status.ok()) {
    return Wrong(absl::StrCat("token: ", status.message()));
  }
  return std::shared_ptr<TokenSource>(new TokenSource("", std::move(token)));
}

absl::StatusOr<std::shared_ptr<TokenSource>> TokenSource::OfFile(
    const std::string& path) {
  std::error_code ignored;
  const bool stays = !std::filesystem::is_regular_file(path, ignored);
  absl::StatusOr<std::string> token = ReadToken(path);
  if (!token.ok()) {
    return Wrong(absl::StrCat("token_file: ", token.status().message()));
  }
  return std::shared_ptr<TokenSource>(
      new TokenSource(stays ? "" : path, *std::move(token)));
}

std::string TokenSource::Get(absl::Time now) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!path_.empty() && now - read_at_ >= kReadAgainAfter) {
    read_at_ = now;
    if (absl::StatusOr<std::string> token = ReadToken(path_); token.ok()) {
      token_ = *std::move(token);
    }
  }
  return token_;
}

}  // namespace attention::internal
