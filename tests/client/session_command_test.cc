// `attention_client session`, against a real server.
#include "client/cpp/cli/session_command.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "attention/tensor.h"
#include "client/cpp/cli/npy.h"
#include "client/cpp/cli/report.h"
#include "client/cpp/cli/tensor_argument.h"
#include "tests/client/run_with.h"
#include "tests/support/certificates.h"
#include "tests/support/test_server.h"

namespace attention::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::MatchesRegex;
using ::testing::StartsWith;

constexpr char kKey[] = "--key=[[[1,0],[0,1]]]";
constexpr char kValue[] = "--value=[[[1,0],[0,1]]]";
constexpr char kQuery[] = "--query=[[[1,0]]]";

class SessionCommandTest : public ::testing::Test {
 protected:
  Outcome Session(const std::string& verb, std::vector<std::string> more) {
    more.insert(
        more.begin(),
        {"session", verb,
         absl::StrCat("--server=", server_.server().addresses().front())});
    return RunWith(more);
  }
  // What a verb prints that works.
  std::string Printed(const std::string& verb,
                      const std::vector<std::string>& more) {
    const Outcome outcome = Session(verb, more);
    EXPECT_EQ(outcome.code, kSuccess);
    EXPECT_EQ(outcome.err, "");
    return outcome.out;
  }
  // What it says that fails.
  std::string Refused(const std::string& verb,
                      const std::vector<std::string>& more, ExitCode code) {
    const Outcome outcome = Session(verb, more);
    EXPECT_EQ(outcome.code, code) << outcome.err;
    EXPECT_EQ(outcome.out, "");
    ExpectOneLine(outcome.err);
    return outcome.err;
  }
  void CreateStory() {
    EXPECT_EQ(
        Printed("create", {"--id=story", "--kv-heads=1", "--head-size=2"}),
        "story\n");
  }

  testing::TestServer server_;
};

TEST_F(SessionCommandTest, FromCreationToDeletion) {
  CreateStory();
  EXPECT_EQ(Printed("append", {"--id=story", kKey, kValue}), "2\n");
  EXPECT_EQ(Printed("attend", {"--id=story", kQuery}),
            "[[[0.66976154, 0.33023846]]]\n");
  EXPECT_EQ(Printed("fork", {"--id=story", "--target=other"}), "other\n");
  EXPECT_EQ(Printed("append", {"--id=other", "--expected-length=2",
                               "--key=[[[5,6]]]", "--value=[[[7,8]]]"}),
            "3\n");
  EXPECT_EQ(Printed("truncate", {"--id=story", "--length=1"}), "");
  EXPECT_EQ(Printed("attend", {"--id=story", kQuery}), "[[[1, 0]]]\n");
  EXPECT_THAT(Printed("list", {}),
              MatchesRegex("id     layers        tokens  expires in\n"
                           "other       1             3  [^ \n]+s\n"
                           "story       1             1  [^ \n]+s\n"));
  EXPECT_EQ(Printed("delete", {"--id=story"}), "");
  EXPECT_EQ(Printed("delete", {"--id=story"}), "");
  EXPECT_THAT(Refused("show", {"--id=story"}, kRefused),
              HasSubstr("SESSION_UNKNOWN"));
}

TEST_F(SessionCommandTest, ShowsWhatWasCreated) {
  EXPECT_THAT(
      Printed("create", {"--kv-heads=2", "--head-size=3", "--layers=2",
                         "--value-head-size=1", "--value-is-key-prefix",
                         "--type=bfloat16", "--lease=2m30.5s", "--id=a"}),
      "a\n");
  EXPECT_EQ(
      Printed("append", {"--id=a", "--layer=1", "--key=[[[1,2,3]],[[4,5,6]]]"}),
      "1\n");
  EXPECT_THAT(Printed("show", {"--id=a"}),
              MatchesRegex("id               a\n"
                           "layers           2\n"
                           "kv heads         2\n"
                           "head size        3\n"
                           "value head size  1, the first of the key\n"
                           "type             BFLOAT16\n"
                           "tokens           0,1\n"
                           "lease            2m30.5s\n"
                           "expires in       2m[^ \n]+s\n"));
  EXPECT_THAT(Printed("list", {}), HasSubstr("           0-1  "));
  // The server chooses an id.
  EXPECT_EQ(Printed("create", {"--kv-heads=1", "--head-size=1"}).size(), 33u);
}

