#include "server/last_words.h"

#include <gtest/gtest.h>

#include <csignal>
#include <cstdlib>
#include <new>
#include <stdexcept>
#include <thread>

namespace attention::server {
namespace {

using ::testing::ExitedWithCode;
using ::testing::KilledBySignal;

class LastWordsTest : public ::testing::Test {
 protected:
  // Threads of other tests of the program are not to be forked.
  void SetUp() override { GTEST_FLAG_SET(death_test_style, "threadsafe"); }
};

TEST_F(LastWordsTest, AnAbortWhileStartingExitsWithALine) {
  EXPECT_EXIT(
      {
        InstallLastWords();
        std::abort();
      },
      ExitedWithCode(1), "^attention_server: aborted; if memory, [^\n]*\n$");
}

TEST_F(LastWordsTest, AnAbortLaterSaysSoAndAborts) {
  EXPECT_EXIT(
      {
        InstallLastWords();
        StartSucceeded();
        std::abort();
      },
      KilledBySignal(SIGABRT), "^attention_server: aborted; [^\n]*\n$");
}

TEST_F(LastWordsTest, AnExceptionThatNobodyCatchesIsNamedOnce) {
  EXPECT_EXIT(
      {
        InstallLastWords();
        std::thread([] { throw std::runtime_error("why"); }).join();
      },
      ExitedWithCode(1), "^attention_server: why\n$");
}

TEST_F(LastWordsTest, AThreadLeftBehindIsTold) {
  EXPECT_EXIT(
      {
        InstallLastWords();
        std::thread thread([] {});
      },
      ExitedWithCode(1), "^attention_server: terminated; [^\n]*\n$");
}

TEST_F(LastWordsTest, TellsOfAnExceptionThatIsHandled) {
  EXPECT_EXIT(
      {
        try {
          throw std::bad_alloc();
        } catch (...) {
          TellOfException();
        }
        std::exit(3);
      },
      ExitedWithCode(3), "^attention_server: out of memory; [^\n]*\n$");
}

}  // namespace
}  // namespace attention::server
