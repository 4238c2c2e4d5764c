// Where the token of a call comes from.
#ifndef ATTENTION_INTERNAL_TOKEN_SOURCE_H_
#define ATTENTION_INTERNAL_TOKEN_SOURCE_H_

#include <memory>
#include <mutex>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace attention::internal {

// A token that stays, or that of a file, which may be replaced while calls are
// made. No error and no text of this class holds a token. Thread-safe.
class TokenSource {
 public:
  // For how long what a file said is used without looking again: one read per
  // second costs a thousand calls nothing.
  static constexpr absl::Duration kReadAgainAfter = absl::Seconds(1);

  // INVALID_ARGUMENT, "token: ...", if `token` cannot be sent.
  static absl::StatusOr<std::shared_ptr<TokenSource>> Of(std::string token);

  // Reads `path` at once. INVALID_ARGUMENT, "token_file: PATH: ...", if it
  // cannot be read or does not hold one token, with white space around it or
  // not. What is not a regular file (a pipe) is read this once only.
  static absl::StatusOr<std::shared_ptr<TokenSource>> OfFile(
      const std::string& path);

  // The token at `now`. A file that cannot be read any more, or holds no token,
  // leaves the last one in use, as it may be half written: the server tells
  // once that one has run out.
  std::string Get(absl::Time now = absl::Now());

 private:
  TokenSource(std::string path, std::string token);

  const std::string path_;  // Empty: the token stays.
  std::mutex mutex_;        // Guards the rest.
  std::string token_;
  absl::Time read_at_;
};

}  // namespace attention::internal

#endif  // ATTENTION_INTERNAL_TOKEN_SOURCE_H_
