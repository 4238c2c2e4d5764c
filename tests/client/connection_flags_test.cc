#include "client/cpp/cli/connection_flags.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/cpp/cli/command_line.h"
#include "client/cpp/cli/report.h"
#include "tests/client/certificates.h"
#include "tests/client/fake_service.h"

namespace attention::cli {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

struct Outcome {
  int code;
  std::string out;
  std::string err;
};

Outcome RunWith(const std::vector<std::string>& arguments) {
  std::vector<const char*> argv = {"attention_client"};
  for (const std::string& argument : arguments) {
    argv.push_back(argument.c_str());
  }
  std::ostringstream out;
  std::ostringstream err;
  const int code = Run(static_cast<int>(argv.size()), argv.data(),
                       /*utf8=*/true, out, err);
  return {code, out.str(), err.str()};
}

// Each command, with what it needs to make calls.
const std::vector<std::vector<std::string>> kCommands = {
    {"compute", "--query=[[1]]", "--key=[[1]]", "--value=[[1]]"},
    {"health"},
    {"info"},
    {"bench", "--shape=S=1", "--warmup=0", "--duration=100ms", "--timeout=2s",
     "--no-check"},
};

class ConnectionFlagsTest : public ::testing::Test {
 protected:
  ConnectionFlagsTest()
      : token_file_(std::filesystem::path(::testing::TempDir()) /
                    absl::StrCat("connection_flags_test_", getpid())) {
    std::ofstream(token_file_) << "secret-token\n";
  }
  ~ConnectionFlagsTest() override {
    unsetenv("ATTENTION_TOKEN");
    std::filesystem::remove(token_file_);
  }

  static grpc::Status Echo(grpc::ServerContext&,
                           const v1::ComputeAttentionRequest& request,
                           v1::ComputeAttentionResponse& response) {
    *response.mutable_output() = request.query();
    return grpc::Status::OK;
  }

  std::string TokenFile() const {
    return absl::StrCat("--token-file=", token_file_.string());
  }

  Outcome RunOn(const FakeService& service, std::vector<std::string> command,
                const std::vector<std::string>& flags) {
    command.push_back(absl::StrCat("--server=", service.address()));
    command.insert(command.end(), flags.begin(), flags.end());
    return RunWith(command);
  }

  const std::filesystem::path token_file_;
};

TEST_F(ConnectionFlagsTest, EveryCommandSendsTheToken) {
  for (const auto& command : kCommands) {
    FakeService service(Echo);
    const Outcome outcome = RunOn(service, command, {TokenFile()});
    EXPECT_EQ(outcome.code, kSuccess) << command[0] << ": " << outcome.err;
    EXPECT_THAT(service.authorizations(), Each("Bearer secret-token"));
    // Its health check is gRPC's own and keeps nothing.
    if (command[0] != "health") {
      EXPECT_THAT(service.authorizations(), Not(IsEmpty()));
    }
    EXPECT_THAT(outcome.out, Not(HasSubstr("secret")));
  }
}

TEST_F(ConnectionFlagsTest, TheVariableGivesTheTokenWhereNoFileDoes) {
  FakeService service(Echo);
  setenv("ATTENTION_TOKEN", "of-the-variable", 1);
  EXPECT_EQ(RunOn(service, {"info"}, {}).code, kSuccess);
  EXPECT_EQ(RunOn(service, {"info"}, {TokenFile()}).code, kSuccess);
  setenv("ATTENTION_TOKEN", "", 1);
  EXPECT_EQ(RunOn(service, {"info"}, {}).code, kSuccess);
  EXPECT_THAT(service.authorizations(),
              ::testing::ElementsAre("Bearer of-the-variable",
                                     "Bearer secret-token", ""));
}

TEST_F(ConnectionFlagsTest, EveryCommandSpeaksTls) {
  const auto& certificates = Certificates::Get();
  for (const auto& command : kCommands) {
    FakeService service(Echo, "127.0.0.1:0",
                        certificates.Server("server.pem", true));
    const Outcome outcome = RunOn(
        service, command,
        {TokenFile(), absl::StrCat("--tls-ca=", certificates.Path("ca.pem")),
         absl::StrCat("--tls-cert=", certificates.Path("client.pem")),
         absl::StrCat("--tls-key=", certificates.Path("client.key"))});
    EXPECT_EQ(outcome.code, kSuccess) << command[0] << ": " << outcome.err;
    EXPECT_THAT(service.authorizations(), Each("Bearer secret-token"));
  }
}

TEST_F(ConnectionFlagsTest, EveryCommandTellsWhyTlsFailed) {
  for (const auto& command : kCommands) {
    FakeService service(Echo);
    const Outcome outcome =
        RunOn(service, command,
              {absl::StrCat("--tls-ca=", Certificates::Get().Path("ca.pem"))});
    EXPECT_EQ(outcome.code, kNoAnswer);
    EXPECT_EQ(outcome.err,
              absl::StrCat("attention_client: UNAVAILABLE: ",
                           command[0] == "bench"
                               ? absl::StrCat("cannot connect to ",
                                              service.address(), ": ")
                               : "",
                           "the server does not speak TLS on this port\n"));
  }
}

TEST_F(ConnectionFlagsTest, WhatCannotBeUsedIsNamed) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"--token-file=/no/such",
       "--token-file: /no/such: cannot open: No such file or directory"},
      {"--tls-ca=/no/such",
       "--tls-ca: /no/such: cannot open: No such file or directory"},
      {"--tls-cert=x.pem", "--tls-cert requires --tls-key (see --help)"},
      {"--tls-key=x.pem", "--tls-key requires --tls-cert (see --help)"},
      {"--token=secret-token",
       "--token: others can read a command line: wanted --token-file=FILE or "
       "the variable ATTENTION_TOKEN (see --help)"},
  };
  for (const auto& command : kCommands) {
    for (const auto& [flag, error] : cases) {
      FakeService service(Echo);
      const Outcome outcome = RunOn(service, command, {flag});
      EXPECT_EQ(outcome.code, kBadInput);
      EXPECT_EQ(outcome.err, absl::StrCat("attention_client: ", error, "\n"));
      EXPECT_EQ(outcome.out, "");
      EXPECT_THAT(service.authorizations(), IsEmpty());
    }
  }
  setenv("ATTENTION_TOKEN", "secret token", 1);
  EXPECT_EQ(RunWith({"info"}).err,
            "attention_client: ATTENTION_TOKEN: has white space within the "
            "token, wanted one word\n");
}

