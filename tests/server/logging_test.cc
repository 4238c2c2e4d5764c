#include "server/logging.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/pipe.h"

namespace attention::server {
namespace {

using ::attention::testing::Pipe;
using ::testing::HasSubstr;
using ::testing::MatchesRegex;

constexpr char kTime[] =
    "ts=[0-9]+-[0-9]+-[0-9]+T[0-9]+:[0-9]+:[0-9]+\\.[0-9]+Z ";

std::shared_ptr<spdlog::logger> LoggerTo(const Pipe& pipe,
                                         const std::string& level = "info") {
  return MakeLogger(
      {.level = level, .buffer_bytes = 64 << 10, .fd = pipe.writer()});
}

TEST(LoggingTest, ALineHasTimeLevelAndText) {
  Pipe pipe;
  const auto log = LoggerTo(pipe);
  log->debug("event=not_shown");
  log->info("event=start version={} threads={}", "1.2", 3);
  EXPECT_THAT(pipe.ReadUntil("\n"),
              MatchesRegex(std::string(kTime) + "level=info event=start "
                                                "version=1.2 threads=3\n"));
}

TEST(LoggingTest, Quotes) { EXPECT_EQ(Quoted("a\"\n"), "\"a\\\"\\n\""); }

TEST(LoggingTest, NobodyWhoLogsWaitsForAReader) {
  Pipe pipe;
  const size_t filler = pipe.Fill();
  const auto log = LoggerTo(pipe);
  // From several threads, ten times what the buffer holds.
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int line = 0; line < 2500; ++line)
        log->info("event=call n={}", line);
    });
  }
  for (std::thread& thread : threads) thread.join();
  const int64_t dropped = LogLinesDropped(*log);
  EXPECT_GT(dropped, 5000);
  pipe.ReadAll(filler);
  const std::string told = "event=log_dropped count=" + std::to_string(dropped);
  EXPECT_THAT(pipe.ReadUntil(told + "\n"), HasSubstr("level=warning " + told));
}

TEST(LoggingTest, ALineThatCannotBeFormattedIsDroppedAndTold) {
  Pipe pipe;
  const auto log = LoggerTo(pipe);
  EXPECT_NO_THROW(log->info(fmt::runtime("event={}")));
  EXPECT_EQ(LogLinesDropped(*log), 1);
  EXPECT_THAT(pipe.ReadUntil("\n"), HasSubstr("event=log_dropped count=1\n"));
}

TEST(LoggingTest, TheReaderMayGoAway) {
  Pipe pipe;
  {
    const auto log = LoggerTo(pipe);
    pipe.CloseReader();
    for (int i = 0; i < 100; ++i) log->info("event=call");
  }
  SUCCEED();  // No SIGPIPE.
}

TEST(LoggingTest, TheLastReferenceFlushes) {
  Pipe pipe;
  LoggerTo(pipe)->info("event=stop");
  pipe.CloseWriter();
  EXPECT_THAT(pipe.ReadAll(1000), HasSubstr("event=stop\n"));
}

}  // namespace
}  // namespace attention::server
