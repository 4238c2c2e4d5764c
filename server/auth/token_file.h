// The file that says whose tokens are good, and what each tenant may take.
//
//   # SHA-256 of the token, tenant, weight, bytes in flight, work per second
//   9f86d081...0a08 search 2 512MiB 2e12
//   60303ae2...f752 search 2 512MiB 2e12
//   fd61a03a...b1d1 batch
//
// A line per token. The first two words must be there; of the others those that
// are left out, or are "-", have their default (TenantSettings). A tenant may
// have several tokens, so that one can be replaced by another; its lines must
// say the same of it.
#ifndef ATTENTION_SERVER_AUTH_TOKEN_FILE_H_
#define ATTENTION_SERVER_AUTH_TOKEN_FILE_H_

#include <array>
#include <cstddef>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/auth/tenant.h"

namespace attention::server {

using TokenHash = std::array<unsigned char, 32>;  // SHA-256

// Each call is compared with all of them.
inline constexpr size_t kMaxTokens = 4096;
// Each has time series of its own.
inline constexpr size_t kMaxTenants = 1024;

struct TokenFile {
  struct Token {
    TokenHash hash;
    size_t tenant;  // of `tenants`
  };
  std::vector<Token> tokens;            // at least one
  std::vector<TenantSettings> tenants;  // each with a token
};

// Errors: InvalidArgument with the number of the first bad line, what came and
// what was wanted. What may be a token that somebody wrote where its hash
// should stand is not in it.
absl::StatusOr<TokenFile> ParseTokenFile(absl::string_view text);

// The same of the file at `path`; errors begin with "--tokens: PATH: ".
absl::StatusOr<TokenFile> LoadTokenFile(const std::string& path);

TokenHash HashOf(absl::string_view token);

}  // namespace attention::server

#endif  // ATTENTION_SERVER_AUTH_TOKEN_FILE_H_
