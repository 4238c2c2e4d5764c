#include "server/flags.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"

namespace attention::server {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

Invocation Parse(std::vector<const char*> flags) {
  flags.insert(flags.begin(), "attention_server");
  return ParseFlags(static_cast<int>(flags.size()), flags.data());
}

TEST(FlagsTest, NoneGivesTheDefaults) {
  const Invocation invocation = Parse({});
  ASSERT_TRUE(invocation.options.has_value());
  EXPECT_THAT(invocation.options->listen, ElementsAre("127.0.0.1:50051"));
  EXPECT_EQ(invocation.options->threads, Options::DefaultThreads());
}

TEST(FlagsTest, EveryFlagSetsItsOption) {
  const Invocation invocation = Parse({"--listen=127.0.0.1:0,[::1]:0",
                                       "--listen=unix:/tmp/x",
                                       "--threads=3",
                                       "--max-request-bytes=64MiB",
                                       "--max-response-bytes=2048",
                                       "--max-chunk-bytes=4KiB",
                                       "--max-inflight-bytes=1GiB",
                                       "--max-pooled-bytes=1KiB",
                                       "--max-queue=700ms",
                                       "--default-deadline=5m",
                                       "--min-upload-rate=1MiB",
                                       "--min-answer-rate=2MiB",
                                       "--stall-grace=3s",
                                       "--max-head-size=512",
                                       "--max-heads=64",
                                       "--max-batch=100",
                                       "--max-batch-heads=200",
                                       "--max-work=1000000",
                                       "--max-connections=7",
                                       "--handshake-timeout=5s",
                                       "--max-connection-idle=1m",
                                       "--max-connection-age=inf",
                                       "--max-connection-age-grace=2m",
                                       "--drain-delay=10s",
                                       "--max-header-bytes=16KiB",
                                       "--min-ping-interval=1500ms",
                                       "--shutdown-grace=1m30s",
                                       "--log-level=debug",
                                       "--log-buffer-bytes=2MiB",
                                       "--log-lines-per-second=7",
                                       "--http-listen=[::1]:9464",
                                       "--shared-memory=unix:/tmp/s",
                                       "--max-shared-bytes=3GiB",
                                       "--http-max-connections=5",
                                       "--http-timeout=3s",
                                       "--http-max-body-bytes=1MiB",
                                       "--http-allow-origin=https://a.example",
                                       "--http-allow-origin=*",
                                       "--tls-cert=/c",
                                       "--tls-key=/k",
                                       "--tls-client-ca=/a",
                                       "--tokens=/t",
                                       "--open-health",
                                       "--allow-plaintext",
                                       "--unix-socket-mode=0660"});
  ASSERT_TRUE(invocation.options.has_value()) << invocation.standard_error;
  const Options& options = *invocation.options;
  EXPECT_THAT(options.listen,
              ElementsAre("127.0.0.1:0", "[::1]:0", "unix:/tmp/x"));
  EXPECT_EQ(options.tls_cert, "/c");
  EXPECT_EQ(options.tls_key, "/k");
  EXPECT_EQ(options.tls_client_ca, "/a");
  EXPECT_EQ(options.tokens, "/t");
  EXPECT_TRUE(options.open_health);
  EXPECT_TRUE(options.allow_plaintext);
  EXPECT_EQ(options.unix_socket_mode, 0660);
  EXPECT_EQ(options.threads, 3);
  EXPECT_EQ(options.max_request_bytes, 64 << 20);
  EXPECT_EQ(options.max_response_bytes, 2048);
  EXPECT_EQ(options.max_chunk_bytes, 4096);
  EXPECT_EQ(options.max_inflight_bytes, 1 << 30);
  EXPECT_EQ(options.max_pooled_bytes, 1024);
  EXPECT_EQ(options.max_queue, absl::Milliseconds(700));
  EXPECT_EQ(options.default_deadline, absl::Minutes(5));
  EXPECT_EQ(options.min_upload_rate, 1 << 20);
  EXPECT_EQ(options.min_answer_rate, 2 << 20);
  EXPECT_EQ(options.stall_grace, absl::Seconds(3));
  EXPECT_EQ(options.max_head_size, 512);
  EXPECT_EQ(options.max_heads, 64);
  EXPECT_EQ(options.max_batch, 100);
  EXPECT_EQ(options.max_batch_heads, 200);
  EXPECT_EQ(options.max_work, 1000000);
  EXPECT_EQ(options.max_connections, 7);
  EXPECT_EQ(options.handshake_timeout, absl::Seconds(5));
  EXPECT_EQ(options.max_connection_idle, absl::Minutes(1));
  EXPECT_EQ(options.max_connection_age, absl::InfiniteDuration());
  EXPECT_EQ(options.max_connection_age_grace, absl::Minutes(2));
  EXPECT_EQ(options.drain_delay, absl::Seconds(10));
  EXPECT_EQ(options.max_header_bytes, 16 << 10);
  EXPECT_EQ(options.min_ping_interval, absl::Milliseconds(1500));
  EXPECT_EQ(options.shutdown_grace, absl::Seconds(90));
  EXPECT_EQ(options.log_level, "debug");
  EXPECT_EQ(options.http_listen, "[::1]:9464");
  EXPECT_EQ(options.shared_memory, "unix:/tmp/s");
  EXPECT_EQ(options.max_shared_bytes, int64_t{3} << 30);
  EXPECT_EQ(options.http_max_connections, 5);
  EXPECT_EQ(options.http_timeout, absl::Seconds(3));
  EXPECT_EQ(options.http_max_body_bytes, 1 << 20);
  EXPECT_EQ(options.http_allow_origins,
            (std::vector<std::string>{"https://a.example", "*"}));
}

TEST(FlagsTest, ANumberAloneIsSeconds) {
  const Invocation invocation =
      Parse({"--shutdown-grace=5", "--max-queue=0.5", "--http-timeout=3",
             "--max-connection-age=60"});
  ASSERT_TRUE(invocation.options.has_value()) << invocation.standard_error;
  EXPECT_EQ(invocation.options->shutdown_grace, absl::Seconds(5));
  EXPECT_EQ(invocation.options->max_queue, absl::Milliseconds(500));
  EXPECT_EQ(invocation.options->http_timeout, absl::Seconds(3));
  EXPECT_EQ(invocation.options->max_connection_age, absl::Minutes(1));
}

// It must not count as none given.
TEST(FlagsTest, NoValueMayBeEmpty) {
  for (const char* flag : {"--tokens", "--tls-client-ca", "--tls-cert"}) {
    const Invocation invocation = Parse({flag, ""});
    EXPECT_EQ(invocation.exit_code, 2);
    EXPECT_EQ(
        invocation.standard_error,
        absl::StrCat("attention_server: ", flag, ": got an empty value\n"));
  }
}

TEST(FlagsTest, LogLevelsMayBeInCapitals) {
  const Invocation invocation = Parse({"--log-level=WARNING"});
  ASSERT_TRUE(invocation.options.has_value()) << invocation.standard_error;
  EXPECT_EQ(invocation.options->log_level, "warning");
}

TEST(FlagsTest, CompletionIsPrinted) {
  for (const char* shell : {"bash", "zsh"}) {
    const Invocation invocation = Parse({"completion", shell});
    EXPECT_FALSE(invocation.options.has_value());
    EXPECT_EQ(invocation.exit_code, 0);
    EXPECT_THAT(invocation.standard_output, HasSubstr("_attention_server()"));
    EXPECT_THAT(invocation.standard_output, HasSubstr("--shutdown-grace="));
  }
}

TEST(FlagsTest, VersionAndHelpExitWithZero) {
  const Invocation version = Parse({"--version"});
  EXPECT_FALSE(version.options.has_value());
  EXPECT_EQ(version.exit_code, 0);
  EXPECT_THAT(version.standard_output,
              ::testing::MatchesRegex("attention_server [0-9.]+\n"));
  const Invocation help = Parse({"--help"});
  EXPECT_EQ(help.exit_code, 0);
  EXPECT_THAT(help.standard_output, HasSubstr("--max-request-bytes"));
}

struct BadFlag {
  const char* name;
  const char* flag;
  const char* error;
};

class BadFlagTest : public ::testing::TestWithParam<BadFlag> {};

TEST_P(BadFlagTest, GivesOneLineAndANonZeroExit) {
  const Invocation invocation = Parse({GetParam().flag});
  EXPECT_FALSE(invocation.options.has_value());
  EXPECT_EQ(invocation.exit_code, 2);
  EXPECT_EQ(invocation.standard_output, "");
  EXPECT_EQ(invocation.standard_error,
            std::string("attention_server: ") + GetParam().error + "\n");
}

INSTANTIATE_TEST_SUITE_P(
    Flags, BadFlagTest,
    ::testing::Values(
        BadFlag{"OutOfRange", "--threads=0",
                "--threads: got 0, wanted 1 to 1024"},
        BadFlag{"NoNumber", "--threads=many",
                "--threads: got \"many\", wanted a number"},
        BadFlag{"NumberTooLarge", "--threads=99999999999999999999",
                "--threads: got \"99999999999999999999\", wanted a number"},
        BadFlag{"NoBytes", "--max-request-bytes=1TB",
                "--max-request-bytes: got \"1TB\", wanted a number of bytes "
                "such as 1048576, 64MiB or 2GiB"},
        BadFlag{"BytesOverflow", "--max-pooled-bytes=9999999999999GiB",
                "--max-pooled-bytes: got \"9999999999999GiB\", wanted a number "
                "of bytes such as 1048576, 64MiB or 2GiB"},
        BadFlag{"NoDuration", "--shutdown-grace=soon",
                "--shutdown-grace: got \"soon\", wanted a time such as 5 "
                "(seconds), 500ms or 1m30s"},
        BadFlag{"NoHttpTimeout", "--http-timeout=5sec",
                "--http-timeout: got \"5sec\", wanted a time such as 5 "
                "(seconds), 500ms or 1m30s"},
        BadFlag{"NoHttpConnections", "--http-max-connections=x",
                "--http-max-connections: got \"x\", wanted a number"},
        BadFlag{"NoOctalMode", "--unix-socket-mode=680",
                "--unix-socket-mode: got \"680\", wanted permissions in octal "
                "such as 660"},
        BadFlag{"ModeTooLarge", "--unix-socket-mode=1777",
                "--unix-socket-mode: got \"1777\", wanted permissions in octal "
                "such as 660"},
        BadFlag{"KeyAlone", "--tls-key=/k",
                "--tls-key: got it alone, wanted --tls-cert beside it"},
        BadFlag{"CertAlone", "--tls-cert=/c",
                "--tls-cert: got it alone, wanted --tls-key beside it"},
        BadFlag{"ClientCaAlone", "--tls-client-ca=/a",
                "--tls-client-ca: got it alone, wanted --tls-cert and "
                "--tls-key beside it"},
        BadFlag{"EmptyValue",
                "--tokens=", "--tokens: got no value after '=' (see --help)"},
        BadFlag{"Unknown", "--bogus", "--bogus: no such flag (see --help)"},
        BadFlag{"Port", "--port=50051",
                "--port: no such flag, did you mean --listen? (see --help)"},
        BadFlag{"Slip", "--max-request-byte=1",
                "--max-request-byte: no such flag, did you mean "
                "--max-request-bytes? (see --help)"},
        BadFlag{"Positional", "bogus",
                "got 'bogus', wanted a command or a flag (see --help)"}),
    [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace attention::server
