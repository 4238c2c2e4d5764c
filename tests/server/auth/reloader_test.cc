#include "server/auth/reloader.h"

#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <string>

#include "tests/support/certificates.h"
#include "tests/support/test_server.h"

namespace attention::server {
namespace {

using ::attention::testing::TestFolder;
using ::attention::testing::WaitUntil;

class FileChangesTest : public ::testing::Test {
 protected:
  const TestFolder folder_;
  const std::string first_ = folder_.Write("first", "1");
  const std::string second_ = folder_.Write("second", "2");
  FileChanges changes_{{first_, second_}};
};

TEST_F(FileChangesTest, WhatIsThereIsNoChange) {
  EXPECT_FALSE(changes_.Look());
  EXPECT_FALSE(changes_.Look());
}

TEST_F(FileChangesTest, AChangeIsToldOnceItIsOver) {
  folder_.Write("second", "3");
  EXPECT_FALSE(changes_.Look());
  EXPECT_TRUE(changes_.Look());
  EXPECT_FALSE(changes_.Look());
}

TEST_F(FileChangesTest, AFileThatIsBeingWrittenIsLetFinish) {
  std::ofstream file(first_, std::ios::app);
  for (int i = 0; i < 3; ++i) {
    file << "more" << std::flush;
    EXPECT_FALSE(changes_.Look());
  }
  EXPECT_TRUE(changes_.Look());
}

TEST_F(FileChangesTest, OneAfterTheOtherIsOneChange) {
  folder_.Write("first", "3");
  EXPECT_FALSE(changes_.Look());
  folder_.Write("second", "4");
  EXPECT_FALSE(changes_.Look());
  EXPECT_TRUE(changes_.Look());
  EXPECT_FALSE(changes_.Look());
}

TEST_F(FileChangesTest, AFileThatGoesAndComesBack) {
  std::filesystem::remove(first_);
  EXPECT_FALSE(changes_.Look());
  EXPECT_TRUE(changes_.Look());
  folder_.Write("first", "1");
  EXPECT_FALSE(changes_.Look());
  EXPECT_TRUE(changes_.Look());
}

// As secrets of Kubernetes change: the path is a link whose target is replaced.
TEST_F(FileChangesTest, LinksAreFollowed) {
  const std::string link = folder_.Path("link");
  std::filesystem::create_symlink(first_, link);
  FileChanges changes({link});
  folder_.Write("first", "3");
  EXPECT_FALSE(changes.Look());
  EXPECT_TRUE(changes.Look());
}

TEST(ReloaderTest, CallsForTheFilesThatChanged) {
  const TestFolder folder;
  std::atomic<int> first{0}, second{0};
  Reloader reloader(absl::Milliseconds(1));
  reloader.Watch({folder.Write("first", "1")}, [&] { return ++first > 0; });
  reloader.Watch({folder.Write("second", "2")}, [&] { return ++second > 0; });
  reloader.Start();
  folder.Write("second", "3");
  EXPECT_TRUE(WaitUntil([&] { return second == 1; }));
  folder.Write("first", "4");
  EXPECT_TRUE(WaitUntil([&] { return first == 1; }));
  EXPECT_EQ(second, 1);
}

TEST(ReloaderTest, TriesAgainWhatFailed) {
  const TestFolder folder;
  std::atomic<int> tries{0};
  Reloader reloader(absl::Milliseconds(1));
  reloader.Watch({folder.Write("file", "1")}, [&] { return ++tries >= 3; });
  reloader.Start();
  folder.Write("file", "2");
  EXPECT_TRUE(WaitUntil([&] { return tries == 3; }));
  folder.Write("file", "3");
  EXPECT_TRUE(WaitUntil([&] { return tries == 4; }));
}

TEST(ReloaderTest, EndsAtOnceHoweverLongItsInterval) {
  const TestFolder folder;
  Reloader reloader(absl::Hours(1));
  reloader.Watch({folder.Write("file", "1")}, [] {
    ADD_FAILURE();
    return true;
  });
  reloader.Start();
}

}  // namespace
}  // namespace attention::server