TEST_F(SessionCommandTest, ShowsWindows) {
  Printed("create", {"--kv-heads=1", "--head-size=2", "--layers=2",
                     "--retain-window=3,0", "--rollback-tokens=1", "--id=a"});
  Printed("append", {"--id=a", kKey, kValue});
  EXPECT_THAT(Printed("show", {"--id=a"}), HasSubstr("\ntokens           2,0\n"
                                                     "retain window    3,0\n"
                                                     "rollback tokens  1\n"
                                                     "first token      0\n"
                                                     "least length     0\n"
                                                     "lease "));
  EXPECT_THAT(Refused("attend", {"--id=a", kQuery}, kRefused),
              HasSubstr("options.window.left: got none, wanted 0 to 2"));
  EXPECT_EQ(Printed("attend", {"--id=a", kQuery, "--window=0,-1"}),
            "[[[0, 1]]]\n");
  Printed("create", {"--kv-heads=1", "--head-size=2", "--retain-window=7",
                     "--layers=2", "--id=b"});
  EXPECT_THAT(Printed("show", {"--id=b"}),
              HasSubstr("\nretain window    7\nrollback tokens  256\n"));
}

TEST_F(SessionCommandTest, RefusesTokensThatAreReleased) {
  Printed("create", {"--kv-heads=1", "--head-size=2", "--retain-window=3",
                     "--rollback-tokens=1", "--id=a"});
  std::string rows = "[[[1,0]";
  for (int i = 1; i < 300; ++i) rows += ",[1,0]";
  rows += "]]";
  Printed("append", {"--id=a", "--key=" + rows, "--value=" + rows});
  EXPECT_THAT(Refused("truncate", {"--id=a", "--length=2"}, kRefused),
              HasSubstr("TOKENS_RELEASED"));
}

TEST_F(SessionCommandTest, Options) {
  CreateStory();
  Printed("append", {"--id=story", kKey, kValue});
  EXPECT_EQ(Printed("attend", {"--id=story", "--query=[[[1,0],[1,0]]]"}),
            "[[[1, 0],\n  [0.66976154, 0.33023846]]]\n");
  EXPECT_EQ(Printed("attend", {"--id=story", "--query=[[[1,0],[1,0]]]",
                               "--not-causal", "--mask=[[false,true]]"}),
            "[[[0, 1],\n  [0, 1]]]\n");
  EXPECT_EQ(Printed("attend", {"--id=story", kQuery, "--scale=0",
                               "--scores=weights", "--log-sum-exp"}),
            "output:\n[[[0.5, 0.5]]]\nlog_sum_exp:\n[[0.6931472]]\n"
            "scores:\n[[[0.5, 0.5]]]\n");
}

TEST_F(SessionCommandTest, ReadsAndWritesFiles) {
  CreateStory();
  const testing::TestFolder folder;
  const std::vector<float> eye = {1, 0, 0, 1};
  {
    std::ofstream file(folder.Path("key.npy"), std::ios::binary);
    ASSERT_TRUE(WriteNpy(Tensor::Of<float>(eye, {1, 2, 2}), file).ok());
  }
  EXPECT_EQ(Printed("append", {"--id=story", "--key=" + folder.Path("key.npy"),
                               "--value=" + folder.Path("key.npy")}),
            "2\n");
  const std::string target = folder.Path("o.safetensors");
  EXPECT_EQ(
      Printed("attend", {"--id=story", kQuery, "--output=" + target,
                         "--log-sum-exp", "--log-sum-exp-output=" + target}),
      "");
  const auto output =
      ReadTensorArgument(target + ":output", v1::DATA_TYPE_FLOAT32);
  ASSERT_TRUE(output.ok()) << output.status();
  EXPECT_THAT(output->shape(), ElementsAre(1, 1, 2));
  EXPECT_TRUE(
      ReadTensorArgument(target + ":log_sum_exp", v1::DATA_TYPE_FLOAT32).ok());
  EXPECT_THAT(Refused("attend",
                      {"--id=story", kQuery, "--output=" + target,
                       "--scores=raw", "--scores-output=" + target + ":output"},
                      kBadInput),
              HasSubstr("--output would be written to the same place"));
}

