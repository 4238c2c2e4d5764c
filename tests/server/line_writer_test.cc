#include "server/line_writer.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstdlib>
#include <optional>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "tests/support/pipe.h"
#include "tests/support/test_server.h"

namespace attention::server {
namespace {

using ::attention::testing::Pipe;
using ::attention::testing::WaitUntil;
using ::testing::HasSubstr;
using ::testing::StartsWith;

std::string Dropped(int64_t count) { return absl::StrCat("dropped ", count); }

LineWriter::Settings To(int fd) {
  return {.fd = fd, .buffer_bytes = 8192, .dropped_line = Dropped};
}

// Lines of 100 bytes with their end, numbered.
std::string Line(int i) {
  std::string line = absl::StrCat("line ", i, " ");
  return line + std::string(99 - line.size(), 'x');
}

TEST(LineWriterTest, WritesLinesInTheirOrder) {
  Pipe pipe;
  LineWriter writer(To(pipe.writer()));
  std::string wanted;
  for (int i = 0; i < 70; ++i) {
    writer.Write(Line(i));
    wanted += Line(i) + "\n";
  }
  EXPECT_EQ(pipe.ReadAll(wanted.size()), wanted);
  EXPECT_EQ(writer.dropped(), 0);
}

TEST(LineWriterTest, GoesRoundItsBuffer) {
  Pipe pipe;
  LineWriter writer(To(pipe.writer()));
  for (int i = 0; i < 1000; ++i) {
    writer.Write(Line(i));
    ASSERT_EQ(pipe.ReadAll(100), Line(i) + "\n");
  }
  EXPECT_EQ(writer.dropped(), 0);
}

TEST(LineWriterTest, CutsALongLine) {
  Pipe pipe;
  LineWriter writer(To(pipe.writer()));
  writer.Write(std::string(5000, 'a'));
  writer.Write(std::string(LineWriter::kMaxLineBytes, 'b'));
  EXPECT_EQ(pipe.ReadUntil("\n"), std::string(4092, 'a') + "...\n");
  EXPECT_EQ(pipe.ReadUntil("\n"), std::string(4095, 'b') + "\n");
}

TEST(LineWriterTest, AFullPipeBlocksNoCallerAndWhatIsDroppedIsTold) {
  Pipe pipe;
  const size_t filler = pipe.Fill();
  LineWriter writer(To(pipe.writer()));
  // Far more than the buffer holds: returns only if it does not wait.
  for (int i = 0; i < 1000; ++i) writer.Write(Line(i));
  const int64_t dropped = writer.dropped();
  // The buffer holds 81 lines; the thread may have taken out 40 before it found
  // no room.
  EXPECT_GE(dropped, 1000 - 81 - 40);
  EXPECT_LE(dropped, 1000 - 81);
  pipe.ReadAll(filler);
  const std::string told = Dropped(dropped) + "\n";
  const std::string read = pipe.ReadAll((1000 - dropped) * 100 + told.size());
  EXPECT_THAT(read, StartsWith(Line(0) + "\n" + Line(1) + "\n"));
  EXPECT_THAT(read, HasSubstr("\n" + told));
  // It is told once, and goes on.
  writer.Write("after");
  EXPECT_EQ(pipe.ReadUntil("\n"), "after\n");
}

TEST(LineWriterTest, TellsOfDropsAlsoWhileLinesKeepComing) {
  Pipe pipe;
  pipe.Fill();
  LineWriter writer(To(pipe.writer()));
  for (int i = 0; i < 1000; ++i) writer.Write(Line(i));
  // Two lines come for each that is read: there are always lines dropped.
  std::string read;
  int lines = 0;
  while (!absl::StrContains(read, "dropped") && lines < 10000) {
    writer.Write(Line(lines));
    writer.Write(Line(lines));
    read = read.substr(read.rfind('\n') + 1) + pipe.ReadAll(100);
    ++lines;
  }
  // What the pipe and the buffer held, and some more.
  EXPECT_LT(lines, 2000);
}

TEST(LineWriterTest, LivesOnWhenTheReaderGoesAway) {
  Pipe pipe;
  LineWriter writer(To(pipe.writer()));
  pipe.CloseReader();
  writer.Write("lost");
  EXPECT_TRUE(WaitUntil([&] { return writer.dropped() == 1; }));
  writer.Write("lost");
  EXPECT_TRUE(WaitUntil([&] { return writer.dropped() == 2; }));
}

TEST(LineWriterTest, CountsWhatAFullDiskLoses) {
  const int full = open("/dev/full", O_WRONLY | O_CLOEXEC);
  ASSERT_GE(full, 0);
  {
    LineWriter writer(To(full));
    for (int i = 0; i < 10; ++i) writer.Write(Line(i));
    EXPECT_TRUE(WaitUntil([&] { return writer.dropped() == 10; }));
  }
  close(full);
}

TEST(LineWriterTest, TellsOfLinesThatFailedOnceOneIsWritten) {
  // A descriptor that fails, and then is another's.
  Pipe pipe;
  const int fd = open("/dev/full", O_WRONLY | O_CLOEXEC);
  LineWriter writer(To(fd));
  writer.Write("lost");
  EXPECT_TRUE(WaitUntil([&] { return writer.dropped() == 1; }));
  ASSERT_EQ(dup2(pipe.writer(), fd), fd);
  writer.Write("written");
  EXPECT_EQ(pipe.ReadUntil("1\n"), "written\ndropped 1\n");
  close(fd);
}

TEST(LineWriterTest, ALineAfterHalfALineBeginsAnew) {
  // The file takes one line and a half.
  const std::string path =
      absl::StrCat(::testing::TempDir(), "half_", getpid());
  const int fd =
      open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  ASSERT_GE(fd, 0);
  unlink(path.c_str());
  rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const rlimit small = {150, before.rlim_max};
  {
    LineWriter writer(To(fd));
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
    writer.Write(Line(0));
    writer.Write(Line(1));
    EXPECT_TRUE(WaitUntil([&] { return writer.dropped() == 1; }));
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
    writer.Write(Line(2));
  }
  std::string read(1000, '\0');
  read.resize(pread(fd, read.data(), read.size(), 0));
  EXPECT_EQ(read, absl::StrCat(Line(0), "\n", Line(1).substr(0, 50), "\n",
                               Line(2), "\ndropped 1\n"));
  close(fd);
}

TEST(LineWriterTest, LeavesTheFlagsOfTheDescriptorAlone) {
  Pipe pipe;
  const int before = fcntl(pipe.writer(), F_GETFL);
  LineWriter writer(To(pipe.writer()));
  writer.Write("line");
  EXPECT_EQ(pipe.ReadUntil("\n"), "line\n");
  EXPECT_EQ(fcntl(pipe.writer(), F_GETFL), before);
}

TEST(LineWriterTest, WaitsForRoomOfANonBlockingDescriptor) {
  Pipe pipe;
  ASSERT_EQ(fcntl(pipe.writer(), F_SETFL, O_NONBLOCK), 0);
  const size_t filler = pipe.Fill();
  LineWriter writer(To(pipe.writer()));
  writer.Write("line");
  pipe.ReadAll(filler);
  EXPECT_EQ(pipe.ReadUntil("\n"), "line\n");
  EXPECT_EQ(writer.dropped(), 0);
}

TEST(LineWriterTest, TheDestructorFlushes) {
  Pipe pipe;
  std::string wanted;
  {
    LineWriter writer(To(pipe.writer()));
    for (int i = 0; i < 70; ++i) {
      writer.Write(Line(i));
      wanted += Line(i) + "\n";
    }
    writer.CountDropped();
  }
  pipe.CloseWriter();
  EXPECT_EQ(pipe.ReadAll(1 << 20), wanted + "dropped 1\n");
}

TEST(LineWriterTest, TheDestructorDoesNotWaitForAReaderThatIsNotThere) {
  Pipe pipe;
  pipe.Fill();
  LineWriter::Settings settings = To(pipe.writer());
  settings.flush_time = absl::Hours(1);
  LineWriter writer(settings);
  writer.Write("line");
}

TEST(LineWriterTest, TheDestructorWaitsForASlowReaderNoLongerThanItsTime) {
  Pipe pipe;
  pipe.Fill();
  LineWriter::Settings settings = To(pipe.writer());
  settings.flush_time = absl::Milliseconds(1);
  settings.stall_time = absl::Hours(1);
  LineWriter writer(settings);
  writer.Write("line");
}

TEST(LineWriterTest, TheDestructorLeavesAThreadThatIsStuckInAWrite) {
  // A terminal is ready while it has room for a byte, and write() then waits
  // for the rest. The line ends differ from the buffer's size, so that there is
  // some.
  const int terminal = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
  ASSERT_TRUE(terminal >= 0 && grantpt(terminal) == 0 &&
              unlockpt(terminal) == 0);
  const int fd = open(ptsname(terminal), O_RDWR | O_NOCTTY | O_CLOEXEC);
  ASSERT_GE(fd, 0);
  std::optional<LineWriter> writer(
      std::in_place,
      LineWriter::Settings{.fd = fd, .buffer_bytes = size_t{1} << 20});
  for (int i = 0; i < 5000; ++i) writer->Write(Line(i));
  writer.reset();
  // The thread ends by EIO.
  close(terminal);
  close(fd);
}

TEST(WriteWithinTest, WritesAllOrGivesUp) {
  Pipe pipe;
  EXPECT_TRUE(WriteWithin(pipe.writer(), "text", absl::Seconds(60)));
  EXPECT_EQ(pipe.ReadAll(4), "text");
  pipe.Fill();
  EXPECT_FALSE(WriteWithin(pipe.writer(), "text", absl::Milliseconds(1)));
  EXPECT_FALSE(WriteWithin(-1, "text", absl::Milliseconds(1)));
}

}  // namespace
}  // namespace attention::server
