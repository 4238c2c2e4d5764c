#include "server/auth/token_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "tests/support/certificates.h"

namespace attention::server {
namespace {

using ::attention::testing::TestFolder;
using ::testing::HasSubstr;
using ::testing::Not;

std::string HexOf(absl::string_view token) {
  const TokenHash hash = HashOf(token);
  return absl::BytesToHexString(absl::string_view(
      reinterpret_cast<const char*>(hash.data()), hash.size()));
}

std::string ErrorOf(const std::string& text) {
  const auto file = ParseTokenFile(text);
  return file.ok() ? "" : std::string(file.status().message());
}

const std::string kA = HexOf("a"), kB = HexOf("b");

TEST(TokenFileTest, HashesAreThoseOfSha256sum) {
  EXPECT_EQ(HexOf("password"),
            "5e884898da28047151d0e56f8dc6292773603d0d6aabbdd62a11ef721d1542d8");
}

TEST(TokenFileTest, EveryWord) {
  const auto file = ParseTokenFile(absl::StrCat(
      "# All of it.\n\n  ", kA, " search 2.5\t512MiB 2e12 3GiB 40  # words\r\n",
      absl::AsciiStrToUpper(kB), " b.A-t_9\n", HexOf("c"), " batch - - 3\n",
      HexOf("d"), " batch 1 - 3"));
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_EQ(file->tokens.size(), 4u);
  ASSERT_EQ(file->tenants.size(), 3u);
  const size_t tenants[] = {0, 1, 2, 2};
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(file->tokens[i].hash, HashOf(std::string(1, "abcd"[i])));
    EXPECT_EQ(file->tokens[i].tenant, tenants[i]);
  }
  const TenantSettings search{.name = "search",
                              .weight = 2.5,
                              .max_bytes = int64_t{512} << 20,
                              .max_work = 2e12,
                              .max_session_bytes = int64_t{3} << 30,
                              .max_sessions = 40};
  EXPECT_EQ(file->tenants[0], search);
  EXPECT_EQ(file->tenants[1], TenantSettings{.name = "b.A-t_9"});
  const TenantSettings batch{.name = "batch", .max_work = 3};
  EXPECT_EQ(file->tenants[2], batch);
}

TEST(TokenFileTest, BadLinesAreToldByNumber) {
  const auto line = [](const std::string& rest) {
    return ErrorOf(absl::StrCat("# one\n", kA, " good\n", kB, rest));
  };
  EXPECT_EQ(
      line(""),
      "line 3: got 1 words, wanted 2 to 7: SHA-256, tenant, weight, bytes "
      "in flight, work per second, session bytes, sessions");
  EXPECT_EQ(
      line(" t 1 2 3 4 5 6"),
      "line 3: got 8 words, wanted 2 to 7: SHA-256, tenant, weight, bytes "
      "in flight, work per second, session bytes, sessions");
  EXPECT_EQ(line(" t:1"),
            "line 3: tenant: got \"t:1\", wanted 1 to 64 letters, "
            "digits, '.', '_' and '-'");
  EXPECT_THAT(line(" " + std::string(65, 't')), HasSubstr("line 3: tenant: "));
  const std::string weight = "wanted 0 or a number of 0.001 to 1000";
  for (const std::string bad : {"x", "-1", "0.0009", "1001", "nan", "inf"}) {
    EXPECT_EQ(line(" t " + bad),
              absl::StrCat("line 3: weight: got \"", bad, "\", ", weight));
  }
  for (const std::string bad : {"x", "0", "-5", "1TiB", "1.5GiB", "2048TiB"}) {
    EXPECT_EQ(line(" t 1 " + bad),
              absl::StrCat("line 3: bytes in flight: got \"", bad,
                           "\", wanted 1048576 to 1125899906842624, such as "
                           "64MiB or 2GiB"));
  }
  for (const std::string bad : {"x", "0", "-5", "1e19", "nan", "inf", "1G"}) {
    EXPECT_EQ(line(" t 1 - " + bad),
              absl::StrCat("line 3: work per second: got \"", bad,
                           "\", wanted multiply-adds of 1 to 1e18, such as "
                           "2e12"));
  }
  for (const std::string bad : {"x", "-5", "1TiB", "2048TiB"}) {
    EXPECT_EQ(line(" t 1 - - " + bad),
              absl::StrCat("line 3: session bytes: got \"", bad,
                           "\", wanted 0 to 1125899906842624, such as 64MiB "
                           "or 2GiB"));
  }
  for (const std::string bad : {"x", "-5", "1.5"}) {
    EXPECT_EQ(line(" t 1 - - - " + bad),
              absl::StrCat("line 3: sessions: got \"", bad,
                           "\", wanted a number of at least 0"));
  }
}

TEST(TokenFileTest, LinesAgree) {
  EXPECT_EQ(
      ErrorOf(absl::StrCat(kA, " a\n\n", absl::AsciiStrToUpper(kA), " b\n")),
      "line 3: the same token as in line 1");
  EXPECT_EQ(ErrorOf(absl::StrCat(kA, " t 2\n", kB, " t\n")),
            "line 2: tenant \"t\" has other numbers in line 1, wanted the same "
            "in all of its lines");
}

// Such as one that is being written.
TEST(TokenFileTest, AFileWithoutTokensIsRefused) {
  for (const std::string text : {"", "\n", "# none\n"}) {
    EXPECT_EQ(ErrorOf(text), "holds no token, wanted at least one");
  }
}

TEST(TokenFileTest, ATokenInPlaceOfItsHashIsNotTold) {
  for (const std::string& token :
       {std::string("s3cret"), kA + "x", "x" + kA.substr(1)}) {
    const std::string error = ErrorOf(token + " tenant\n");
    EXPECT_EQ(error, absl::StrCat("line 1: the first word has ", token.size(),
                                  " characters, wanted the SHA-256 of a token: "
                                  "64 hexadecimal digits"));
    EXPECT_THAT(error, Not(HasSubstr(token)));
  }
}

TEST(TokenFileTest, IsBounded) {
  std::string text;
  for (size_t i = 0; i < kMaxTokens; ++i) {
    absl::StrAppend(&text, HexOf(absl::StrCat(i)), " t\n");
  }
  EXPECT_EQ(ErrorOf(text), "");
  EXPECT_EQ(ErrorOf(absl::StrCat(text, kA, " t\n")),
            "line 4097: got one token more, wanted 4096 at most");
  text.clear();
  for (size_t i = 0; i <= kMaxTenants; ++i) {
    absl::StrAppend(&text, HexOf(absl::StrCat(i)), " t", i, "\n");
  }
  EXPECT_EQ(ErrorOf(text),
            "line 1025: got one tenant more, wanted 1024 at most");
}

TEST(TokenFileTest, ErrorsNameTheFile) {
  const TestFolder folder;
  const std::string path = folder.Write("tokens", "x");
  EXPECT_EQ(LoadTokenFile(path).status().message(),
            absl::StrCat("--tokens: ", path,
                         ": line 1: the first word has 1 characters, wanted "
                         "the SHA-256 of a token: 64 hexadecimal digits"));
  EXPECT_EQ(LoadTokenFile("/no/tokens").status().message(),
            "--tokens: /no/tokens: cannot be read: No such file or directory");
}

}  // namespace
}  // namespace attention::server