TEST_F(ConnectionFlagsTest, ATokenInPlainTextNeedsItsFlag) {
  for (auto command : kCommands) {
    command.insert(command.end(), {"--server=192.0.2.1:50051", TokenFile()});
    const Outcome outcome = RunWith(command);
    EXPECT_EQ(outcome.code, kBadInput);
    EXPECT_EQ(outcome.err,
              "attention_client: --allow-plaintext-token: the token would "
              "travel to 192.0.2.1:50051 in plain text, beyond loopback and "
              "Unix sockets: use TLS, or set this option\n");
  }
  ConnectionFlags flags;
  flags.token_file = token_file_;
  flags.allow_plaintext_token = true;
  EXPECT_TRUE(Connect("192.0.2.1:50051", flags).ok());
}

TEST(ConnectionFlags, SharedMemoryCanBeTurnedOff) {
  ConnectionFlags flags;
  EXPECT_TRUE(Connect("127.0.0.1:1", flags)->may_share_memory());
  flags.no_shared_memory = true;
  EXPECT_FALSE(Connect("127.0.0.1:1", flags)->may_share_memory());
}

TEST(ConnectionFlags, SayHowOftenACallIsTried) {
  ConnectionFlags flags;
  EXPECT_EQ(Connect("127.0.0.1:1", flags)->max_attempts(), 4);
  flags.max_attempts = 1;
  EXPECT_EQ(Connect("127.0.0.1:1", flags)->max_attempts(), 1);
  // What asks how the server fares never tries again.
  const auto has_flag = [](const char* command) {
    const std::string help = RunWith({command, "--help"}).out;
    return help.find("--max-attempts ") != std::string::npos;
  };
  EXPECT_TRUE(has_flag("compute"));
  EXPECT_TRUE(has_flag("info"));
  EXPECT_FALSE(has_flag("health"));
  EXPECT_FALSE(has_flag("bench"));
  const auto refused = RunWith({"info", "--max-attempts=0"});
  EXPECT_EQ(refused.code, kBadInput);
  EXPECT_THAT(refused.err, HasSubstr("--max-attempts"));
}

TEST(ConnectionFlags, HelpShowsThemAndNoTokenFlag) {
  for (const auto& command : kCommands) {
    const std::string help = RunWith({command[0], "--help"}).out;
    for (const char* flag : {"--tls ", "--tls-ca ", "--tls-cert ", "--tls-key ",
                             "--token-file ", "--allow-plaintext-token ",
                             "--no-shared-memory ", "ATTENTION_TOKEN"}) {
      EXPECT_THAT(help, HasSubstr(flag)) << command[0];
    }
    EXPECT_THAT(help, Not(HasSubstr("--token ")));
  }
}

}  // namespace
}  // namespace attention::cli
