#include "server/shared_memory/region_socket.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <spdlog/details/null_mutex.h>
#include <spdlog/sinks/base_sink.h>
#include <spdlog/sinks/ostream_sink.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <future>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/auth/token_file.h"
#include "server/log_limiter.h"
#include "tests/support/certificates.h"
#include "tests/support/shared_memory.h"
#include "tests/support/test_server.h"

namespace attention::server {
namespace {

using attention::testing::MappedMemory;
using attention::testing::NewMemory;
using attention::testing::RegionClient;
using attention::testing::TestFolder;
using attention::testing::WaitUntil;

class RegionSocketTest : public ::testing::Test {
 protected:
  void Start(RegionSocketSettings settings = {}) {
    settings.address = address_;
    settings.max_connection_bytes = 10000;
    auto socket =
        RegionSocket::Start(settings, regions_, authenticator_, log_, limiter_);
    ASSERT_TRUE(socket.ok()) << socket.status();
    socket_ = *std::move(socket);
  }

  static void ExpectFailure(
      const std::optional<v1::SharedMemoryResponse>& response,
      absl::StatusCode code, const std::string& reason,
      const std::string& message) {
    ASSERT_TRUE(response.has_value());
    EXPECT_EQ(response->code(), static_cast<int>(code));
    EXPECT_EQ(response->reason(), reason);
    EXPECT_EQ(response->message(), message);
    EXPECT_EQ(response->region(), "");
  }

