#include "command_line/unknown_argument.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace attention::command_line {
namespace {

// What UnknownArgument() says after these arguments; "parsed" if nothing.
class UnknownArgumentTest : public ::testing::Test {
 protected:
  std::string About(std::vector<const char*> arguments) {
    CLI::App app("A program.", "program");
    std::string text;
    app.add_option("--listen", text);
    app.add_option("--max-batch", text);
    app.add_option("--max-batch-heads", text);
    app.add_option("--shutdown-grace", text);
    CLI::App* compute = app.add_subcommand("compute");
    compute->add_option("--query", text)->required();
    compute->add_option("--server", text);
    arguments.insert(arguments.begin(), "program");
    try {
      app.parse(static_cast<int>(arguments.size()), arguments.data());
    } catch (const CLI::ParseError&) {
    }
    return UnknownArgument(app, {{"port", "listen"}, {"q", "query"}})
        .value_or("parsed");
  }
};

TEST_F(UnknownArgumentTest, KnownOnesAreNotMentioned) {
  EXPECT_EQ(About({"--listen=x"}), "parsed");
  EXPECT_EQ(About({"compute", "--query=x"}), "parsed");
  // Wrong, but for another reason.
  EXPECT_EQ(About({"compute"}), "parsed");
}

TEST_F(UnknownArgumentTest, OtherNames) {
  EXPECT_EQ(About({"--port=5"}),
            "--port: no such flag, did you mean --listen?");
  EXPECT_EQ(About({"--port", "5"}),
            "--port: no such flag, did you mean --listen?");
  EXPECT_EQ(About({"compute", "-q", "5"}),
            "-q: no such flag, did you mean --query?");
  // The command has no --listen.
  EXPECT_EQ(About({"compute", "--port=5"}), "--port: no such flag");
}

TEST_F(UnknownArgumentTest, Slips) {
  for (const char* slip : {"--lisen=x", "--litsen", "--listenn", "-listen",
                           "--LISTEN=x", "--liste"}) {
    EXPECT_EQ(About({slip}),
              std::string(slip).substr(0, std::string(slip).find('=')) +
                  ": no such flag, did you mean --listen?");
  }
  EXPECT_EQ(About({"--max_batch=1"}),
            "--max_batch: no such flag, did you mean --max-batch?");
  EXPECT_EQ(About({"--shut=1"}),
            "--shut: no such flag, did you mean --shutdown-grace?");
  // Before that the flag it was meant for is missing.
  EXPECT_EQ(About({"compute", "--qeury=x"}),
            "--qeury: no such flag, did you mean --query?");
}

TEST_F(UnknownArgumentTest, NothingIsGuessedFromTooLittle) {
  EXPECT_EQ(About({"--bogus=1"}), "--bogus: no such flag");
  EXPECT_EQ(About({"--m"}), "--m: no such flag");
  EXPECT_EQ(About({"--max"}), "--max: no such flag");
  const std::string endless = "--" + std::string(10'000, 'x');
  EXPECT_EQ(About({endless.c_str()}), endless + ": no such flag");
}

TEST_F(UnknownArgumentTest, FlagsOfACommandStandAfterIt) {
  EXPECT_EQ(About({"--server=x", "compute", "--query=x"}),
            "--server: this flag stands after a command, as in program compute "
            "--server");
}

TEST_F(UnknownArgumentTest, Words) {
  EXPECT_EQ(About({"compte"}),
            "compte: no such command, did you mean compute?");
  EXPECT_EQ(About({"bogus"}), "got 'bogus', wanted a command or a flag");
  EXPECT_EQ(About({"compute", "--query=x", "bogus"}),
            "got 'bogus', wanted flags only");
}

}  // namespace
}  // namespace attention::command_line
