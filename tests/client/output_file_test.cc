#include "client/cpp/cli/output_file.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"

namespace attention::cli {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Each test twice: with a temporary file that has no name, where the file
// system of the test can do that, and with one that has.
class OutputFileTest : public ::testing::TestWithParam<bool> {
 protected:
  OutputFileTest()
      : folder_(
            absl::StrCat(::testing::TempDir(), "/output_file_", ::getpid())) {
    fs::create_directories(folder_);
  }
  ~OutputFileTest() override { fs::remove_all(folder_); }

  std::string Path(const std::string& name) const {
    return absl::StrCat(folder_, "/", name);
  }
  std::string Contents(const std::string& name) const {
    std::ostringstream text;
    text << std::ifstream(Path(name)).rdbuf();
    return text.str();
  }
  std::set<std::string> Files() const {
    std::set<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder_)) {
      names.insert(entry.path().filename());
    }
    return names;
  }
  int Mode(const std::string& name) const {
    struct stat found = {};
    EXPECT_EQ(::stat(Path(name).c_str(), &found), 0);
    return found.st_mode & 0777;
  }
  absl::StatusOr<OutputFile> Create(const std::string& name) const {
    absl::StatusOr<OutputPlace> place = FindPlace(Path(name));
    if (!place.ok()) return place.status();
    return OutputFile::Create(*place, GetParam());
  }
  absl::Status Write(const std::string& name, const std::string& text) const {
    absl::StatusOr<OutputFile> file = Create(name);
    if (!file.ok()) return file.status();
    file->stream() << text;
    absl::Status status = file->Finish();
    return status.ok() ? file->Commit() : status;
  }

  const std::string folder_;
};

INSTANTIATE_TEST_SUITE_P(Unnamed, OutputFileTest, ::testing::Bool());

TEST_P(OutputFileTest, NewAndOldFiles) {
  EXPECT_TRUE(Write("x", "new").ok());
  EXPECT_EQ(Contents("x"), "new");
  EXPECT_TRUE(Write("x", "newer").ok());
  EXPECT_EQ(Contents("x"), "newer");
  EXPECT_THAT(Files(), ElementsAre("x"));
}

TEST_P(OutputFileTest, NothingChangesBeforeCommit) {
  std::ofstream(Path("x")) << "old";
  {
    absl::StatusOr<OutputFile> file = Create("x");
    ASSERT_TRUE(file.ok()) << file.status();
    file->stream() << "new";
    ASSERT_TRUE(file->Finish().ok());
    EXPECT_EQ(Contents("x"), "old");
  }
  EXPECT_EQ(Contents("x"), "old");
  EXPECT_THAT(Files(), ElementsAre("x"));
}

// A process that is killed while it writes has made no name.
TEST_P(OutputFileTest, HasNoNameWhereItNeedsNone) {
  const Descriptor probe(::open(folder_.c_str(), O_TMPFILE | O_WRONLY, 0600));
  if (!GetParam() || !probe.valid()) GTEST_SKIP() << "files have names here";
  absl::StatusOr<OutputFile> file = Create("x");
  ASSERT_TRUE(file.ok()) << file.status();
  file->stream() << "new" << std::flush;
  EXPECT_THAT(Files(), ElementsAre());
  ASSERT_TRUE(file->Finish().ok());
  EXPECT_THAT(Files(), ElementsAre());
}

// Whoever has the old file open goes on reading the old one.
TEST_P(OutputFileTest, ReplacesInsteadOfOverwriting) {
  std::ofstream(Path("x")) << "old";
  std::ifstream open(Path("x"));
  ASSERT_TRUE(Write("x", "newer").ok());
  std::string text;
  open >> text;
  EXPECT_EQ(text, "old");
}