  const TestFolder folder_;
  const std::string path_ = folder_.Path("regions");
  const std::string address_ = "unix:" + path_;
  std::ostringstream logged_;
  spdlog::logger log_{
      "test", std::make_shared<spdlog::sinks::ostream_sink_mt>(logged_)};
  LogLimiter limiter_{log_, 3};
  RegionTable regions_{20000};
  Authenticator authenticator_{false};
  std::unique_ptr<RegionSocket> socket_;
};

TEST_F(RegionSocketTest, RegistersAndDrops) {
  Start();
  RegionClient client(address_);
  const MappedMemory memory(5000);
  const std::string id = client.Share(memory);
  ASSERT_EQ(id.size(), kRegionIdBytes);
  const RegionPtr region = regions_.Find(id, 0);
  ASSERT_NE(region, nullptr);
  memory.bytes()[0] = std::byte{9};
  EXPECT_EQ(region->data()[0], std::byte{9});

  const auto dropped = client.Drop(id);
  ASSERT_TRUE(dropped.has_value());
  EXPECT_EQ(dropped->code(), 0);
  EXPECT_EQ(dropped->region(), id);
  EXPECT_EQ(regions_.Find(id, 0), nullptr);
  ExpectFailure(client.Drop(id), absl::StatusCode::kNotFound, "REGION_UNKNOWN",
                "drop_region.region: got a region that is not known here, "
                "wanted one that the caller has registered and that is still "
                "there");
}

TEST_F(RegionSocketTest, ForgetsTheRegionsOfAConnectionThatEnds) {
  Start();
  RegionClient client(address_);
  RegionClient other(address_);
  const MappedMemory memory(5000);
  const std::string id = client.Share(memory);
  const std::string others = other.Share(memory);
  // Nobody else may drop it.
  EXPECT_EQ(other.Drop(id)->reason(), "REGION_UNKNOWN");
  client.Close();
  EXPECT_TRUE(WaitUntil([&] { return socket_->connections() == 1; }));
  EXPECT_EQ(regions_.Find(id, 0), nullptr);
  EXPECT_NE(regions_.Find(others, 0), nullptr);
  EXPECT_EQ(regions_.bytes(), 5000);
}

TEST_F(RegionSocketTest, ForgetsAllWhenItEnds) {
  Start();
  RegionClient client(address_);
  client.Share(MappedMemory(5000));
  socket_.reset();
  EXPECT_EQ(regions_.bytes(), 0);
  EXPECT_TRUE(client.WaitForEnd());
  EXPECT_NE(access(path_.c_str(), F_OK), 0);
}

TEST_F(RegionSocketTest, WantsOneDescriptor) {
  Start();
  RegionClient client(address_);
  const Descriptor memory = NewMemory(10);
  const int fd = memory.get();
  ExpectFailure(client.Register({}), absl::StatusCode::kInvalidArgument,
                "MALFORMED_MESSAGE", "descriptor: got 0, wanted one");
  ExpectFailure(client.Register({fd, fd}), absl::StatusCode::kInvalidArgument,
                "MALFORMED_MESSAGE", "descriptor: got 2, wanted one");
  ExpectFailure(client.Register(std::vector<int>(253, fd)),
                absl::StatusCode::kInvalidArgument, "MALFORMED_MESSAGE",
                "descriptor: got 253, wanted one");
  // It goes on.
  EXPECT_EQ(client.Register({fd})->code(), 0);
}

// None is left open, whatever came with what.
TEST_F(RegionSocketTest, ClosesEveryDescriptor) {
  Start();
  const auto open_descriptors = [] {
    int count = 0;
    for (int fd = 0; fd < 1024; ++fd) count += fcntl(fd, F_GETFD) >= 0 ? 1 : 0;
    return count;
  };
  RegionClient client(address_);
  const Descriptor memory = NewMemory(10);
  const std::vector<int> some = {memory.get(), memory.get(), memory.get()};
  EXPECT_TRUE(client.Register({memory.get()}).has_value());
  const int before = open_descriptors();
  EXPECT_TRUE(client.Register({memory.get()}).has_value());
  EXPECT_TRUE(client.Register(some).has_value());
  EXPECT_TRUE(client.Register(std::vector<int>(100, memory.get())).has_value());
  EXPECT_TRUE(client.Send("no message", some).has_value());
  EXPECT_TRUE(client.Send(std::string(9000, '\0'), some).has_value());
  // What was here before may be closed meanwhile.
  EXPECT_LE(open_descriptors(), before);
}

TEST_F(RegionSocketTest, SaysWhatIsWrongWithTheMemory) {
  Start();
  RegionClient client(address_);
  ExpectFailure(client.Register({NewMemory(10, 0).get()}),
                absl::StatusCode::kInvalidArgument, "MALFORMED_MESSAGE",
                "descriptor: got memory without F_SEAL_SHRINK, wanted a memfd "
                "that can not become smaller");
  ExpectFailure(client.Register({NewMemory(10001).get()}),
                absl::StatusCode::kResourceExhausted, "RESOURCE_EXHAUSTED",
                "got 10001 bytes, wanted at most 10000 more bytes of one "
                "connection");
  EXPECT_EQ(regions_.bytes(), 0);
}

TEST_F(RegionSocketTest, BoundsWhatAConnectionHas) {
  Start({.max_connection_regions = 2});
  RegionClient client(address_);
  const std::string first = client.Share(MappedMemory(6000));
  ExpectFailure(client.Register({NewMemory(4001).get()}),
                absl::StatusCode::kResourceExhausted, "RESOURCE_EXHAUSTED",
                "got 4001 bytes, wanted at most 4000 more bytes of one "
                "connection");
  client.Share(MappedMemory(4000));
  ExpectFailure(client.Register({NewMemory(1).get()}),
                absl::StatusCode::kResourceExhausted, "RESOURCE_EXHAUSTED",
                "got one more region, wanted at most 2 of one connection");
  // Others have limits of their own.
  RegionClient(address_).Share(MappedMemory(10000));
  client.Drop(first);
  client.Share(MappedMemory(6000));
}

TEST_F(RegionSocketTest, RefusesWhatIsNoRequest) {
  Start();
  RegionClient client(address_);
  ExpectFailure(
      client.Send("\x0a\x7f"), absl::StatusCode::kInvalidArgument,
      "MALFORMED_MESSAGE",
      "the datagram is not a valid attention.v1.SharedMemoryRequest message");
  ExpectFailure(client.Send(std::string("\x78\x01", 2)),
                absl::StatusCode::kInvalidArgument, "MALFORMED_MESSAGE",
                "got neither register_region nor drop_region, wanted one");
  ExpectFailure(client.Send(std::string(8193, '\0')),
                absl::StatusCode::kInvalidArgument, "MALFORMED_MESSAGE",
                "got a datagram above 8192 bytes, the most there may be");
  EXPECT_FALSE(client.Send("").has_value());
  EXPECT_TRUE(WaitUntil([&] { return socket_->connections() == 0; }));
}

TEST_F(RegionSocketTest, SilentOnesMakeRoom) {
  Start({.max_connections = 2});
  RegionClient silent(address_);
  RegionClient busy(address_);
  busy.Share(MappedMemory(1));
  RegionClient third(address_);
  EXPECT_TRUE(silent.WaitForEnd());
  third.Share(MappedMemory(1));
  // Nobody is without memory now.
  RegionClient fourth(address_);
  EXPECT_TRUE(fourth.WaitForEnd());
  EXPECT_NE(busy.Share(MappedMemory(1)), "");
}

TEST_F(RegionSocketTest, ABurstOfConnectionsFillsNoLog) {
  Start({.max_connections = 1});
  RegionClient busy(address_);
  busy.Share(MappedMemory(1));
  for (int i = 0; i < 50; ++i) EXPECT_TRUE(RegionClient(address_).WaitForEnd());
  socket_.reset();
  int lines = 0;
  std::istringstream text(logged_.str());
  for (std::string line; std::getline(text, line);) {
    if (line.find("event=shared_memory_refused") != std::string::npos) ++lines;
  }
  // Three a second, and it takes far less than ten.
  EXPECT_GE(lines, 1);
  EXPECT_LE(lines, 30);
}

// A socket with unsent data, whose close() waits for it for a minute, or until
// the other end is gone.
class Lingering {
 public:
  Lingering() {
    const Descriptor listener(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in name{};
    name.sin_family = AF_INET;
    name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(name);
    auto* const address = reinterpret_cast<sockaddr*>(&name);
    EXPECT_EQ(bind(listener.get(), address, size), 0);
    EXPECT_EQ(listen(listener.get(), 1), 0);
    EXPECT_EQ(getsockname(listener.get(), address, &size), 0);
    socket_ = Descriptor(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    EXPECT_EQ(connect(socket_.get(), address, size), 0);
    other_end_ = Descriptor(accept(listener.get(), nullptr, nullptr));
    const std::string bytes(65536, 'x');
    while (send(socket_.get(), bytes.data(), bytes.size(), MSG_DONTWAIT) > 0) {
    }
    const linger lingers{.l_onoff = 1, .l_linger = 60};
    EXPECT_EQ(setsockopt(socket_.get(), SOL_SOCKET, SO_LINGER, &lingers,
                         sizeof(lingers)),
              0);
  }

  int fd() const { return socket_.get(); }
  // Leaves the last one to whoever else has it, who does not wait for it here.
  void Forget() { socket_ = Descriptor(); }

 private:
  Descriptor socket_;
  Descriptor other_end_;
};

// A log that holds its writers until it is opened: the server's thread stays
// where it has accepted a connection.
class Gate final
    : public spdlog::sinks::base_sink<spdlog::details::null_mutex> {
 public:
  void Open() { opened_.set_value(); }

 private:
  void sink_it_(const spdlog::details::log_msg&) override { open_.wait(); }
  void flush_() override {}

  std::promise<void> opened_;
  const std::shared_future<void> open_ = opened_.get_future().share();
};

// Nobody else waits for it, and neither does the end.
TEST_F(RegionSocketTest, WhatIsSlowToCloseHoldsUpNobody) {
  const auto gate = std::make_shared<Gate>();
  log_.sinks().push_back(gate);
  log_.set_level(spdlog::level::debug);
  Start();
  Lingering first;
  Lingering second;
  const MappedMemory memory(1);
  // One is read, the others come with the end of their connection. The server
  // has the last one of each.
  RegionClient reads(address_);
  EXPECT_TRUE(reads.Write("x", {first.fd()}));
  first.Forget();
  gate->Open();
  EXPECT_TRUE(reads.Read().has_value());
  RegionClient client(address_);
  RegionClient ends(address_);
  for (int i = 0; i < 6; ++i) EXPECT_TRUE(ends.Write("x", {}));
  EXPECT_TRUE(ends.Write("x", {second.fd()}));
  second.Forget();
  ends.Close();
  EXPECT_NE(client.Share(memory), "");
  EXPECT_NE(RegionClient(address_).Share(memory), "");
  const auto begin = std::chrono::steady_clock::now();
  socket_.reset();
  // Half of what one of them lingers.
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(30));
}

// What is not closed yet is bounded.
TEST_F(RegionSocketTest, RegistersNothingWhileItIsFarBehind) {
  const auto gate = std::make_shared<Gate>();
  log_.sinks().push_back(gate);
  log_.set_level(spdlog::level::debug);
  Start();
  auto slow = std::make_unique<Lingering>();
  RegionClient client(address_);
  EXPECT_TRUE(client.Write("x", {slow->fd()}));
  slow->Forget();
  gate->Open();
  EXPECT_TRUE(client.Read().has_value());
  RegionClient other(address_);
  const MappedMemory memory(1);
  const std::string id = other.Share(memory);
  int pipes[2];
  ASSERT_EQ(pipe(pipes), 0);
  const Descriptor out(pipes[0]);
  const Descriptor in(pipes[1]);
  const std::vector<int> many(253, out.get());
  for (int i = 0; i < 4; ++i) {
    EXPECT_TRUE(client.Write("x", many));
    EXPECT_TRUE(client.Read().has_value());
  }
  ExpectFailure(other.Register({memory.fd()}),
                absl::StatusCode::kResourceExhausted, "RESOURCE_EXHAUSTED",
                "descriptors that clients sent are not closed yet, wanted "
                "memory only");
  EXPECT_NE(regions_.Find(id, 0), nullptr);
  // The other end goes, and so does what was waited for.
  slow.reset();
  EXPECT_TRUE(
      WaitUntil([&] { return other.Register({memory.fd()})->code() == 0; }));
}

TEST_F(RegionSocketTest, ClosesWhoTakesNoAnswers) {
  Start();
  RegionClient client(address_);
  while (client.Write("x", {})) {
  }
  EXPECT_TRUE(WaitUntil([&] { return socket_->connections() == 0; }));
}

TEST_F(RegionSocketTest, AFloodHoldsUpNobody) {
  Start();
  RegionClient flood(address_);
  RegionClient client(address_);
  const MappedMemory memory(1);
  for (int i = 0; i < 50; ++i) {
    // Many wait to be answered.
    for (int j = 0; j < 5; ++j) flood.Write("x", {});
    const std::string id = client.Share(memory);
    EXPECT_EQ(client.Drop(id)->code(), 0);
    for (int j = 0; j < 5; ++j) EXPECT_TRUE(flood.Read().has_value());
  }
}

TEST_F(RegionSocketTest, TokensSayWhoseItIs) {
  TokenFile file;
  file.tenants = {{.name = "a"}, {.name = "b"}, {.name = "p", .weight = 0}};
  file.tokens = {{HashOf("t-a"), 0}, {HashOf("t-b"), 1}, {HashOf("t-p"), 2}};
  authenticator_.SetTokens(std::move(file));
  Start();
  RegionClient client(address_);
  const MappedMemory memory(1);
  const std::string id = client.Share(memory, "t-b");
  const int b = authenticator_.tenants()[1]->id;
  EXPECT_NE(regions_.Find(id, b), nullptr);
  EXPECT_EQ(regions_.Find(id, authenticator_.tenants()[0]->id), nullptr);
  ExpectFailure(client.Register({memory.fd()}),
                absl::StatusCode::kUnauthenticated, "TOKEN_MISSING",
                "authorization: got no such header, wanted \"Bearer TOKEN\"");
  ExpectFailure(client.Register({memory.fd()}, "t-x"),
                absl::StatusCode::kUnauthenticated, "TOKEN_UNKNOWN",
                "authorization: the token is not known here");
  ExpectFailure(client.Register({memory.fd()}, "t-p"),
                absl::StatusCode::kPermissionDenied, "TENANT_NOT_ALLOWED",
                "the tenant \"p\" may not compute: its weight is 0");
}

TEST_F(RegionSocketTest, TheFileHasItsMode) {
  Start({.mode = 0600});
  struct stat file;
  ASSERT_EQ(stat(path_.c_str(), &file), 0);
  EXPECT_EQ(file.st_mode & 0777, 0600);
}

TEST_F(RegionSocketTest, APathHasOneServer) {
  Start();
  const auto second = RegionSocket::Start({.address = address_}, regions_,
                                          authenticator_, log_, limiter_);
  EXPECT_EQ(second.status(), absl::UnavailableError(absl::StrCat(
                                 "--shared-memory: cannot listen on \"",
                                 address_, "\": another process serves it")));
}

TEST_F(RegionSocketTest, StopsListeningWhileConnectionsGoOn) {
  Start();
  RegionClient client(address_);
  client.Share(MappedMemory(1));
  socket_->StopListening();
  EXPECT_TRUE(WaitUntil([&] { return access(path_.c_str(), F_OK) != 0; }));
  client.Share(MappedMemory(1));
  // The path is free for another server.
  EXPECT_TRUE(RegionSocket::Start({.address = address_}, regions_,
                                  authenticator_, log_, limiter_)
                  .ok());
}

}  // namespace
}  // namespace attention::server
