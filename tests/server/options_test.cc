#include "server/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "absl/strings/str_cat.h"
#include "server/connections/limits.h"

namespace attention::server {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::StartsWith;

TEST(OptionsTest, DefaultsAreValid) {
  EXPECT_THAT(Validate(Options()), IsEmpty());
  EXPECT_THAT(Options().listen, ElementsAre("127.0.0.1:50051"));
}

struct BadOption {
  const char* name;
  std::function<void(Options&)> change;
  std::string error;
};

class BadOptionTest : public ::testing::TestWithParam<BadOption> {};

TEST_P(BadOptionTest, IsRefusedNamingTheFlag) {
  Options options;
  GetParam().change(options);
  EXPECT_THAT(Validate(options), ElementsAre(GetParam().error));
}

std::function<void(Options&)> Listen(std::vector<std::string> addresses) {
  return [=](Options& options) { options.listen = addresses; };
}

std::function<void(Options&)> Share(std::string address) {
  return [=](Options& options) { options.shared_memory = address; };
}

std::function<void(Options&)> HttpListen(std::string address) {
  return [=](Options& options) { options.http_listen = address; };
}

constexpr char kHttpAddressForms[] =
    "wanted host:port with a port of 0 to 65535; an IPv6 address in brackets";

constexpr char kAddressForms[] =
    "wanted host:port with a port of 0 to 65535, unix:path or "
    "unix-abstract:name";

std::string ConnectionsError(int64_t got) {
  return absl::StrCat("--max-connections: got ", got, ", wanted 1 to ",
                      MostConnections(), " (of ", DescriptorLimit(),
                      " descriptors, see ulimit -n)");
}

INSTANTIATE_TEST_SUITE_P(
    Options, BadOptionTest,
    ::testing::Values(
        BadOption{"NoAddress", Listen({}),
                  "--listen: got none, wanted at least one address"},
        BadOption{"NoPort", Listen({"localhost"}),
                  std::string("--listen: got \"localhost\", ") + kAddressForms},
        BadOption{"NoHost", Listen({":80"}),
                  std::string("--listen: got \":80\", ") + kAddressForms},
        BadOption{"PortTooLarge", Listen({"a:65536"}),
                  std::string("--listen: got \"a:65536\", ") + kAddressForms},
        BadOption{"BareIPv6", Listen({"::1:80"}),
                  "--listen: got \"::1:80\", wanted an IPv6 address in "
                  "brackets"},
        BadOption{"Scheme", Listen({"http://localhost:80"}),
                  "--listen: got \"http://localhost:80\", wanted host:port "
                  "without a scheme"},
        BadOption{"NoPath", Listen({"unix:"}),
                  "--listen: got \"unix:\", wanted a path"},
        BadOption{"LongPath", Listen({"unix:" + std::string(108, 'a')}),
                  "--listen: got \"unix:" + std::string(108, 'a') +
                      "\", wanted a path of at most 107 bytes"},
        BadOption{"Twice", Listen({"a:1", "b:1", "a:1"}),
                  "--listen: got \"a:1\" twice"},
        BadOption{"SharedOnAPort", Share("127.0.0.1:1"),
                  "--shared-memory: got \"127.0.0.1:1\", wanted unix: and an "
                  "absolute path without %"},
        BadOption{"SharedOnARelativePath", Share("unix:a"),
                  "--shared-memory: got \"unix:a\", wanted unix: and an "
                  "absolute path without %"},
        BadOption{"SharedOnAnEncodedPath", Share("unix:/a%20b"),
                  "--shared-memory: got \"unix:/a%20b\", wanted unix: and an "
                  "absolute path without %"},
        BadOption{"SharedOnALongPath", Share("unix:/" + std::string(107, 'a')),
                  "--shared-memory: got \"unix:/" + std::string(107, 'a') +
                      "\", wanted a path of at most 107 bytes"},
        BadOption{"SharedWhereItListens",
                  [](Options& o) {
                    o.listen = {"unix:/a"};
                    o.shared_memory = "unix:/a";
                  },
                  "--shared-memory: got \"unix:/a\", wanted another than "
                  "--listen's"},
        BadOption{"LittleToShare", [](Options& o) { o.max_shared_bytes = 9; },
                  "--max-shared-bytes: got 9, wanted 1048576 to "
                  "1125899906842624"},
        BadOption{"NoHttpPort", HttpListen("localhost"),
                  std::string("--http-listen: got \"localhost\", ") +
                      kHttpAddressForms},
        BadOption{"HttpOnAPath", HttpListen("unix:/a:1"),
                  std::string("--http-listen: got \"unix:/a:1\", ") +
                      kHttpAddressForms},
        BadOption{
            "HttpBareIPv6", HttpListen("::1:80"),
            std::string("--http-listen: got \"::1:80\", ") + kHttpAddressForms},
        BadOption{"NoHttpConnections",
                  [](Options& o) { o.http_max_connections = 0; },
                  "--http-max-connections: got 0, wanted 1 to 10000"},
        BadOption{"ShortHttpTimeout",
                  [](Options& o) { o.http_timeout = absl::Milliseconds(99); },
                  "--http-timeout: got 99ms, wanted 100ms to 1h"},
        BadOption{"SmallHttpBodies",
                  [](Options& o) { o.http_max_body_bytes = 1023; },
                  "--http-max-body-bytes: got 1023, wanted 1024 to 1073741824"},
        BadOption{
            "NoOrigin",
            [](Options& o) { o.http_allow_origins = {"*", "https://a/b"}; },
            "--http-allow-origin: got \"https://a/b\", wanted an origin "
            "such as https://a.example:8443, or *"},
        BadOption{"NoThreads", [](Options& o) { o.threads = 0; },
                  "--threads: got 0, wanted 1 to 1024"},
        BadOption{"ManyThreads", [](Options& o) { o.threads = 1025; },
                  "--threads: got 1025, wanted 1 to 1024"},
        BadOption{"SmallRequests", [](Options& o) { o.max_request_bytes = 9; },
                  "--max-request-bytes: got 9, wanted 1024 to 2146435071"},
        BadOption{
            "LargeResponses",
            [](Options& o) { o.max_response_bytes = int64_t{1} << 31; },
            "--max-response-bytes: got 2147483648, wanted 1024 to 2146435071"},
        BadOption{"SmallChunks", [](Options& o) { o.max_chunk_bytes = 1023; },
                  "--max-chunk-bytes: got 1023, wanted 1024 to 2146435071"},
        BadOption{"SmallBudget",
                  [](Options& o) {
                    o.max_request_bytes = 2000;
                    o.max_response_bytes = 3000;
                    o.max_inflight_bytes = 6999;
                  },
                  "--max-inflight-bytes: got 6999, wanted 7000 "
                  "(twice max-request-bytes and max-response-bytes together) "
                  "to "
                  "1125899906842624"},
        BadOption{"NegativePool", [](Options& o) { o.max_pooled_bytes = -1; },
                  "--max-pooled-bytes: got -1, wanted 0 to 1125899906842624"},
        BadOption{"NoHeadSize", [](Options& o) { o.max_head_size = 0; },
                  "--max-head-size: got 0, wanted 1 to 1048576"},
        BadOption{"NoHeads", [](Options& o) { o.max_heads = 0; },
                  "--max-heads: got 0, wanted 1 to 1048576"},
        BadOption{"LargeBatch", [](Options& o) { o.max_batch = 1 << 20; },
                  "--max-batch: got 1048576, wanted 1 to 1048575"},
        BadOption{"NoBatchHeads", [](Options& o) { o.max_batch_heads = 0; },
                  "--max-batch-heads: got 0, wanted 1 to 16777216"},
        BadOption{"NoWork", [](Options& o) { o.max_work = 0; },
                  "--max-work: got 0, wanted 1 to 4611686018427387904"},
        BadOption{"LongQueue",
                  [](Options& o) { o.max_queue = absl::Hours(25); },
                  "--max-queue: got 25h, wanted 0 to 24h"},
        BadOption{"NoDeadline",
                  [](Options& o) { o.default_deadline = absl::ZeroDuration(); },
                  "--default-deadline: got 0, wanted 1s to 24h"},
        BadOption{"NoUploadRate", [](Options& o) { o.min_upload_rate = 0; },
                  "--min-upload-rate: got 0, wanted 1 to 1099511627776"},
        BadOption{"NoAnswerRate", [](Options& o) { o.min_answer_rate = -1; },
                  "--min-answer-rate: got -1, wanted 1 to 1099511627776"},
        BadOption{"NoStall",
                  [](Options& o) { o.stall_grace = absl::Milliseconds(99); },
                  "--stall-grace: got 99ms, wanted 100ms to 1h"},
        BadOption{"SmallHeaders", [](Options& o) { o.max_header_bytes = 8191; },
                  "--max-header-bytes: got 8191, wanted 8192 to 1048576"},
        BadOption{"LargeHeaders",
                  [](Options& o) { o.max_header_bytes = (1 << 20) + 1; },
                  "--max-header-bytes: got 1048577, wanted 8192 to 1048576"},
        BadOption{
            "PingsOfInfinity",
            [](Options& o) { o.min_ping_interval = absl::InfiniteDuration(); },
            "--min-ping-interval: got inf, wanted 0 to 1h"},
        BadOption{"NoConnections", [](Options& o) { o.max_connections = 0; },
                  ConnectionsError(0)},
        BadOption{"MoreConnectionsThanDescriptors",
                  [](Options& o) { o.max_connections = MostConnections() + 1; },
                  ConnectionsError(MostConnections() + 1)},
        BadOption{"MoreConnectionsThanHttpLeaves",
                  [](Options& o) {
                    o.http_listen = "127.0.0.1:0";
                    o.http_max_connections = 100;
                    o.max_connections = MostConnections(100) + 1;
                  },
                  absl::StrCat("--max-connections: got ",
                               MostConnections(100) + 1, ", wanted 1 to ",
                               MostConnections(100), " (of ", DescriptorLimit(),
                               " descriptors, see ulimit -n, and "
                               "beside --http-max-connections=100)")},
        BadOption{"NoHandshake",
                  [](Options& o) { o.handshake_timeout = absl::Seconds(0); },
                  "--handshake-timeout: got 0, wanted 1ms to 1h"},
        BadOption{
            "EndlessHandshake",
            [](Options& o) { o.handshake_timeout = absl::InfiniteDuration(); },
            "--handshake-timeout: got inf, wanted 1ms to 1h"},
        BadOption{"NoIdleTime",
                  [](Options& o) { o.max_connection_idle = absl::Seconds(0); },
                  "--max-connection-idle: got 0, wanted 1ms to 576h or inf"},
        BadOption{"NegativeAge",
                  [](Options& o) { o.max_connection_age = absl::Seconds(-1); },
                  "--max-connection-age: got -1s, wanted 1ms to 576h or inf"},
        BadOption{
            "LongAgeGrace",
            [](Options& o) { o.max_connection_age_grace = absl::Hours(577); },
            "--max-connection-age-grace: got 577h, wanted 1ms to 576h or "
            "inf"},
        BadOption{"NegativeDelay",
                  [](Options& o) { o.drain_delay = absl::Seconds(-1); },
                  "--drain-delay: got -1s, wanted 0 to 1h"},
        BadOption{"LongGrace",
                  [](Options& o) { o.shutdown_grace = absl::Minutes(61); },
                  "--shutdown-grace: got 1h1m, wanted 0 to 1h"},
        BadOption{"LogLevel", [](Options& o) { o.log_level = "loud"; },
                  "--log-level: got \"loud\", wanted trace, debug, info, "
                  "warning, error or off"},
        BadOption{"SmallLogBuffer", [](Options& o) { o.log_buffer_bytes = 0; },
                  "--log-buffer-bytes: got 0, wanted 65536 to 1073741824"},
        BadOption{"NegativeLogLines",
                  [](Options& o) { o.log_lines_per_second = -1; },
                  "--log-lines-per-second: got -1, wanted 0 to 1000000"}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(OptionsTest, EveryErrorIsTold) {
  Options options;
  options.threads = 0;
  options.log_level = "";
  EXPECT_THAT(Validate(options), ElementsAre(StartsWith("--threads: "),
                                             StartsWith("--log-level: ")));
}

TEST(OptionsTest, GoodAddresses) {
  Options options;
  options.listen = {"127.0.0.1:0",       "127.0.0.1:0", "[::1]:0",
                    "localhost:1",       "unix:/a/b",   "unix:relative",
                    "unix-abstract:name"};
  EXPECT_THAT(Validate(options), IsEmpty());
}

}  // namespace
}  // namespace attention::server