TEST_P(OutputFileTest, PermissionsStay) {
  for (const int mode : {0600, 0640, 0666, 0755}) {
    std::ofstream(Path("x")) << "old";
    ASSERT_EQ(::chmod(Path("x").c_str(), mode), 0);
    ASSERT_TRUE(Write("x", "new").ok());
    EXPECT_EQ(Mode("x"), mode);
  }
}

TEST_P(OutputFileTest, NewFilesHaveWhatTheUmaskLeaves) {
  const mode_t before = ::umask(027);
  EXPECT_TRUE(Write("x", "new").ok());
  ::umask(before);
  EXPECT_EQ(Mode("x"), 0640);
}

TEST_P(OutputFileTest, LinksStay) {
  fs::create_directory(Path("there"));
  std::ofstream(Path("there/x")) << "old";
  fs::create_symlink("there/x", Path("link"));
  fs::create_symlink("link", Path("link to link"));
  fs::create_symlink("there/none", Path("dangling"));
  EXPECT_TRUE(Write("link to link", "new").ok());
  EXPECT_EQ(Contents("there/x"), "new");
  EXPECT_TRUE(Write("dangling", "made").ok());
  EXPECT_EQ(Contents("there/none"), "made");
  for (const char* name : {"link", "link to link", "dangling"}) {
    EXPECT_TRUE(fs::is_symlink(Path(name))) << name;
  }
  EXPECT_FALSE(fs::is_symlink(Path("there/x")));
}

TEST_P(OutputFileTest, PipesAreWrittenTo) {
  ASSERT_EQ(::mkfifo(Path("x").c_str(), 0600), 0);
  // Does not wait for somebody to read.
  EXPECT_TRUE(OutputFile::Check(*FindPlace(Path("x"))).ok());
  std::string read;
  std::thread reader([&] { read = Contents("x"); });
  EXPECT_TRUE(Write("x", "through").ok());
  reader.join();
  EXPECT_EQ(read, "through");
  EXPECT_TRUE(fs::is_fifo(Path("x")));
}

TEST_P(OutputFileTest, WhatIsOpenAlreadyIsWrittenTo) {
  std::ofstream(Path("x")) << "old";
  std::ifstream open(Path("x"));
  const Descriptor file(::open(Path("x").c_str(), O_RDWR));
  fs::create_symlink(absl::StrCat("/proc/self/fd/", file.get()), Path("link"));
  EXPECT_TRUE(Write("link", "new").ok());
  std::string text;
  open >> text;
  EXPECT_EQ(text, "new");
}

TEST_P(OutputFileTest, FullDevices) {
  fs::create_symlink("/dev/full", Path("x"));
  EXPECT_THAT(std::string(Write("x", "new").message()),
              HasSubstr("cannot write: No space left on device"));
}

// As a full disk does, the limit makes a write fail.
TEST_P(OutputFileTest, NothingIsLeftOfWhatFails) {
  std::ofstream(Path("x")) << "old";
  rlimit before = {};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit small = before;
  small.rlim_cur = 1000;
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const absl::Status status = Write("x", std::string(100'000, 'x'));
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  std::signal(SIGXFSZ, handler);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("cannot write: File too large"));
  EXPECT_EQ(Contents("x"), "old");
  EXPECT_THAT(Files(), ElementsAre("x"));
}

TEST_P(OutputFileTest, CheckLeavesNothingBehind) {
  std::ofstream(Path("x")) << "old";
  EXPECT_TRUE(OutputFile::Check(*FindPlace(Path("x"))).ok());
  EXPECT_TRUE(OutputFile::Check(*FindPlace(Path("y"))).ok());
  EXPECT_EQ(Contents("x"), "old");
  EXPECT_THAT(Files(), ElementsAre("x"));
}

TEST_P(OutputFileTest, FoldersThatCannotBeWrittenTo) {
  EXPECT_THAT(std::string(OutputFile::Check(*FindPlace("/proc/x")).message()),
              HasSubstr("cannot create a file in '/proc'"));
}

}  // namespace
}  // namespace attention::cli
