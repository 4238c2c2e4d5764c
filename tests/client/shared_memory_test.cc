// The client shares memory with a server on its machine, by itself.
#include "attention/internal/shared_memory.h"

#include <gmock/gmock.h>
#include <grpc/grpc.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <future>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "attention/client.h"
#include "attention/internal/memory_file.h"
#include "attention/internal/patience.h"
#include "attention/internal/region_socket.h"
#include "base/descriptor.h"
#include "server/auth/token_file.h"
#include "tests/support/attention_case.h"
#include "tests/support/certificates.h"
#include "tests/support/messages.h"
#include "tests/support/test_server.h"
#include "wire/data_type.h"

namespace attention {
namespace {

using testing::TestFolder;
using testing::TestServer;
using testing::WaitUntil;

std::string BytesOf(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// What came back, without the timing.
std::string Text(const absl::StatusOr<ComputeResult>& result) {
  if (!result.ok()) {
    // Its payloads come in any order.
    return absl::Status(result.status().code(), result.status().message())
        .ToString();
  }
  std::string text = BytesOf(result->output.bytes());
  for (const auto* tensor : {&result->log_sum_exp, &result->scores,
                             &result->present_key, &result->present_value}) {
    text += *tensor ? "+" + BytesOf((*tensor)->bytes()) : "-";
  }
  return text;
}

std::vector<float> Numbers(size_t count, uint64_t seed) {
  test::Random random(seed);
  std::vector<float> numbers(count);
  for (float& number : numbers) number = static_cast<float>(random.Normal());
  return numbers;
}

class SharedMemoryTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { grpc_init(); }

  server::Options ServerOptions() const {
    server::Options options = TestServer::DefaultOptions();
    options.shared_memory = path_;
    return options;
  }
  void Start() { Start(ServerOptions()); }
  void Start(const server::Options& options) {
    server_ = std::make_unique<TestServer>(options);
  }
  std::string address() const { return server_->server().addresses().front(); }

  // Keys and values of 4 MiB each, for `queries` queries.
  ComputeRequest Request(int64_t queries = 3) const {
    ComputeRequest request;
    request.query = TensorSpan::Of<float>(
        std::span(query_).first(static_cast<size_t>(queries) * 64),
        {queries, 64});
    request.key = TensorSpan::Of<float>(keys_, {kKeys, 64});
    request.value = TensorSpan::Of<float>(values_, {kKeys, 64});
    return request;
  }
  static ClientOptions Sending() {
    ClientOptions options;
    options.use_shared_memory = false;
    return options;
  }
  std::string Sent(const ComputeRequest& request) const {
    return Text(Client(address(), Sending()).Compute(request));
  }
  int64_t shared() const { return server_->server().regions().bytes(); }
  // Bytes of requests of ComputeAttention that the server has read.
  int64_t read() const {
    const std::string text = server_->server().metrics().Text();
    const std::string name = "\nattention_request_bytes_total ";
    return std::stoll(text.substr(text.find(name) + name.size()));
  }

  static constexpr int64_t kKeys = 16384;
  const TestFolder folder_;
  const std::string path_ = "unix:" + folder_.Path("regions");
  const std::vector<float> query_ = Numbers(size_t{4096} * 64, 1);
  const std::vector<float> keys_ = Numbers(size_t{kKeys} * 64, 2);
  const std::vector<float> values_ = Numbers(size_t{kKeys} * 64, 3);
  std::unique_ptr<TestServer> server_;
};

TEST_F(SharedMemoryTest, OrdinaryMemoryIsCopiedThroughIt) {
  Start();
  const std::string wanted = Sent(Request());
  const Client client(address());
  EXPECT_TRUE(Text(client.Compute(Request())) == wanted);
  const int64_t before = read();
  for (int i = 0; i < 3; ++i) {
    EXPECT_TRUE(Text(client.Compute(Request())) == wanted);
  }
  // One area, used again and again.
  EXPECT_GE(shared(), 8 << 20);
  EXPECT_LT(shared(), 10 << 20);
  EXPECT_LT(read() - before, 10'000);
}

TEST_F(SharedMemoryTest, AllocatedMemoryIsReadWhereItIs) {
  Start();
  const std::string wanted = Sent(Request());
  const int64_t before = read();
  const Client client(address());
  const size_t bytes = keys_.size() * sizeof(float);
  const std::shared_ptr<std::byte> memory = client.AllocateShared(2 * bytes);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(memory.get()) % 64, 0u);
  EXPECT_EQ(memory.get()[2 * bytes - 1], std::byte{0});
  std::memcpy(memory.get(), keys_.data(), bytes);
  std::memcpy(memory.get() + bytes, values_.data(), bytes);
  ComputeRequest request = Request();
  request.key.bytes = {memory.get(), bytes};
  request.value.bytes = {memory.get() + bytes, bytes};
  for (int i = 0; i < 3; ++i) {
    EXPECT_TRUE(Text(client.Compute(request)) == wanted);
  }
  EXPECT_TRUE(Text(client.ComputeAsync(request).get()) == wanted);
  EXPECT_EQ(shared(), static_cast<int64_t>(2 * bytes));
  EXPECT_LT(read() - before, 20'000);
  // Half of it so, half of it otherwise.
  request.value = Request().value;
  EXPECT_TRUE(Text(client.Compute(request)) == wanted);
}

TEST_F(SharedMemoryTest, LargeAnswersComeThroughIt) {
  Start();
  ComputeRequest request = Request(4096);
  request.options.set_return_log_sum_exp(true);
  const std::string wanted = Sent(request);
  const Client client(address());
  for (int i = 0; i < 2; ++i) {
    EXPECT_TRUE(Text(client.Compute(request)) == wanted);
  }
  // Its own area has room for the answer.
  EXPECT_GE(shared(), (8 << 20) + (2 << 20));
  // Into the caller's memory, and into memory that is too small.
  std::vector<std::byte> memory(size_t{4096} * 64 * 4);
  request.outputs.output = memory;
  const auto result = client.Compute(request);
  EXPECT_TRUE(Text(result) == wanted);
  EXPECT_EQ(result->output.bytes().data(), memory.data());
  request.outputs.output = std::span(memory).first(100);
  EXPECT_EQ(
      client.Compute(request).status(),
      absl::InvalidArgumentError(
          "outputs.output: got 100 bytes, wanted 1048576 for shape (4096, "
          "64) of FLOAT32"));
}

TEST_F(SharedMemoryTest, LargeAnswersAreRefusedAsEver) {
  Start();
  ClientOptions options;
  options.max_receive_bytes = 1 << 20;
  const Client client(address(), options);
  // The output alone takes as much.
  const auto result = client.Compute(Request(4096));
  EXPECT_EQ(ErrorReason(result.status()), "CLIENT_LIMIT") << result.status();
  EXPECT_TRUE(client.Compute(Request(4000)).ok());
}

TEST_F(SharedMemoryTest, EveryTensorOfAnswers) {
  Start();
  const std::vector<float> numbers = Numbers(size_t{2} * 4 * 300 * 64, 4);
  const auto span = [&](std::vector<int64_t> shape) {
    return TensorSpan::Of<float>(std::span(numbers).first(*ElementCount(shape)),
                                 shape);
  };
  ComputeRequest request;
  request.query = span({2, 4, 200, 64});
  request.key = span({2, 2, 300, 64});
  request.value = span({2, 2, 300, 32});
  request.past_key = span({2, 2, 100, 64});
  request.past_value = span({2, 2, 100, 32});
  request.options.set_return_log_sum_exp(true);
  request.options.set_return_scores(v1::SCORES_WEIGHTS);
  request.options.set_return_present(true);
  const Client client(address());
  for (v1::Layout layout :
       {v1::LAYOUT_BHSD, v1::LAYOUT_BSHD, v1::LAYOUT_PACKED}) {
    SCOPED_TRACE(v1::Layout_Name(layout));
    request.options.set_layout(layout);
    if (layout == v1::LAYOUT_BSHD) {
      request.query.shape = {2, 200, 4, 64};
      request.key.shape = {2, 300, 2, 64};
      request.value.shape = {2, 300, 2, 32};
    } else if (layout == v1::LAYOUT_PACKED) {
      request.query.shape = {2, 200, 256};
      request.key.shape = {2, 300, 128};
      request.value.shape = {2, 300, 64};
      request.options.set_query_heads(4);
      request.options.set_kv_heads(2);
    }
    const std::string wanted = Sent(request);
    EXPECT_TRUE(Text(client.Compute(request)) == wanted);
    const int64_t before = read();
    const auto result = client.Compute(request);
    EXPECT_TRUE(Text(result) == wanted) << result.status();
    EXPECT_LT(read() - before, 10'000);
  }
}

TEST_F(SharedMemoryTest, AnyRequestHasTheSameBits) {
  Start();
  const Client client(address());
  const Client sending(address(), Sending());
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    test::Random random(seed);
    const test::AttentionCase c =
        test::RandomCase(random, {.query_lengths = {1, 40},
                                  .key_lengths = {1, 700, 3000},
                                  .max_work = 100'000'000,
                                  .strided = false});
    SCOPED_TRACE(c.ToString());
    std::vector<std::shared_ptr<std::byte>> memory;
    const auto span = [&](const test::Tensor& tensor) {
      const ConstTensorView view = tensor.view();
      const auto count = *NumElements(view.shape);
      std::span<const std::byte> bytes(static_cast<const std::byte*>(view.data),
                                       count * SizeOf(view.type));
      if (random.Chance(0.3) && !bytes.empty()) {
        memory.push_back(client.AllocateShared(bytes.size() + 8));
        std::memcpy(memory.back().get() + 8, bytes.data(), bytes.size());
        bytes = {memory.back().get() + 8, bytes.size()};
      }
      return TensorSpan{wire::ToWire(view.type),
                        {view.shape.begin(), view.shape.end()},
                        bytes};
    };
    ComputeRequest request;
    request.query = span(c.query);
    request.key = span(c.key);
    request.value = span(c.value);
    if (c.mask) request.mask = span(*c.mask);
    if (c.past_key) request.past_key = span(*c.past_key);
    if (c.past_value) request.past_value = span(*c.past_value);
    if (c.indices) request.indices = span(*c.indices);
    if (c.sinks) request.sinks = span(*c.sinks);
    request.valid_lengths = c.valid_lengths;
    request.query_starts = c.query_starts;
    request.key_starts = c.key_starts;
    request.options.set_layout(static_cast<v1::Layout>(c.options.layout));
    request.options.set_query_heads(c.options.query_heads);
    request.options.set_kv_heads(c.options.kv_heads);
    request.options.set_causal(static_cast<v1::Causal>(c.options.causal));
    request.options.set_return_log_sum_exp(c.options.return_log_sum_exp);
    request.options.set_return_scores(
        static_cast<v1::Scores>(c.options.return_scores));
    request.options.set_return_present(c.options.return_present);
    const std::string wanted = Text(sending.Compute(request));
    EXPECT_TRUE(Text(client.Compute(request)) == wanted);
    EXPECT_TRUE(Text(client.ComputeAsync(request).get()) == wanted);
    if (HasFailure()) return;
  }
}

TEST_F(SharedMemoryTest, SmallRequestsAreSent) {
  Start();
  const Client client(address());
  ComputeRequest request = Request();
  request.key = TensorSpan::Of<float>(std::span(keys_).first(64), {1, 64});
  request.value = TensorSpan::Of<float>(std::span(values_).first(64), {1, 64});
  EXPECT_TRUE(client.Compute(request).ok());
  EXPECT_EQ(shared(), 0);
}

TEST_F(SharedMemoryTest, AsynchronousCallsShareOnceTheServerIsKnown) {
  Start();
  const std::string wanted = Sent(Request());
  const Client client(address());
  EXPECT_TRUE(WaitUntil([&] {
    EXPECT_TRUE(Text(client.ComputeAsync(Request()).get()) == wanted);
    return shared() > 0;
  }));
}

TEST_F(SharedMemoryTest, EveryThreadHasAnAreaOfItsOwn) {
  Start();
  const Client client(address());
  std::vector<ComputeRequest> requests(6, Request(200));
  std::vector<std::string> wanted;
  for (size_t i = 0; i < requests.size(); ++i) {
    const auto offset = static_cast<int64_t>(i * 200);
    requests[i].query.bytes = requests[i].query.bytes.subspan(0);
    requests[i].query = TensorSpan::Of<float>(
        std::span(query_).subspan(offset * 64, 200 * 64), {200, 64});
    wanted.push_back(Sent(requests[i]));
  }
  std::vector<std::thread> threads;
  for (size_t i = 0; i < requests.size(); ++i) {
    threads.emplace_back([&, i] {
      for (int call = 0; call < 5; ++call) {
        EXPECT_TRUE(Text(client.Compute(requests[i])) == wanted[i]);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_F(SharedMemoryTest, CanBeTurnedOff) {
  Start();
  const Client client(address(), Sending());
  EXPECT_TRUE(client.Compute(Request()).ok());
  EXPECT_EQ(shared(), 0);
  const std::shared_ptr<std::byte> memory = client.AllocateShared(100);
  EXPECT_EQ(memory.get()[99], std::byte{0});
}

TEST_F(SharedMemoryTest, WithoutAnOfferBytesAreSent) {
  Start(TestServer::DefaultOptions());
  const Client client(address());
  const std::shared_ptr<std::byte> memory =
      client.AllocateShared(keys_.size() * sizeof(float));
  std::memcpy(memory.get(), keys_.data(), keys_.size() * sizeof(float));
  ComputeRequest request = Request();
  request.key.bytes = {memory.get(), keys_.size() * sizeof(float)};
  EXPECT_TRUE(Text(client.Compute(request)) == Sent(Request()));
}

// As in another container, where the path leads nowhere.
TEST_F(SharedMemoryTest, WithoutAWayThereBytesAreSent) {
  Start();
  unlink(folder_.Path("regions").c_str());
  const Client client(address());
  EXPECT_TRUE(Text(client.Compute(Request())) == Sent(Request()));
  EXPECT_EQ(shared(), 0);
}

TEST_F(SharedMemoryTest, WhatTheServerRefusesIsSent) {
  server::Options options = ServerOptions();
  options.max_shared_bytes = 4 << 20;
  Start(options);
  const Client client(address());
  for (int i = 0; i < 2; ++i) {
    EXPECT_TRUE(Text(client.Compute(Request())) == Sent(Request()));
  }
  EXPECT_EQ(shared(), 0);
}

TEST_F(SharedMemoryTest, TokensGoWithTheMemory) {
  const server::TokenHash hash = server::HashOf("secret");
  server::Options options = ServerOptions();
  options.tokens = folder_.Write(
      "tokens", absl::StrCat(absl::BytesToHexString(absl::string_view(
                                 reinterpret_cast<const char*>(hash.data()),
                                 hash.size())),
                             " a\n"));
  Start(options);
  ClientOptions with_token;
  with_token.token = "secret";
  const Client client(address(), with_token);
  for (int i = 0; i < 2; ++i) EXPECT_TRUE(client.Compute(Request()).ok());
  EXPECT_GT(shared(), 0);
}

TEST_F(SharedMemoryTest, ARestartedServerGetsTheMemoryAgain) {
  const std::string gone = "unix:" + folder_.Path("server");
  server::Options options = ServerOptions();
  options.listen = {gone};
  Start(options);
  const std::string wanted = Sent(Request());
  const Client client(address());
  const size_t bytes = keys_.size() * sizeof(float);
  const std::shared_ptr<std::byte> memory = client.AllocateShared(bytes);
  std::memcpy(memory.get(), keys_.data(), bytes);
  ComputeRequest request = Request();
  request.key.bytes = {memory.get(), bytes};
  EXPECT_TRUE(Text(client.Compute(request)) == wanted);
  for (int i = 0; i < 3; ++i) {
    server_.reset();
    Start(options);
    // The connection is made anew with the first call that finds it lost.
    EXPECT_TRUE(WaitUntil([&] {
      const auto result = client.Compute(request);
      EXPECT_TRUE(!result.ok() || Text(result) == wanted);
      return result.ok() && shared() > 0;
    }));
  }
}

// A server that does not know what was registered, as one that stands behind
// the same address as another does.
TEST_F(SharedMemoryTest, UnknownRegionsAreSentInTheEnd) {
  Start();
  TestServer other;
  // The first one's socket, offered by a server that knows none of its regions.
  server::Options options = ServerOptions();
  options.shared_memory = "unix:" + folder_.Path("other");
  TestServer offering(options);
  ASSERT_EQ(
      rename(folder_.Path("regions").c_str(), folder_.Path("other").c_str()),
      0);
  const std::string wanted = Sent(Request());
  const Client client(offering.server().addresses().front());
  for (int i = 0; i < 3; ++i) {
    EXPECT_TRUE(Text(client.Compute(Request())) == wanted);
  }
  EXPECT_EQ(offering.server().regions().bytes(), 0);
}

TEST_F(SharedMemoryTest, MemoryMayOutliveItsClient) {
  Start();
  std::shared_ptr<std::byte> memory;
  {
    const Client client(address());
    memory = client.AllocateShared(1 << 20);
    ComputeRequest request = Request();
    request.key = {v1::DATA_TYPE_FLOAT32, {4096, 64}, {memory.get(), 1 << 20}};
    request.value = request.key;
    EXPECT_TRUE(client.Compute(request).ok());
    EXPECT_EQ(shared(), 1 << 20);
  }
  std::memset(memory.get(), 1, 1 << 20);
  EXPECT_EQ(shared(), 1 << 20);
  memory.reset();
  EXPECT_TRUE(WaitUntil([&] { return shared() == 0; }));
}

TEST_F(SharedMemoryTest, FreedMemoryIsForgotten) {
  Start();
  const Client client(address());
  std::shared_ptr<std::byte> memory = client.AllocateShared(1 << 20);
  ComputeRequest request = Request();
  request.key = {v1::DATA_TYPE_FLOAT32, {4096, 64}, {memory.get(), 1 << 20}};
  request.value = request.key;
  EXPECT_TRUE(client.Compute(request).ok());
  memory.reset();
  EXPECT_TRUE(WaitUntil([&] { return shared() == 0; }));
}

// What was refused is shared once there is room, and idle areas make room.
TEST_F(SharedMemoryTest, IdleAreasMakeRoom) {
  server::Options options = ServerOptions();
  // For one connection half of it: an area of 9 MiB, or other memory.
  options.max_shared_bytes = 20 << 20;
  Start(options);
  const Client client(address());
  EXPECT_TRUE(client.Compute(Request()).ok());
  EXPECT_TRUE(client.Compute(Request()).ok());
  EXPECT_GE(shared(), 8 << 20);
  const size_t bytes = keys_.size() * sizeof(float);
  std::shared_ptr<std::byte> first = client.AllocateShared(2 * bytes);
  ComputeRequest request = Request();
  request.key.bytes = {first.get(), bytes};
  request.value.bytes = {first.get() + bytes, bytes};
  EXPECT_TRUE(client.Compute(request).ok());
  EXPECT_TRUE(
      WaitUntil([&] { return shared() == static_cast<int64_t>(2 * bytes); }));
  // No room for more, but sent they are.
  const std::shared_ptr<std::byte> second = client.AllocateShared(2 * bytes);
  request.key.bytes = {second.get(), bytes};
  request.value.bytes = {second.get() + bytes, bytes};
  EXPECT_TRUE(client.Compute(request).ok());
  EXPECT_EQ(shared(), static_cast<int64_t>(2 * bytes));
  first.reset();
  EXPECT_TRUE(WaitUntil([&] {
    EXPECT_TRUE(client.Compute(request).ok());
    return shared() == static_cast<int64_t>(2 * bytes);
  }));
}

// As a server that is stopped: what it is told waits in its socket.
class SilentSocket {
 public:
  explicit SilentSocket(const std::string& path)
      : socket_(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)) {
    sockaddr_un name{};
    name.sun_family = AF_UNIX;
    path.copy(name.sun_path, sizeof(name.sun_path) - 1);
    EXPECT_EQ(
        bind(socket_.get(), reinterpret_cast<sockaddr*>(&name), sizeof(name)),
        0);
    EXPECT_EQ(listen(socket_.get(), 8), 0);
  }
  Descriptor Accept() const {
    return Descriptor(accept(socket_.get(), nullptr, nullptr));
  }

 private:
  const Descriptor socket_;
};

TEST_F(SharedMemoryTest, ASilentServerHoldsUpNoCallForLongerThanItsLimit) {
  const std::string path = folder_.Path("silent");
  const SilentSocket silent(path);
  internal::RegionSocket socket("unix:" + path);
  ASSERT_TRUE(socket.connected());
  const auto file = internal::MemoryFile::Create(4096);
  std::stop_source stop;
  // Neither of them for as long as the socket is waited for.
  EXPECT_EQ(
      socket
          .Register(file->fd(), "",
                    internal::Patience::Of({.timeout = absl::ZeroDuration()}))
          .status()
          .code(),
      absl::StatusCode::kDeadlineExceeded);
  stop.request_stop();
  EXPECT_EQ(socket
                .Register(file->fd(), "",
                          internal::Patience::Of({.stop = stop.get_token()}))
                .status()
                .code(),
            absl::StatusCode::kDeadlineExceeded);
  // Without an answer.
  socket.Drop("a");
  EXPECT_TRUE(socket.connected());
  // It is waited for a second at the most, and never again.
  EXPECT_EQ(socket.Register(file->fd(), "", {}).status().code(),
            absl::StatusCode::kUnavailable);
  EXPECT_FALSE(socket.connected());
  EXPECT_EQ(socket.Register(file->fd(), "", {}).status().code(),
            absl::StatusCode::kUnavailable);
}

// What the client asked, which it is told is well, and of this region.
v1::SharedMemoryRequest Answer(const Descriptor& server,
                               const std::string& region) {
  std::string bytes(8192, '\0');
  const ssize_t size = recv(server.get(), bytes.data(), bytes.size(), 0);
  bytes.resize(static_cast<size_t>(std::max<ssize_t>(size, 0)));
  v1::SharedMemoryRequest request;
  EXPECT_TRUE(request.ParseFromString(bytes));
  v1::SharedMemoryResponse response;
  response.set_region(region);
  bytes = response.SerializeAsString();
  EXPECT_EQ(send(server.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL),
            static_cast<ssize_t>(bytes.size()));
  return request;
}

// Were the memory registered before it returns, nobody would answer.
TEST_F(SharedMemoryTest, ComputeAsyncDoesNotWaitForTheMemory) {
  Start();
  const std::string wanted = Sent(Request());
  unlink(folder_.Path("regions").c_str());
  const SilentSocket silent(folder_.Path("regions"));
  const Client client(address());
  // Connects, and is the first one of its size.
  EXPECT_TRUE(Text(client.Compute(Request())) == wanted);
  const Descriptor server = silent.Accept();
  auto later = client.ComputeAsync(Request());
  EXPECT_TRUE(Answer(server, "of sixteen bytes").has_register_region());
  // Which the server does not know, so that it is sent in the end.
  EXPECT_TRUE(Text(later.get()) == wanted);
}

// Nobody knows the id of what was registered for a call that was given up.
TEST_F(SharedMemoryTest, LateRegistrationsAreDropped) {
  const std::string path = folder_.Path("late");
  const SilentSocket silent(path);
  internal::RegionSocket socket("unix:" + path);
  const Descriptor server = silent.Accept();
  const auto file = internal::MemoryFile::Create(4096);
  EXPECT_FALSE(
      socket
          .Register(file->fd(), "",
                    internal::Patience::Of({.timeout = absl::ZeroDuration()}))
          .ok());
  EXPECT_TRUE(Answer(server, "late").has_register_region());
  std::thread serving([&] {
    EXPECT_EQ(Answer(server, "late").drop_region().region(), "late");
    EXPECT_TRUE(Answer(server, "mine").has_register_region());
  });
  EXPECT_EQ(socket.Register(file->fd(), "", {}).value(), "mine");
  serving.join();
}

// A call of a size that comes once would pay for memory that nobody uses again.
TEST_F(SharedMemoryTest, TheFirstCallOfASizeIsSent) {
  Start();
  const Client client(address());
  EXPECT_TRUE(client.Compute(Request()).ok());
  EXPECT_EQ(shared(), 0);
  EXPECT_TRUE(client.Compute(Request()).ok());
  EXPECT_GE(shared(), 8 << 20);
}

// Of calls that were given up the server may still write to the area.
TEST_F(SharedMemoryTest, AreasOfCallsThatWereGivenUpAreNotUsedAgain) {
  Start();
  const Client client(address());
  const std::string wanted = Sent(Request(200));
  for (int i = 0; i < 2; ++i) {
    ASSERT_TRUE(Text(client.Compute(Request(200))) == wanted);
  }
  const int64_t area = shared();
  std::vector<float> long_keys(size_t{1} << 18);
  ComputeRequest request;
  request.query = TensorSpan::Of<float>(long_keys, {1 << 18, 1});
  request.key = request.query;
  request.value = request.query;
  // Too long to wait for.
  std::stop_source stop;
  auto later = client.ComputeAsync(request, {.stop = stop.get_token()});
  ASSERT_TRUE(WaitUntil([&] {
    return server_->server().running_calls() == 1 && shared() > area;
  }));
  stop.request_stop();
  EXPECT_EQ(later.get().status().code(), absl::StatusCode::kCancelled);
  EXPECT_TRUE(WaitUntil([&] { return shared() == area; }));
  EXPECT_TRUE(Text(client.Compute(Request(200))) == wanted);
}

// Its parent's areas would be its own, too.
TEST_F(SharedMemoryTest, AForkedProcessSharesNothing) {
  Start();
  const auto memory = std::make_shared<internal::SharedMemory>(
      Connection::Make(address()).value());
  ASSERT_TRUE(memory->Connect({}));
  EXPECT_TRUE(memory->ConnectLater());
  const pid_t child = fork();
  if (child == 0) _exit(memory->ConnectLater() || memory->Connect({}) ? 1 : 0);
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_TRUE(memory->ConnectLater());
}

// Locks that other threads held at the fork are held for ever in the child.
TEST_F(SharedMemoryTest, AForkedProcessMayFreeAndAllocate) {
  const auto memory = std::make_shared<internal::SharedMemory>(
      Connection::Make("127.0.0.1:1").value());
  std::shared_ptr<std::byte> kept =
      internal::SharedMemory::Allocate(memory, 4096);
  std::atomic<bool> stop{false};
  std::thread other([&] {
    while (!stop) static_cast<void>(memory->Allocated({kept.get(), 4096}));
  });
  for (int i = 0; i < 20; ++i) {
    const pid_t child = fork();
    if (child == 0) {
      alarm(10);  // Ends it where it waits.
      const bool allocated = memory->Allocated({kept.get(), 4096});
      kept.reset();
      const auto fresh = internal::SharedMemory::Allocate(memory, 4096);
      _exit(!allocated && fresh.get()[4095] == std::byte{0} ? 0 : 1);
    }
    int status = -1;
    EXPECT_EQ(waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
    if (status != 0) break;
  }
  stop = true;
  other.join();
}

TEST_F(SharedMemoryTest, BadRequestsAreNamedAsEver) {
  Start();
  const Client client(address());
  ComputeRequest request = Request();
  request.key.shape = {kKeys, 63};
  EXPECT_EQ(Text(client.Compute(request)), Sent(request));
  request = Request();
  request.value.shape = {kKeys / 2, 128};
  const auto result = client.Compute(request);
  EXPECT_EQ(Text(result), Sent(request));
  EXPECT_EQ(FieldViolations(result.status()).at(0).field, "value.shape");
}

}  // namespace
}  // namespace attention
