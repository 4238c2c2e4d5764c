#include "attention/internal/token_source.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace attention::internal {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class TokenSourceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::path(::testing::TempDir()) /
              absl::StrCat("token_source_test_", getpid());
    std::filesystem::create_directory(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string Path() const { return folder_ / "token"; }
  void Write(const std::string& text) const {
    std::ofstream(Path(), std::ios::binary | std::ios::trunc) << text;
  }

  std::filesystem::path folder_;
};

TEST_F(TokenSourceTest, WhiteSpaceAroundATokenIsNotPartOfIt) {
  for (const char* text : {"abc", "abc\n", " \t\r\nabc\r\n\n", "abc "}) {
    Write(text);
    const auto source = TokenSource::OfFile(Path());
    ASSERT_TRUE(source.ok()) << source.status();
    EXPECT_EQ((*source)->Get(), "abc");
  }
}

TEST_F(TokenSourceTest, WhatIsNotOneTokenIsRefusedUnseen) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "is empty, wanted a token"},
      {" \n", "is empty, wanted a token"},
      {"secret secret", "has white space within the token, wanted one word"},
      {"secret\nsecret\n", "has white space within the token, wanted one word"},
      {"secr\xc3\xa9t", "has characters that are not printable ASCII"},
      {std::string("secret\0x", 8),
       "has characters that are not printable ASCII"},
      {std::string(16 * 1024 + 1, 's'), "is longer than 16384 bytes"},
      {std::string(32 * 1024 + 1, 's'), "is larger than 32768 bytes"},
  };
  for (const auto& [text, error] : cases) {
    Write(text);
    const absl::Status status = TokenSource::OfFile(Path()).status();
    EXPECT_EQ(status, absl::InvalidArgumentError(
                          absl::StrCat("token_file: ", Path(), ": ", error)));
    if (text.empty() || text.size() > 32 * 1024) continue;
    const absl::Status given = TokenSource::Of(text).status();
    EXPECT_EQ(given.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(given.message()), ::testing::StartsWith("token: "));
    EXPECT_THAT(std::string(given.message()), Not(HasSubstr("secr")));
  }
}

TEST_F(TokenSourceTest, FilesThatCannotBeReadAreNamed) {
  EXPECT_EQ(TokenSource::OfFile(Path()).status().message(),
            absl::StrCat("token_file: ", Path(),
                         ": cannot open: No such file or directory"));
  EXPECT_EQ(TokenSource::OfFile(folder_).status().message(),
            absl::StrCat("token_file: ", folder_.string(),
                         ": is a folder, wanted a file"));
}

TEST_F(TokenSourceTest, AReplacedFileIsReadAgainAfterASecond) {
  Write("first");
  const auto source = TokenSource::OfFile(Path());
  ASSERT_TRUE(source.ok()) << source.status();
  const absl::Time read = absl::Now();  // At it or after.
  Write("second");
  EXPECT_EQ((*source)->Get(read + TokenSource::kReadAgainAfter), "second");
  Write("third");
  const absl::Time later = read + TokenSource::kReadAgainAfter;
  EXPECT_EQ((*source)->Get(later + absl::Milliseconds(999)), "second");
  EXPECT_EQ((*source)->Get(later + absl::Seconds(1)), "third");
}

TEST_F(TokenSourceTest, AFileThatWentBadLeavesTheLastToken) {
  Write("first");
  const auto source = TokenSource::OfFile(Path());
  ASSERT_TRUE(source.ok()) << source.status();
  const absl::Time read = absl::Now();
  Write("");
  EXPECT_EQ((*source)->Get(read + absl::Seconds(2)), "first");
  std::filesystem::remove(Path());
  EXPECT_EQ((*source)->Get(read + absl::Seconds(4)), "first");
  Write("second");
  EXPECT_EQ((*source)->Get(read + absl::Seconds(6)), "second");
}

// `--token-file=<(command)`: what it says is gone once it was read.
TEST_F(TokenSourceTest, APipeIsReadOnce) {
  ASSERT_EQ(mkfifo(Path().c_str(), 0600), 0);
  std::thread writer([this] { Write("piped\n"); });
  const auto source = TokenSource::OfFile(Path());
  writer.join();
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_EQ((*source)->Get(absl::Now() + absl::Hours(1)), "piped");
}

TEST_F(TokenSourceTest, ATokenStays) {
  const auto source = TokenSource::Of("a.b-c_d~e+f/g=");
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_EQ((*source)->Get(absl::Now() + absl::Hours(1)), "a.b-c_d~e+f/g=");
}

}  // namespace
}  // namespace attention::internal
