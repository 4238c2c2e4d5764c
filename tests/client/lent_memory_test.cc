// The memory of a caller's tensors is not used any more when a call is over,
// however it ended.
#include <gmock/gmock.h>
#include <grpc/grpc.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "attention/client.h"
#include "attention/internal/compute_messages.h"
#include "attention/internal/key_chunks.h"
#include "attention/internal/lease.h"
#include "attention/internal/stream_call.h"
#include "attention/internal/unary_call.h"
#include "tests/client/fake_service.h"
#include "tests/client/stalled_server.h"

namespace attention {
namespace {

using internal::Lease;
using internal::RunUnary;
using internal::UnaryAnswer;
using internal::UnaryCall;

constexpr char kMethod[] = "/attention.v1.AttentionService/ComputeAttention";
constexpr size_t kMega = size_t{1} << 20;

TEST(LeaseTest, CountsSlicesAndTheirParts) {
  const std::vector<std::byte> memory(1000);
  Lease lease;
  EXPECT_EQ(lease.lent(), 0);
  {
    std::optional<grpc::Slice> slice = lease.Lend(memory);
    EXPECT_EQ(static_cast<const void*>(slice->begin()), memory.data());
    EXPECT_EQ(slice->size(), 1000u);
    const grpc::Slice copy = *slice;
    const grpc::Slice other = lease.Lend(memory);
    EXPECT_EQ(lease.lent(), 2);
    slice.reset();
    EXPECT_EQ(lease.lent(), 2);
  }
  EXPECT_EQ(lease.lent(), 0);
  lease.Wait();
}

TEST(LeaseTest, ASliceMayOutliveIt) {
  const std::vector<std::byte> memory(1000);
  std::optional<Lease> lease(std::in_place);
  const grpc::Slice slice = lease->Lend(memory);
  lease.reset();
  EXPECT_EQ(slice.size(), 1000u);
}

TEST(LeaseTest, WaitsNoLongerThanAsked) {
  const std::vector<std::byte> memory(1000);
  Lease lease;
  std::optional<grpc::Slice> slice = lease.Lend(memory);
  EXPECT_FALSE(lease.WaitFor(std::chrono::milliseconds(1)));
  std::thread returning([&] { slice.reset(); });
  EXPECT_TRUE(lease.WaitFor(std::chrono::minutes(1)));
  returning.join();
}

TEST(LeaseTest, CallsBackWhenTheLastSliceIsReturned) {
  const std::vector<std::byte> memory(1000);
  Lease lease;
  std::optional<grpc::Slice> slice = lease.Lend(memory);
  std::atomic<bool> returned{false};
  std::promise<bool> called;
  std::move(lease).WhenReturned([&] { called.set_value(returned); });
  returned = true;
  slice.reset();
  EXPECT_TRUE(called.get_future().get());
}

TEST(LeaseTest, CallsBackAtOnceWhereNothingIsLent) {
  bool called = false;
  Lease().WhenReturned([&] { called = true; });
  EXPECT_TRUE(called);
}

// A request of 16 MiB.
class LentMemoryTest : public ::testing::Test {
 protected:
  // gRPC's library goes with its last channel, which takes up to 10 s after a
  // write had to wait. So it stays.
  static void SetUpTestSuite() { grpc_init(); }

  ComputeRequest Request() const {
    ComputeRequest request;
    request.query = TensorSpan::Of<float>(query_, {1, 2});
    request.key = TensorSpan::Of<float>(keys_, {kMega, 2});
    request.value = request.key;
    // So that it is one message.
    request.options.set_return_scores(v1::SCORES_RAW);
    return request;
  }

  UnaryCall Call() const {
    UnaryCall call;
    call.method = kMethod;
    call.message = internal::EncodeRequest(Request(), call.lease);
    call.message_bytes = call.message.Length();
    EXPECT_EQ(call.lease.lent(), 2);
    return call;
  }

  static Connection To(const std::string& address) {
    return Connection::Make(address).value();
  }

