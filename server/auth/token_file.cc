#include "server/auth/token_file.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "server/auth/read_file.h"
#include "server/parse_bytes.h"

namespace attention::server {
namespace {

constexpr size_t kMaxWords = 7;
constexpr size_t kMaxName = 64;
constexpr double kLeastWeight = 0.001, kMostWeight = 1000;
// A call takes 128 KiB while it waits. The most is that of max_inflight_bytes.
constexpr int64_t kLeastBytes = int64_t{1} << 20, kMostBytes = int64_t{1} << 50;
constexpr double kMostWork = 1e18;

absl::Status Wrong(absl::string_view what, absl::string_view got,
                   absl::string_view wanted) {
  // A word may be as long as the file.
  return absl::InvalidArgumentError(
      absl::StrCat(what, ": got \"", absl::CHexEscape(got.substr(0, 80)),
                   "\", wanted ", wanted));
}

// Nothing if `word` is not a hash in hexadecimal.
std::optional<TokenHash> ParseHash(absl::string_view word) {
  TokenHash hash;
  if (word.size() != 2 * hash.size() ||
      !std::all_of(word.begin(), word.end(),
                   [](char c) { return absl::ascii_isxdigit(c); }) ||
      // Abseil's functions for this differ between its versions.
      !OPENSSL_hexstr2buf_ex(hash.data(), hash.size(), nullptr,
                             std::string(word).c_str(), '\0')) {
    return std::nullopt;
  }
  return hash;
}

bool IsName(absl::string_view word) {
  return word.size() <= kMaxName &&
         std::all_of(word.begin(), word.end(), [](char c) {
           return absl::ascii_isalnum(c) || c == '.' || c == '_' || c == '-';
         });
}

// The settings after a hash: a name, and up to five numbers.
absl::StatusOr<TenantSettings> ParseTenant(
    const std::vector<absl::string_view>& words) {
  TenantSettings tenant;
  if (!IsName(words[1])) {
    return Wrong(
        "tenant", words[1],
        absl::StrCat("1 to ", kMaxName, " letters, digits, '.', '_' and '-'"));
  }
  tenant.name = std::string(words[1]);
  const auto given = [&](size_t i) {
    return i < words.size() && words[i] != "-";
  };
  if (given(2) && !(absl::SimpleAtod(words[2], &tenant.weight) &&
                    (tenant.weight == 0 || (tenant.weight >= kLeastWeight &&
                                            tenant.weight <= kMostWeight)))) {
    return Wrong("weight", words[2], "0 or a number of 0.001 to 1000");
  }
  if (given(3) &&
      !(ParseBytes(words[3], &tenant.max_bytes) &&
        tenant.max_bytes >= kLeastBytes && tenant.max_bytes <= kMostBytes)) {
    return Wrong("bytes in flight", words[3],
                 "1048576 to 1125899906842624, such as 64MiB or 2GiB");
  }
  if (given(4) && !(absl::SimpleAtod(words[4], &tenant.max_work) &&
                    tenant.max_work >= 1 && tenant.max_work <= kMostWork)) {
    return Wrong("work per second", words[4],
                 "multiply-adds of 1 to 1e18, such as 2e12");
  }
  if (given(5) && !(ParseBytes(words[5], &tenant.max_session_bytes) &&
                    tenant.max_session_bytes >= 0 &&
                    tenant.max_session_bytes <= kMostBytes)) {
    return Wrong("session bytes", words[5],
                 "0 to 1125899906842624, such as 64MiB or 2GiB");
  }
  if (given(6) && !(absl::SimpleAtoi(words[6], &tenant.max_sessions) &&
                    tenant.max_sessions >= 0)) {
    return Wrong("sessions", words[6], "a number of at least 0");
  }
  return tenant;
}

class Parser {
 public:
  // A line without its comment.
  absl::Status Add(absl::string_view line, int number) {
    const std::vector<absl::string_view> words =
        absl::StrSplit(line, absl::ByAnyChar(" \t\r"), absl::SkipEmpty());
    if (words.empty()) return absl::OkStatus();
    const std::optional<TokenHash> hash = ParseHash(words[0]);
    if (!hash) {
      return absl::InvalidArgumentError(absl::StrCat(
          "the first word has ", words[0].size(),
          " characters, wanted the SHA-256 of a token: 64 hexadecimal "
          "digits"));
    }
    if (words.size() < 2 || words.size() > kMaxWords) {
      return absl::InvalidArgumentError(
          absl::StrCat("got ", words.size(), " words, wanted 2 to ", kMaxWords,
                       ": SHA-256, tenant, weight, bytes in flight, work per "
                       "second, session bytes, sessions"));
    }
    auto tenant = ParseTenant(words);
    if (!tenant.ok()) return tenant.status();
    const auto [same, is_new] = lines_.try_emplace(*hash, number);
    if (!is_new) {
      return absl::InvalidArgumentError(
          absl::StrCat("the same token as in line ", same->second));
    }
    return Add(*hash, *std::move(tenant), number);
  }

  TokenFile Result() && { return std::move(file_); }

 private:
  absl::Status Add(const TokenHash& hash, TenantSettings tenant, int number) {
    const auto [known, is_new] =
        tenants_.try_emplace(tenant.name, file_.tenants.size(), number);
    const auto [index, line] = known->second;
    if (!is_new && file_.tenants[index] != tenant) {
      return absl::InvalidArgumentError(absl::StrCat(
          "tenant \"", tenant.name, "\" has other numbers in line ", line,
          ", wanted the same in all of its lines"));
    }
    if (is_new) file_.tenants.push_back(std::move(tenant));
    file_.tokens.push_back({hash, index});
    if (file_.tokens.size() > kMaxTokens) {
      return absl::InvalidArgumentError(
          absl::StrCat("got one token more, wanted ", kMaxTokens, " at most"));
    }
    if (file_.tenants.size() > kMaxTenants) {
      return absl::InvalidArgumentError(absl::StrCat(
          "got one tenant more, wanted ", kMaxTenants, " at most"));
    }
    return absl::OkStatus();
  }

  TokenFile file_;
  std::map<TokenHash, int> lines_;  // by hash
  // By name: the index, and the line that had it first.
  std::map<std::string, std::pair<size_t, int>> tenants_;
};

}  // namespace

absl::StatusOr<TokenFile> ParseTokenFile(absl::string_view text) {
  Parser parser;
  int number = 0;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    ++number;
    const absl::Status status =
        parser.Add(line.substr(0, line.find('#')), number);
    if (!status.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("line ", number, ": ", status.message()));
    }
  }
  TokenFile file = std::move(parser).Result();
  if (file.tokens.empty()) {
    return absl::InvalidArgumentError("holds no token, wanted at least one");
  }
  return file;
}

absl::StatusOr<TokenFile> LoadTokenFile(const std::string& path) {
  const absl::StatusOr<std::string> text = ReadSmallFile(path);
  absl::StatusOr<TokenFile> file =
      text.ok() ? ParseTokenFile(*text) : text.status();
  if (file.ok()) return file;
  return absl::InvalidArgumentError(
      absl::StrCat("--tokens: ", path, ": ", file.status().message()));
}

TokenHash HashOf(absl::string_view token) {
  TokenHash hash;
  SHA256(reinterpret_cast<const unsigned char*>(token.data()), token.size(),
         hash.data());
  return hash;
}

}  // namespace attention::server
