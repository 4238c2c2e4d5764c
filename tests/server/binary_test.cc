// The program as its users run it.
#include <gmock/gmock.h>
#include <grpc/grpc.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "attention/v1/attention.grpc.pb.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "server/process_limits.h"
#include "tests/support/http2_client.h"
#include "tests/support/http2_frames.h"
#include "tests/support/http_client.h"
#include "tests/support/long_call.h"
#include "tests/support/messages.h"
#include "tests/support/pipe.h"
#include "tests/support/raw_call.h"
#include "tests/support/sanitizers.h"
#include "tests/support/socket.h"
#include "tests/support/subprocess.h"
#include "tests/support/test_server.h"

namespace attention::testing {
namespace {

using ::testing::AnyOf;
using ::testing::HasSubstr;
using ::testing::MatchesRegex;
using ::testing::Not;
using ::testing::StartsWith;

// gRPC 1.51 may take 10 s to close down with the last channel; keep it up.
[[maybe_unused]] const bool kGrpcStaysUp = (grpc_init(), true);

Subprocess StartServer(std::vector<std::string> flags) {
  flags.insert(flags.begin(), ATTENTION_SERVER_PATH);
  return Subprocess(flags);
}

std::string AddressIn(const std::string& line) {
  const std::string prefix = "listening on ";
  EXPECT_THAT(line, StartsWith(prefix));
  return line.substr(std::min(line.size(), prefix.size()));
}

std::shared_ptr<grpc::Channel> Connect(const std::string& address) {
  return grpc::CreateChannel(address, grpc::InsecureChannelCredentials());
}

grpc::Status Compute(const std::shared_ptr<grpc::Channel>& channel,
                     const v1::ComputeAttentionRequest& request) {
  grpc::ClientContext context;
  v1::ComputeAttentionResponse response;
  return v1::AttentionService::NewStub(channel)->ComputeAttention(
      &context, request, &response);
}

std::string UnixAddress(const std::string& name) {
  return "unix:" + ::testing::TempDir() + "attention_" + name + "_" +
         std::to_string(getpid());
}

TEST(BinaryTest, TellsEveryAddressAndStopsOnSigterm) {
  const std::string path = UnixAddress("binary");
  Subprocess server = StartServer(
      {"--listen=127.0.0.1:0," + path, "--listen=127.0.0.1:0", "--threads=2"});
  for (int i = 0; i < 3; ++i) {
    const std::string address = AddressIn(server.ReadLine());
    if (i == 1) {
      EXPECT_EQ(address, path);
    } else {
      EXPECT_THAT(address, MatchesRegex("127\\.0\\.0\\.1:[1-9][0-9]*"));
    }
    EXPECT_EQ(HealthOf(Connect(address), ""), "SERVING");
    EXPECT_TRUE(Compute(Connect(address), SmallRequest()).ok());
  }
  server.Signal(SIGTERM);
  const Subprocess::Result result = server.Wait();
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_EQ(result.standard_output, "");
}

TEST(BinaryTest, TellsItsHttpAddressLast) {
  Subprocess server =
      StartServer({"--listen=127.0.0.1:0", "--http-listen=127.0.0.1:0"});
  AddressIn(server.ReadLine());
  const std::string address = AddressIn(server.ReadLine());
  EXPECT_THAT(address, MatchesRegex("http://127\\.0\\.0\\.1:[1-9][0-9]*"));
  EXPECT_EQ(HttpClient(address.substr(7)).Get("/readyz").body, "ok\n");
  server.Signal(SIGTERM);
  EXPECT_EQ(server.Wait().exit_code, 0);
}

TEST(BinaryTest, StopsOnSigint) {
  Subprocess server = StartServer({"--listen=127.0.0.1:0"});
  AddressIn(server.ReadLine());
  server.Signal(SIGINT);
  EXPECT_EQ(server.Wait().exit_code, 0);
}

TEST(BinaryTest, FinishesARunningCallBeforeItStops) {
  Subprocess server = StartServer({"--listen=127.0.0.1:0", "--threads=2"});
  const auto channel = Connect(AddressIn(server.ReadLine()));
  const v1::ComputeAttentionRequest request = LongRequest(3000);
  // Health is answered in order behind the call's first bytes.
  LongCall running(channel, request);
  EXPECT_EQ(HealthOf(channel, ""), "SERVING");
  server.Signal(SIGTERM);
  EXPECT_TRUE(running.Wait().ok()) << running.Wait().error_message();
  EXPECT_EQ(server.Wait().exit_code, 0);
}

// One query, and key and value of `keys` rows.
v1::ComputeAttentionRequest RequestOfShape(int64_t queries, int64_t keys,
                                           int64_t size, int64_t value_size) {
  v1::ComputeAttentionRequest request;
  const auto set = [](int64_t rows, int64_t columns, v1::Tensor* tensor) {
    tensor->set_data_type(v1::DATA_TYPE_FLOAT32);
    for (int64_t dim : {int64_t{1}, int64_t{1}, rows, columns}) {
      tensor->add_shape(dim);
    }
    tensor->set_data(std::string(4 * rows * columns, '\0'));
  };
  set(queries, size, request.mutable_query());
  set(keys, size, request.mutable_key());
  set(keys, value_size, request.mutable_value());
  return request;
}

// What hangs when the server stops does so for 10 s: a thread of gRPC's that
// waits for events, and that its own end would wait for.
constexpr std::chrono::seconds kBeforeGrpcWakes{6};

TEST(BinaryTest, AnIdleServerIsGoneSoonAfterLargeAnswers) {
  const v1::ComputeAttentionRequest request =
      RequestOfShape(2048, 1, 1, 1024);  // An answer of 8 MiB.
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  for (int i = 0; i < 8; ++i) {
    Subprocess server = StartServer({"--listen=127.0.0.1:0", "--threads=2"});
    const auto channel = grpc::CreateCustomChannel(
        AddressIn(server.ReadLine()), grpc::InsecureChannelCredentials(),
        arguments);
    for (int call = 0; call < 3; ++call) {
      EXPECT_TRUE(Compute(channel, request).ok());
    }
    server.Signal(SIGTERM);
    EXPECT_TRUE(server.EndsWithin(kBeforeGrpcWakes)) << "start " << i;
    const Subprocess::Result result = server.Wait();
    EXPECT_EQ(result.exit_code, 0);
    EXPECT_THAT(result.standard_error, HasSubstr("event=stop\n"));
  }
}

TEST(BinaryTest, PeersThatDoNothingDoNotKeepItFromStopping) {
  Subprocess server = StartServer(
      {"--listen=127.0.0.1:0", "--threads=2", "--shutdown-grace=100ms"});
  const std::string address = AddressIn(server.ReadLine());
  const Descriptor silent = ConnectTo(address);
  Http2Client idle(address);
  Http2Client unread(address);
  unread.Compute(RequestOfShape(2048, 1, 1, 1024).SerializeAsString());
  // The answer has begun; the rest does not fit into the peer's window.
  EXPECT_TRUE(unread.ReadFrameOf(FrameType::kData).has_value());
  server.Signal(SIGTERM);
  EXPECT_TRUE(server.EndsWithin(kBeforeGrpcWakes));
  EXPECT_EQ(server.Wait().exit_code, 0);
}

TEST(BinaryTest, ToldToStopWhileStartingItLeavesNoSocketFile) {
  const std::string address = UnixAddress("starting");
  const std::string path = address.substr(strlen("unix:"));
  for (int i = 0; i < 10; ++i) {
    Subprocess server = StartServer({"--listen=" + address});
    // It listens, but does not serve yet.
    EXPECT_TRUE(WaitUntil([&] { return std::filesystem::exists(path); }));
    server.Signal(SIGTERM);
    EXPECT_TRUE(server.EndsWithin(kBeforeGrpcWakes));
    EXPECT_EQ(server.Wait().exit_code, 0);
    EXPECT_FALSE(std::filesystem::exists(path));
  }
}

// A server that tells over HTTP how many calls it is working on.
class WatchedServer {
 public:
  explicit WatchedServer(const std::string& grace)
      : server_(
            StartServer({"--listen=127.0.0.1:0", "--http-listen=127.0.0.1:0",
                         "--threads=2", "--shutdown-grace=" + grace})),
        channel_(Connect(AddressIn(server_.ReadLine()))),
        http_address_(AddressIn(server_.ReadLine()).substr(strlen("http://"))) {
  }