TEST_F(SessionCommandTest, WhatTheServerRefuses) {
  CreateStory();
  EXPECT_THAT(Refused("create", {"--id=story", "--kv-heads=2", "--head-size=2"},
                      kRefused),
              HasSubstr("SESSION_EXISTS"));
  EXPECT_EQ(
      Refused("append", {"--id=story", "--key=[[[1]]]", kValue}, kRefused),
      "attention_client: INVALID_ARGUMENT: key.shape: got (1, 1, 1), "
      "wanted (1, n, 2)\n");
  EXPECT_THAT(
      Refused("append", {"--id=story", "--layer=1", kKey, kValue}, kRefused),
      HasSubstr("LAYER_UNKNOWN"));
  EXPECT_EQ(
      Refused("append", {"--id=story", "--expected-length=3", kKey, kValue},
              kRefused),
      "attention_client: ABORTED: layer 0: got 0 tokens, wanted "
      "--expected-length=3\n");
  EXPECT_THAT(Refused("truncate", {"--id=story", "--length=1"}, kRefused),
              StartsWith("attention_client: INVALID_ARGUMENT: "));
  for (const char* verb : {"show", "fork"}) {
    EXPECT_THAT(Refused(verb, {"--id=nobody"}, kRefused),
                StartsWith("attention_client: NOT_FOUND: "));
  }
}

TEST_F(SessionCommandTest, WrongCommandLines) {
  EXPECT_EQ(RunWith({"session"}).err,
            "attention_client: session: got no command, wanted create, append, "
            "attend, fork, truncate, list, show or delete (see --help)\n");
  EXPECT_THAT(RunWith({"session", "creat"}).err,
              HasSubstr("creat: no such command, did you mean create?"));
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
      {{"show"}, "--id"},
      {{"create", "--id=a", "--kv-heads=1"}, "--head-size"},
      {{"create", "--kv-heads=1", "--head-size=1", "--lease=soon"},
       "--lease: got 'soon', wanted "},
      {{"show", "--session=a"}, "--session: no such flag, did you mean --id?"},
      {{"append", "--id=a", "--key=["}, "--key: not a literal"},
      {{"attend", "--id=a", kQuery, "--causal=top-left", "--not-causal"},
       "--not-causal"},
      {{"attend", "--id=a", "--query=-", "--mask=-"},
       "--mask: got '-', but --query reads standard input already"}};
  for (const auto& [arguments, said] : cases) {
    EXPECT_THAT(Refused(arguments[0], {arguments.begin() + 1, arguments.end()},
                        kBadInput),
                HasSubstr(said));
  }
  EXPECT_EQ(RunWith({"session", "list", "--server=127.0.0.1:1"}).code,
            kNoAnswer);
}

TEST_F(SessionCommandTest, Help) {
  EXPECT_THAT(RunWith({"session", "--help"}).out,
              HasSubstr("  attention_client session append --id=story"));
  EXPECT_THAT(RunWith({"session", "attend", "--help"}).out,
              HasSubstr("--softcap"));
  EXPECT_THAT(RunWith({"completion", "bash"}).out,
              HasSubstr("'session/append') flags='"));
}

}  // namespace
}  // namespace attention::cli