  const std::vector<float> query_ = {1, 2};
  const std::vector<float> keys_ = std::vector<float>(2 * kMega);
};

grpc::Status Answer(grpc::ServerContext&, const v1::ComputeAttentionRequest&,
                    v1::ComputeAttentionResponse&) {
  return grpc::Status::OK;
}

TEST_F(LentMemoryTest, IsLetGoWhenTheAnswerComes) {
  FakeService service(Answer);
  UnaryCall call = Call();
  EXPECT_TRUE(RunUnary(To(service.address()), {}, call).status.ok());
  EXPECT_EQ(call.lease.lent(), 0);
}

// The server's transport has the very slices.
TEST_F(LentMemoryTest, IsLetGoInProcess) {
  FakeService service(Answer);
  UnaryCall call = Call();
  EXPECT_TRUE(
      RunUnary(Connection(service.server().InProcessChannel({})), {}, call)
          .status.ok());
  EXPECT_EQ(call.lease.lent(), 0);
}

TEST_F(LentMemoryTest, IsLetGoWhenTheServerRefusesAtTheFirstByte) {
  class Refusing : public v1::AttentionService::Service {};
  Refusing service;
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(),
                           &port);
  builder.SetMaxReceiveMessageSize(1000);
  builder.RegisterService(&service);
  const auto server = builder.BuildAndStart();
  const Connection connection = To(absl::StrCat("127.0.0.1:", port));
  for (int i = 0; i < 20; ++i) {
    UnaryCall call = Call();
    EXPECT_EQ(RunUnary(connection, {}, call).status.code(),
              absl::StatusCode::kResourceExhausted);
    EXPECT_EQ(call.lease.lent(), 0);
  }
}

TEST_F(LentMemoryTest, IsLetGoWhereNobodyListens) {
  UnaryCall call = Call();
  EXPECT_EQ(RunUnary(To("unix:/no-such-socket"), {}, call).status.code(),
            absl::StatusCode::kUnavailable);
  EXPECT_EQ(call.lease.lent(), 0);
}

TEST_F(LentMemoryTest, IsLetGoWhenTheCallIsStoppedBeforeItBegins) {
  FakeService service(Answer);
  std::stop_source stop;
  stop.request_stop();
  UnaryCall call = Call();
  EXPECT_EQ(RunUnary(To(service.address()), {.stop = stop.get_token()}, call)
                .status.code(),
            absl::StatusCode::kCancelled);
  EXPECT_EQ(call.lease.lent(), 0);
}

TEST_F(LentMemoryTest, IsLetGoWhereverADeadlineEndsTheCall) {
  FakeService service(Answer);
  const Connection connection = To(service.address());
  for (int i = 0; i < 60; ++i) {
    UnaryCall call = Call();
    RunUnary(connection, {.timeout = absl::Microseconds(300 * i)}, call);
    EXPECT_EQ(call.lease.lent(), 0);
  }
}

// The same for asynchronous calls, whose lease is not to be seen.
TEST_F(LentMemoryTest, IsLetGoWhereverADeadlineEndsAnAsynchronousCall) {
  struct Held {
    grpc::Slice lent;
    std::atomic<bool>& held;
  };
  FakeService service(Answer);
  const Connection connection = To(service.address());
  for (int i = 0; i < 60; ++i) {
    std::atomic<bool> held{true};
    UnaryCall call;
    call.method = kMethod;
    // What is sent is no message, but as large.
    auto* slice =
        new Held{call.lease.Lend(std::as_bytes(std::span(keys_))), held};
    std::optional<grpc::Slice> watched(
        std::in_place, const_cast<uint8_t*>(slice->lent.begin()),
        slice->lent.size(),
        [](void* slice) {
          const std::unique_ptr<Held> owned(static_cast<Held*>(slice));
          owned->held = false;
        },
        slice);
    call.message = grpc::ByteBuffer(&*watched, 1);
    watched.reset();
    // Shared: the callback may still be inside it when the wait is over.
    const auto ended = std::make_shared<std::promise<bool>>();
    std::future<bool> held_then = ended->get_future();
    internal::StartUnary(
        connection, {.timeout = absl::Microseconds(300 * i)}, std::move(call),
        [ended, &held](const UnaryAnswer&) { ended->set_value(held); });
    EXPECT_FALSE(held_then.get()) << i;
  }
}

// What waits to be written to the connection keeps the memory in use, so the
// call must not return: neither when it is stopped nor when its time is over.
// A call that does not wait returns well within the time that this one is
// watched; no machine is too slow for a call that does.
constexpr auto kWatched = std::chrono::milliseconds(300);

absl::Status StatusOf(absl::Status status) { return status; }
absl::Status StatusOf(const absl::StatusOr<ComputeResult>& result) {
  return result.status();
}

// Stops calls that `start` begins at an address until one is found that waits,
// and runs `while_it_waits` then. gRPC 1.83 writes in pieces: stopped between
// two of them a call has nothing on its way, and ends at once.
template <typename Start>
void ExpectAStoppedCallWaits(
    const Start& start, const std::function<void()>& while_it_waits = [] {}) {
  constexpr int kTries = 50;
  for (int i = 0; i < kTries; ++i) {
    StalledServer server;
    std::stop_source stop;
    auto result = start(server.address(), stop.get_token());
    server.WaitUntilStalled();
    stop.request_stop();
    const bool waits = result.wait_for(kWatched) == std::future_status::timeout;
    if (waits) while_it_waits();
    server.Close();
    EXPECT_EQ(StatusOf(result.get()).code(), absl::StatusCode::kCancelled);
    if (waits) return;
  }
  ADD_FAILURE() << "none of " << kTries << " calls waited";
}

TEST_F(LentMemoryTest, AStoppedCallReturnsOnceTheConnectionLetsGo) {
  std::optional<UnaryCall> call;
  ExpectAStoppedCallWaits(
      [&](const std::string& address, const std::stop_token& stop) {
        call.emplace(Call());
        return std::async(std::launch::async, [&call, address, stop] {
          const absl::Status status =
              RunUnary(To(address), {.stop = stop}, *call).status;
          EXPECT_EQ(call->lease.lent(), 0);
          return status;
        });
      },
      [&] { EXPECT_GT(call->lease.lent(), 0); });
}

TEST_F(LentMemoryTest, ALateCallReturnsOnceTheConnectionLetsGo) {
  StalledServer server;
  const Client client(server.address());
  // Long enough to connect and to send until the server takes no more: else it
  // would be late before it is stalled.
  constexpr auto kTimeout = std::chrono::seconds(3);
  const auto late = std::chrono::steady_clock::now() + kTimeout;
  auto result = std::async(std::launch::async, [&] {
    return client.Compute(Request(), {.timeout = absl::FromChrono(kTimeout)});
  });
  server.WaitUntilStalled();
  std::this_thread::sleep_until(late);
  EXPECT_EQ(result.wait_for(kWatched), std::future_status::timeout);
  server.Close();
  EXPECT_EQ(result.get().status().code(), absl::StatusCode::kDeadlineExceeded);
}

TEST_F(LentMemoryTest, AnAsynchronousCallEndsOnceTheConnectionLetsGo) {
  ExpectAStoppedCallWaits(
      [&](const std::string& address, const std::stop_token& stop) {
        return Client(address).ComputeAsync(Request(), {.stop = stop});
      });
}

TEST_F(LentMemoryTest, AStreamEndsOnceTheConnectionLetsGo) {
  ComputeRequest request = Request();
  request.options.clear_return_scores();
  ExpectAStoppedCallWaits(
      [&](const std::string& address, const std::stop_token& stop) {
        return std::async(std::launch::async, [&request, address, stop] {
          // All in one chunk, more than the connection takes.
          return internal::RunStream(
              To(address), {.stop = stop}, request,
              *internal::KeyChunks::Of(request, int64_t{64} << 20));
        });
      });
}

TEST_F(LentMemoryTest, AStreamIsInterrupted) {
  StalledServer server;
  ComputeRequest request = Request();
  request.options.clear_return_scores();
  std::atomic<bool> stalled = false;
  std::atomic<int> interrupted = 0;
  CallOptions options;
  options.interrupted = [&] {
    if (stalled) ++interrupted;
    return stalled.load();
  };
  auto result = std::async(std::launch::async, [&] {
    return internal::RunStream(
        To(server.address()), options, request,
        *internal::KeyChunks::Of(request, int64_t{64} << 20));
  });
  server.WaitUntilStalled();
  stalled = true;
  // Asked again while it waits: the call is cancelled by now.
  while (interrupted < 2 && result.wait_for(std::chrono::milliseconds(1)) ==
                                std::future_status::timeout) {
  }
  EXPECT_GE(interrupted, 1);
  server.Close();
  EXPECT_EQ(result.get().status().code(), absl::StatusCode::kCancelled);
}

// Which the system does, and for TCP alone. Nothing else ends the call: a time
// limit could be over before the server is stalled.
TEST_F(LentMemoryTest, AConnectionThatTakesNothingIsGivenUp) {
  StalledServer server(AF_INET);
  ClientOptions options;
  // In place of 20 seconds.
  options.arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 200);
  options.max_attempts = 1;
  const absl::Status status =
      Client(server.address(), options).Compute(Request()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
}

TEST_F(LentMemoryTest, ABrokenConnectionLetsGo) {
  StalledServer server;
  UnaryCall call = Call();
  auto answer = std::async(std::launch::async, [&] {
    return RunUnary(To(server.address()), {}, call);
  });
  server.WaitUntilStalled();
  server.Close();
  EXPECT_EQ(answer.get().status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(call.lease.lent(), 0);
}

}  // namespace
}  // namespace attention