  // A LongCall that it is working on.
  std::unique_ptr<LongCall> StartLongCall() {
    auto call = std::make_unique<LongCall>(channel_);
    EXPECT_TRUE(WaitUntil([&] {
      const std::string metrics =
          HttpClient(http_address_).Get("/metrics").body;
      return absl::StrContains(metrics, "\nattention_running_calls 1\n");
    }));
    return call;
  }

  Subprocess& server() { return server_; }
  const std::shared_ptr<grpc::Channel>& channel() const { return channel_; }

 private:
  Subprocess server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::string http_address_;
};

TEST(BinaryTest, ASecondSignalEndsRunningCalls) {
  WatchedServer watched("1h");
  const auto running = watched.StartLongCall();
  watched.server().Signal(SIGTERM);
  // Until the first is taken, a second of the same kind would be lost in it.
  EXPECT_TRUE(
      WaitUntil([&] { return HealthOf(watched.channel(), "") != "SERVING"; }));
  watched.server().Signal(SIGTERM);
  EXPECT_EQ(watched.server().Wait().exit_code, 0);
  EXPECT_FALSE(running->Wait().ok());
}

TEST(BinaryTest, TheGraceEndsRunningCalls) {
  WatchedServer watched("50ms");
  const auto running = watched.StartLongCall();
  watched.server().Signal(SIGTERM);
  EXPECT_EQ(watched.server().Wait().exit_code, 0);
  EXPECT_FALSE(running->Wait().ok());
}

TEST(BinaryTest, LogsALineForEachCallWithoutPayloads) {
  Subprocess server =
      StartServer({"--listen=127.0.0.1:0", "--log-level=debug"});
  const auto channel = Connect(AddressIn(server.ReadLine()));
  v1::ComputeAttentionRequest request = SmallRequest();
  EXPECT_TRUE(Compute(channel, request).ok());
  request.clear_key();
  EXPECT_FALSE(Compute(channel, request).ok());
  server.Signal(SIGTERM);
  const std::string log = server.Wait().standard_error;
  EXPECT_THAT(log, HasSubstr("level=debug event=call rpc=ComputeAttention "
                             "code=OK request_bytes=252 "));
  EXPECT_THAT(log, HasSubstr("query=\"(1, 2, 3, 4)\" key=\"(1, 1, 5, 4)\" "
                             "value=\"(1, 1, 5, 2)\" wait_us="));
  EXPECT_THAT(log, HasSubstr("level=info event=call rpc=ComputeAttention "
                             "code=INVALID_ARGUMENT "));
  EXPECT_THAT(log, HasSubstr("error=\"key: missing\""));
}

// A bound on what takes milliseconds, for a busy machine; what hangs does so
// for ever.
constexpr std::chrono::seconds kSoon{60};

// Sends `count` requests of two bytes that are none. False if one is not
// answered in time.
bool SendBadRequests(const std::shared_ptr<grpc::Channel>& channel, int count) {
  for (int i = 0; i < count; ++i) {
    const RawAnswer answer =
        RawUnaryCall(channel, "/attention.v1.AttentionService/ComputeAttention",
                     "\xff\xff", std::chrono::system_clock::now() + kSoon);
    if (answer.status.error_code() != grpc::StatusCode::INVALID_ARGUMENT) {
      return false;
    }
  }
  return true;
}

TEST(BinaryTest, ServesAndStopsWhenNobodyReadsItsOutput) {
  Pipe output, error;
  output.Fill();
  error.Fill();
  // A line for each bad request, so that the log's buffer fills as well.
  const std::string address = UnixAddress("unread");
  Subprocess server({ATTENTION_SERVER_PATH, "--listen=" + address,
                     "--log-lines-per-second=0", "--log-buffer-bytes=64KiB"},
                    {output.writer(), error.writer()});
  const auto channel = Connect(address);
  ASSERT_TRUE(
      channel->WaitForConnected(std::chrono::system_clock::now() + kSoon));
  ASSERT_TRUE(SendBadRequests(channel, 2000));
  EXPECT_TRUE(Compute(channel, SmallRequest()).ok());
  EXPECT_EQ(HealthOf(channel, ""), "SERVING");
  server.Signal(SIGTERM);
  ASSERT_TRUE(server.EndsWithin(kSoon));
  EXPECT_EQ(server.Wait().exit_code, 0);
}

TEST(BinaryTest, TellsHowManyLinesItDropped) {
  Pipe error;
  const size_t filler = error.Fill();
  Subprocess server({ATTENTION_SERVER_PATH, "--listen=127.0.0.1:0",
                     "--log-lines-per-second=0", "--log-buffer-bytes=64KiB"},
                    {.standard_error = error.writer()});
  const auto channel = Connect(AddressIn(server.ReadLine()));
  ASSERT_TRUE(SendBadRequests(channel, 2000));
  error.ReadAll(filler);
  EXPECT_THAT(error.ReadUntil("event=log_dropped count="),
              HasSubstr("event=start "));
  server.Signal(SIGTERM);
  EXPECT_THAT(error.ReadUntil("event=stop"), HasSubstr("event=shutdown "));
  EXPECT_EQ(server.Wait().exit_code, 0);
}

TEST(BinaryTest, LivesOnWhenTheReaderOfItsOutputGoesAway) {
  Pipe error;
  Subprocess server({ATTENTION_SERVER_PATH, "--listen=127.0.0.1:0"},
                    {.standard_error = error.writer()});
  const auto channel = Connect(AddressIn(server.ReadLine()));
  error.ReadUntil("event=start");
  error.CloseReader();
  ASSERT_TRUE(SendBadRequests(channel, 100));
  EXPECT_TRUE(Compute(channel, SmallRequest()).ok());
  server.Signal(SIGTERM);
  ASSERT_TRUE(server.EndsWithin(kSoon));
  EXPECT_EQ(server.Wait().exit_code, 0);
}

TEST(BinaryTest, NoConnectionTakesThePlaceOfAStreamThatIsClosed) {
  const std::string address = UnixAddress("closed");
  Subprocess server({"/bin/sh", "-c",
                     absl::StrCat("exec ", ATTENTION_SERVER_PATH,
                                  " --listen=", address, " 0<&- 1>&- 2>&-")});
  const auto channel = Connect(address);
  ASSERT_TRUE(
      channel->WaitForConnected(std::chrono::system_clock::now() + kSoon));
  for (int fd = 0; fd < 3; ++fd) {
    const std::string name = std::filesystem::read_symlink(
        absl::StrCat("/proc/", server.pid(), "/fd/", fd));
    // Libraries open an eventfd before main() is reached.
    EXPECT_THAT(name, AnyOf("/dev/null", "anon_inode:[eventfd]"));
  }
  server.Signal(SIGTERM);
  EXPECT_EQ(server.Wait().exit_code, 0);
}

TEST(BinaryTest, LogsFewOfManyBadRequestsAndTellsOfTheOthers) {
  Subprocess server = StartServer({"--listen=127.0.0.1:0"});
  const auto channel = Connect(AddressIn(server.ReadLine()));
  const absl::Time start = absl::Now();
  ASSERT_TRUE(SendBadRequests(channel, 500));
  const int64_t seconds = absl::ToInt64Seconds(absl::Now() - start) + 1;
  server.Signal(SIGTERM);
  const std::string log = server.Wait().standard_error;
  int64_t lines = 0, suppressed = 0;
  for (absl::string_view line : absl::StrSplit(log, '\n')) {
    lines += absl::StrContains(line, "event=call ");
    const std::vector<absl::string_view> parts = absl::StrSplit(
        line, "kind=call/ComputeAttention/INVALID_ARGUMENT count=");
    int64_t count;
    if (parts.size() == 2 && absl::SimpleAtoi(parts[1], &count)) {
      suppressed += count;
    }
  }
  EXPECT_GE(lines, 10);
  EXPECT_LE(lines, 10 * seconds);
  EXPECT_EQ(lines + suppressed, 500);
}

// A start that must fail, run by `sh` under a limit.
struct FailingStart {
  const char* name;
  const char* limit;
  const char* flag;
  const char* error;
};

class FailingStartTest : public ::testing::TestWithParam<FailingStart> {};

TEST_P(FailingStartTest, SaysWhyOnOneLine) {
  if (kAddressSanitizer && absl::StrContains(GetParam().limit, "-v")) {
    GTEST_SKIP() << "the address sanitizer needs terabytes of address space";
  }
  if (kAddressSanitizer && absl::StrContains(GetParam().limit, "-n 4")) {
    GTEST_SKIP() << "UBSan's check of types opens a pipe, or sees errors";
  }
  const std::string command =
      absl::StrCat(GetParam().limit, "; exec ", ATTENTION_SERVER_PATH,
                   " --listen=127.0.0.1:0 ", GetParam().flag);
  Subprocess server({"/bin/sh", "-c", command});
  EXPECT_TRUE(server.EndsWithin(kSoon));
  server.Signal(SIGKILL);
  const Subprocess::Result result = server.Wait();
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_EQ(result.standard_output, "");
  EXPECT_THAT(result.standard_error, StartsWith("attention_server: "));
  EXPECT_THAT(result.standard_error, HasSubstr(GetParam().error));
  EXPECT_EQ(std::count(result.standard_error.begin(),
                       result.standard_error.end(), '\n'),
            1);
}

INSTANTIATE_TEST_SUITE_P(
    Binary, FailingStartTest,
    ::testing::Values(FailingStart{"NoMemory", "ulimit -v 150000",
                                   "--threads=2", "too little address space: "},
                      FailingStart{"NoMemoryForThreads", "ulimit -v 800000",
                                   "--threads=64",
                                   "or lower --threads, which is 64"},
                      FailingStart{"NoMemoryForManyThreads",
                                   "ulimit -v 8000000", "--threads=1024",
                                   "or lower --threads, which is 1024"},
                      FailingStart{"FewDescriptors", "ulimit -n 16", "",
                                   "too few file descriptors: "},
                      FailingStart{"NoDescriptors", "exec 3>&-; ulimit -n 4",
                                   "", "too few file descriptors: "}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(BinaryTest, LowersItsMemoryToTheAddressSpaceThereIs) {
  if (kAddressSanitizer) {
    GTEST_SKIP() << "the address sanitizer needs terabytes of address space";
  }
  Subprocess server({"/bin/sh", "-c",
                     "ulimit -v 1200000; exec \"$0\" --listen=127.0.0.1:0 "
                     "--threads=2 --http-listen=127.0.0.1:0",
                     ATTENTION_SERVER_PATH});
  const auto channel = Connect(AddressIn(server.ReadLine()));
  const std::string http = AddressIn(server.ReadLine());
  grpc::ClientContext context;
  v1::GetCapabilitiesResponse limits;
  ASSERT_TRUE(v1::AttentionService::NewStub(channel)
                  ->GetCapabilities(&context, {}, &limits)
                  .ok());
  EXPECT_LT(limits.max_request_bytes(), int64_t{320} << 20);
  EXPECT_GE(limits.max_request_bytes(), int64_t{100} << 20);
  EXPECT_TRUE(Compute(channel, SmallRequest()).ok());
  const std::string metrics = HttpClient(http.substr(7)).Get("/metrics").body;
  server.Signal(SIGTERM);
  const Subprocess::Result result = server.Wait();
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_THAT(result.standard_error,
              HasSubstr("level=warning event=memory_lowered "
                        "max_inflight_bytes="));
  EXPECT_THAT(result.standard_error,
              HasSubstr(absl::StrCat(
                  " max_request_bytes=", limits.max_request_bytes(), " ")));
  // What it says is what it keeps to.
  EXPECT_FALSE(absl::StrContains(
      metrics, "\nattention_memory_limit_bytes 2147483648\n"));
}

// Lets the process take `bytes` more of its address space.
void LimitGrowth(pid_t pid, int64_t bytes) {
  int64_t pages = 0;
  std::ifstream(absl::StrCat("/proc/", pid, "/statm")) >> pages;
  ASSERT_GT(pages, 0);
  rlimit limit;
  limit.rlim_cur = limit.rlim_max = pages * sysconf(_SC_PAGESIZE) + bytes;
  ASSERT_EQ(prlimit(pid, RLIMIT_AS, &limit, nullptr), 0);
}

TEST(BinaryTest, ACallForWhichThereIsNoMemoryEndsAlone) {
  if (kAddressSanitizer) {
    GTEST_SKIP() << "the address sanitizer needs terabytes of address space";
  }
  struct Case {
    const char* what;
    v1::ComputeAttentionRequest request;
    int64_t growth;
  };
  const Case cases[] = {
      // Nearly as much as the answer takes, so that nothing else lacks any.
      {"the answer has 256 MiB", RequestOfShape(1 << 16, 1, 1, 1 << 10),
       240 << 20},
      // The message fits, its tensors copied out of it do not.
      {"the key has 96 MiB", RequestOfShape(1, 6144, 4096, 1), 168 << 20}};
  for (const Case& c : cases) {
    SCOPED_TRACE(c.what);
    Subprocess server = StartServer({"--listen=127.0.0.1:0", "--threads=2"});
    const auto channel = Connect(AddressIn(server.ReadLine()));
    ASSERT_TRUE(Compute(channel, SmallRequest()).ok());
    ASSERT_NO_FATAL_FAILURE(LimitGrowth(server.pid(), c.growth));
    const grpc::Status status = Compute(channel, c.request);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
    const Details details = DetailsOf(status);
    EXPECT_EQ(details.reason, "OUT_OF_MEMORY");
    EXPECT_TRUE(details.retry_delay.has_value());
    EXPECT_TRUE(Compute(channel, SmallRequest()).ok());
    server.Signal(SIGTERM);
    const Subprocess::Result result = server.Wait();
    EXPECT_EQ(result.exit_code, 0) << result.standard_error;
  }
}

TEST(BinaryTest, HasNoMoreThreadsThanItTriesToStart) {
  for (const int threads : {1, 2, 64}) {
    Subprocess server =
        StartServer({"--listen=127.0.0.1:0", "--http-listen=127.0.0.1:0",
                     absl::StrCat("--threads=", threads)});
    const auto channel = Connect(AddressIn(server.ReadLine()));
    EXPECT_TRUE(Compute(channel, SmallRequest()).ok());
    const auto tasks = std::filesystem::directory_iterator(
        absl::StrCat("/proc/", server.pid(), "/task"));
    const int64_t count = std::distance(begin(tasks), end(tasks));
    server::Options options;
    options.threads = threads;
    options.http_listen = "127.0.0.1:0";
    const int64_t needed = server::ThreadsNeeded(options);
    EXPECT_LE(count, needed);
    // What gRPC starts under load only.
    const int64_t growth = 4 * std::thread::hardware_concurrency() + 8;
    EXPECT_GE(count, needed - growth);
    server.Signal(SIGTERM);
    EXPECT_EQ(server.Wait().exit_code, 0);
  }
}

bool HasBytes(const Descriptor& socket) {
  char byte;
  return recv(socket.get(), &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 1;
}

TEST(BinaryTest, ServesAgainAfterDescriptorsRanOut) {
  Subprocess server({"/bin/sh", "-c",
                     "ulimit -n 64 && exec \"$0\" --listen=127.0.0.1:0",
                     ATTENTION_SERVER_PATH});
  const std::string address = AddressIn(server.ReadLine());
  std::vector<Descriptor> peers(100);
  for (Descriptor& peer : peers) {
    peer = ConnectTo(address);
    Send(peer, Http2Start());
  }
  // The server speaks first to those that it took.
  EXPECT_TRUE(WaitUntil([&] {
    return std::count_if(peers.begin(), peers.end(), HasBytes) == 48;
  }));
  // Behind all of them in the queue: an answer means that each had its turn.
  std::thread close_all([&] {
    for (Descriptor& peer : peers) {
      char byte;
      EXPECT_EQ(recv(peer.get(), &byte, 1, 0), 1);
      peer = Descriptor();
    }
  });
  EXPECT_EQ(HealthOf(Connect(address), ""), "SERVING");
  close_all.join();
  server.Signal(SIGTERM);
  const Subprocess::Result result = server.Wait();
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_THAT(result.standard_error,
              HasSubstr("event=accept_stopped reason=\"max_connections\" "
                        "open_connections=48 max_connections=48 "
                        "descriptor_limit=64"));
}

int64_t ResidentBytes(pid_t pid) {
  std::ifstream file(absl::StrCat("/proc/", pid, "/statm"));
  int64_t all = 0, resident = 0;
  file >> all >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

TEST(BinaryTest, GivesBackTheMemoryOfCallsThatTransferNothing) {
  if (kAddressSanitizer)
    GTEST_SKIP() << "sanitizers have allocators of their own";
  Subprocess server = StartServer({"--listen=127.0.0.1:0"});
  const std::string address = AddressIn(server.ReadLine());
  constexpr int64_t kMuch = int64_t{16} << 20;
  // Memory grows a little with the first peer.
  EXPECT_EQ(HealthOf(Connect(address), ""), "SERVING");
  const int64_t before = ResidentBytes(server.pid());
  {
    // Calls that are open, with large headers, and no message.
    HeaderList list =
        GrpcHeaders("/attention.v1.AttentionService/GetCapabilities");
    for (int i = 0; i < 50; ++i) {
      list.emplace_back(absl::StrCat("k", i), std::string(120, 'v'));
    }
    const std::string headers = Coded(list);
    // No more on a connection than it may leave unexplained.
    std::vector<Descriptor> peers(80);
    for (Descriptor& peer : peers) {
      peer = ConnectTo(address);
      Send(peer, Http2Start());
      for (uint32_t i = 0; i < 60; ++i) {
        Send(peer,
             MakeFrame(FrameType::kHeaders, kEndHeaders, 2 * i + 1, headers));
      }
    }
    EXPECT_TRUE(WaitUntil(
        [&] { return ResidentBytes(server.pid()) >= before + 2 * kMuch; }));
  }
  EXPECT_TRUE(
      WaitUntil([&] { return ResidentBytes(server.pid()) <= before + kMuch; }));
  server.Signal(SIGTERM);
  EXPECT_EQ(server.Wait().exit_code, 0);
}

TEST(BinaryTest, RefusesAPortInUse) {
  Subprocess first = StartServer({"--listen=127.0.0.1:0"});
  const std::string address = AddressIn(first.ReadLine());
  Subprocess second = StartServer({"--listen=" + address});
  const Subprocess::Result result = second.Wait();
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_EQ(result.standard_output, "");
  EXPECT_EQ(result.standard_error,
            "attention_server: --listen: cannot listen on \"" + address +
                "\": in use\n");
}

TEST(BinaryTest, RefusesBadFlags) {
  Subprocess server = StartServer({"--threads=0"});
  const Subprocess::Result result = server.Wait();
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_EQ(result.standard_output, "");
  EXPECT_EQ(result.standard_error,
            "attention_server: --threads: got 0, wanted 1 to 1024\n");
}

TEST(BinaryTest, TellsItsVersion) {
  const Subprocess::Result result = StartServer({"--version"}).Wait();
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_THAT(result.standard_output,
              MatchesRegex("attention_server [0-9.]+\n"));
}

}  // namespace
}  // namespace attention::testing
