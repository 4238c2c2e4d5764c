#include "command_line/help.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace attention::command_line {
namespace {

TEST(HelpTest, FootersAreAsWritten) {
  const std::string footer = "Example:\n  program run --one \\\n    --two\n" +
                             std::string(50, 'x') + " " + std::string(50, 'y');
  CLI::App app("A program.", "program");
  KeepFooters(app);
  app.footer(footer);
  EXPECT_THAT(app.help(), ::testing::EndsWith("\n" + footer + "\n"));
  CLI::App* const run = app.add_subcommand("run", "Runs.");
  run->footer(footer);
  EXPECT_THAT(run->help(), ::testing::EndsWith("\n" + footer + "\n"));
}

}  // namespace
}  // namespace attention::command_line
