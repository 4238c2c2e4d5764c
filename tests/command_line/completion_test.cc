// What is in the scripts; tests/operations/test_completion.py runs them.
#include "command_line/completion.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace attention::command_line {
namespace {

using ::testing::HasSubstr;

class CompletionTest : public ::testing::Test {
 protected:
  CompletionTest() : app_("A program.", "program") {
    app_.add_option("--listen", text_, "Where: [ip6]:port, it's free")
        ->type_name("ADDRESS");
    app_.add_flag("--quick", quick_, "Be quick");
    CLI::App* run = app_.add_subcommand("run", "Run: now");
    run->add_option("--mode", text_, "How")->type_name("fast|slow");
    run->add_option("--output", text_, "Where to")->type_name("FILE");
    AddCompletionCommand(app_, shell_);
    CLI::App* store = app_.add_subcommand("store", "What is kept");
    CLI::App* add = store->add_subcommand("add", "Add to it");
    add->add_option("--mode", text_, "How")->type_name("all|one");
  }

  CLI::App app_;
  std::string text_;
  bool quick_ = false;
  std::string shell_;
};

TEST_F(CompletionTest, Bash) {
  const std::string script = CompletionScript(app_, "bash");
  EXPECT_THAT(script, HasSubstr("    case $command/$word in\n"
                                "      /run|/completion|/store|store/add) "
                                "command=${command:+$command/}$word ;;\n"));
  EXPECT_THAT(script, HasSubstr("    '') flags='--help --listen= --quick' "
                                "words='run completion store' ;;\n"
                                "    'run') flags='--help --mode= --output=' "
                                "words='' ;;\n"
                                "    'completion') flags='--help' "
                                "words='bash zsh' ;;\n"
                                "    'store') flags='--help' words='add' ;;\n"
                                "    'store/add') flags='--help --mode=' "
                                "words='' ;;\n"));
  EXPECT_THAT(script, HasSubstr("    store/add--mode) words='all one' ;;\n"));
  EXPECT_THAT(script, HasSubstr("  case $command$flag in\n"
                                "    run--mode) words='fast slow' ;;\n"
                                "    run--output) file=yes ;;\n"));
  EXPECT_THAT(script, HasSubstr("complete -F _program program\n"));
}

TEST_F(CompletionTest, Zsh) {
  const std::string script = CompletionScript(app_, "zsh");
  EXPECT_THAT(script, ::testing::StartsWith("#compdef program\n"));
  EXPECT_THAT(script, HasSubstr("    'run:Run\\: now'\n"));
  EXPECT_THAT(script, HasSubstr("    '--listen=[Where\\: \\[ip6\\]\\:port, "
                                "it'\\''s free]:ADDRESS:' \\\n"));
  EXPECT_THAT(script, HasSubstr("    '--quick[Be quick]' \\\n"));
  EXPECT_THAT(script, HasSubstr("          '--mode=[How]:mode:(fast slow)'"));
  EXPECT_THAT(script, HasSubstr("          '--output=[Where to]:FILE:_files'"));
  EXPECT_THAT(script, HasSubstr("_program_store() {\n"));
  EXPECT_THAT(script, HasSubstr("    'add:Add to it'\n"));
  EXPECT_THAT(script,
              HasSubstr("        store) _program_store && result=0 ;;\n"));
}

TEST_F(CompletionTest, OtherShellsAreRefused) {
  const char* arguments[] = {"program", "completion", "fish"};
  try {
    app_.parse(3, arguments);
    FAIL() << shell_;
  } catch (const CLI::ParseError& error) {
    EXPECT_STREQ(error.what(), "SHELL: got 'fish', wanted bash or zsh");
  }
}

}  // namespace
}  // namespace attention::command_line
