// What a connection may hold, and what happens at the limit.
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "attention/v1/attention.grpc.pb.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/generic/async_generic_service.h"
#include "grpcpp/security/credentials.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server_builder.h"
#include "server/connections/acceptor.h"
#include "server/connections/connection_table.h"
#include "server/connections/listener.h"
#include "tests/support/long_call.h"
#include "tests/support/messages.h"
#include "tests/support/raw_call.h"
#include "tests/support/socket.h"
#include "tests/support/test_server.h"

namespace attention::testing {
namespace {

constexpr char kWatch[] = "/grpc.health.v1.Health/Watch";

// GetCapabilities, ended by `limit`.
grpc::StatusCode Ask(const std::shared_ptr<grpc::Channel>& channel,
                     std::chrono::milliseconds limit, bool wait_for_ready) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + limit);
  context.set_wait_for_ready(wait_for_ready);
  v1::GetCapabilitiesResponse response;
  return v1::AttentionService::NewStub(channel)
      ->GetCapabilities(&context, {}, &response)
      .error_code();
}

class ConnectionsTest : public ::testing::Test {
 protected:
  void Start() { server_ = std::make_unique<TestServer>(options_); }

  std::string address() { return server_->server().addresses().front(); }
  int64_t open() { return server_->server().connections().open(); }
  bool WaitUntilOpen(int64_t count) {
    return WaitUntil([&] { return open() == count; });
  }

  server::Options options_ = TestServer::DefaultOptions();
  std::unique_ptr<TestServer> server_;
};

TEST_F(ConnectionsTest, OneMoreThanTheLimitWaitsUntilAnotherCloses) {
  options_.max_connections = 2;
  Start();
  Descriptor first = ConnectTo(address());
  const Descriptor second = ConnectTo(address());
  EXPECT_TRUE(WaitUntilOpen(2));
  const auto channel = server_->Channel(Transport::kLoopback);
  EXPECT_EQ(Ask(channel, std::chrono::milliseconds(300), true),
            grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_EQ(open(), 2);
  first = Descriptor();
  EXPECT_EQ(Ask(channel, std::chrono::minutes(1), true), grpc::StatusCode::OK);
  EXPECT_EQ(open(), 2);
}

TEST_F(ConnectionsTest, ManyClientsTakeTurnsAtTheLimit) {
  options_.max_connections = 3;
  Start();
  // All at once in the queue; each closes when it has been answered.
  std::vector<Descriptor> waiting(30);
  for (Descriptor& socket : waiting) {
    socket = ConnectTo(address());
    Send(socket, Http2Start());
  }
  for (Descriptor& socket : waiting) {
    char byte;
    EXPECT_EQ(recv(socket.get(), &byte, 1, 0), 1);
    EXPECT_LE(open(), 3);
    socket = Descriptor();
  }
  EXPECT_TRUE(WaitUntilOpen(0));
}

TEST_F(ConnectionsTest, ClosedConnectionsAreNotCounted) {
  Start();
  EXPECT_EQ(open(), 0);
  {
    const Descriptor socket = ConnectTo(address());
    EXPECT_TRUE(WaitUntilOpen(1));
  }
  EXPECT_TRUE(WaitUntilOpen(0));
}

TEST_F(ConnectionsTest, SilentPeersAreCut) {
  options_.handshake_timeout = absl::Milliseconds(100);
  options_.max_connection_idle = absl::InfiniteDuration();
  Start();
  const std::string start = Http2Start();
  // Nothing; half of the preface; the preface and half of a frame.
  for (size_t bytes : {size_t{0}, size_t{12}, start.size() - 4}) {
    const Descriptor socket = ConnectTo(address());
    Send(socket, start.substr(0, bytes));
    ReceiveAll(socket);
  }
  EXPECT_TRUE(WaitUntilOpen(0));
}

TEST_F(ConnectionsTest, OtherProtocolsAreCut) {
  options_.handshake_timeout = absl::Hours(1);
  Start();
  const Descriptor socket = ConnectTo(address());
  Send(socket, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
  ReceiveAll(socket);
}

TEST_F(ConnectionsTest, IdleOnesAreClosedWithGoaway) {
  options_.max_connection_idle = absl::Milliseconds(100);
  Start();
  const Descriptor socket = ConnectTo(address());
  Send(socket, Http2Start());
  EXPECT_TRUE(HasGoaway(ReceiveAll(socket)));
}

// A channel leaves READY when it is told that its connection ends.
bool WaitForGoaway(grpc::Channel& channel) {
  return channel.WaitForStateChange(
      GRPC_CHANNEL_READY,
      std::chrono::system_clock::now() + std::chrono::seconds(30));
}

TEST_F(ConnectionsTest, ACallKeepsAConnectionFromBeingIdle) {
  options_.max_connection_idle = absl::Milliseconds(200);
  Start();
  const auto channel = server_->Channel(Transport::kLoopback);
  RawStream watch(channel, kWatch);
  ASSERT_TRUE(watch.Write(HealthRequest("")));
  EXPECT_EQ(ServingStatus(watch.Read().value()), "SERVING");
  // Another one shows that the time has passed.
  const Descriptor idle = ConnectTo(address());
  Send(idle, Http2Start());
  ReceiveAll(idle);
  EXPECT_EQ(channel->GetState(false), GRPC_CHANNEL_READY);
  server_->server().Shutdown(absl::InfiniteFuture());
  EXPECT_EQ(ServingStatus(watch.Read().value()), "NOT_SERVING");
}

TEST_F(ConnectionsTest, ACallOutlivesTheAgeWithinTheGrace) {
  options_.max_connection_age = absl::Milliseconds(100);
  options_.max_connection_age_grace = absl::Hours(1);
  Start();
  const auto channel = server_->Channel(Transport::kLoopback);
  RawStream watch(channel, kWatch);
  ASSERT_TRUE(watch.Write(HealthRequest("")));
  EXPECT_EQ(ServingStatus(watch.Read().value()), "SERVING");
  ASSERT_TRUE(WaitForGoaway(*channel));
  // A new call goes over a new connection.
  EXPECT_EQ(Ask(channel, std::chrono::minutes(1), false), grpc::StatusCode::OK);
  server_->server().Shutdown(absl::InfiniteFuture());
  EXPECT_EQ(ServingStatus(watch.Read().value()), "NOT_SERVING");
}

TEST_F(ConnectionsTest, TheGraceEndsCalls) {
  options_.max_connection_age = absl::Milliseconds(100);
  options_.max_connection_age_grace = absl::Milliseconds(100);
  Start();
  const auto channel = server_->Channel(Transport::kLoopback);
  LongCall call(channel);
  EXPECT_EQ(call.Wait().error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_TRUE(
      WaitUntil([&] { return server_->server().running_calls() == 0; }));
}

TEST_F(ConnectionsTest, BytesOfAConnectionAreKnown) {
  Start();
  const Descriptor socket = ConnectTo(address());
  const std::string start = Http2Start();
  Send(socket, start);
  EXPECT_TRUE(WaitUntil([&] {
    return server_->server().connections().BytesReceived(IPv4NameOf(socket)) ==
           start.size();
  }));
}

// Tells each call's peer, and ends the call.
class PeerService : public grpc::CallbackGenericService {
 public:
  std::string peer() {
    std::lock_guard<std::mutex> lock(mutex_);
    return peer_;
  }

  grpc::ServerGenericBidiReactor* CreateReactor(
      grpc::GenericCallbackServerContext* context) override {
    class Reactor : public grpc::ServerGenericBidiReactor {
      void OnDone() override { delete this; }
    };
    {
      std::lock_guard<std::mutex> lock(mutex_);
      peer_ = context->peer();
    }
    auto* reactor = new Reactor;
    reactor->Finish(grpc::Status(grpc::StatusCode::UNIMPLEMENTED, "peer"));
    return reactor;
  }

 private:
  std::mutex mutex_;
  std::string peer_;
};

TEST(ConnectionBytesTest, PeersHaveTheNamesThatGrpcGivesThem) {
  PeerService service;
  grpc::ServerBuilder builder;
  builder.RegisterCallbackGenericService(&service);
  const auto sink = builder.experimental().AddExternalConnectionAcceptor(
      grpc::ServerBuilder::experimental_type::ExternalConnectionType::FROM_FD,
      grpc::InsecureServerCredentials());
  const auto server = builder.BuildAndStart();
  auto listener = server::Listener::Open("[::]:0");
  ASSERT_TRUE(listener.ok()) << listener.status();
  const std::string port =
      listener->address().substr(listener->address().rfind(':'));
  std::vector<server::Listener> listeners;
  listeners.push_back(*std::move(listener));
  server::ConnectionTable connections;
  spdlog::logger log("none");
  const server::Acceptor acceptor(std::move(listeners), 10, {*sink, *sink},
                                  connections, log);
  for (const std::string host : {"127.0.0.1", "[::1]"}) {
    if (!ConnectTo(host + port).valid()) continue;  // No IPv6 here.
    const auto channel =
        grpc::CreateChannel(host + port, grpc::InsecureChannelCredentials());
    EXPECT_EQ(RawUnaryCall(channel, "/a/b", "").status.error_message(), "peer");
    EXPECT_GT(connections.BytesReceived(service.peer()).value_or(0), 0)
        << service.peer();
  }
}

TEST_F(ConnectionsTest, WaitClosesTheListeners) {
  options_.listen.push_back("unix-abstract:attention_connections_" +
                            std::to_string(getpid()));
  Start();
  const std::vector<std::string> addresses = server_->server().addresses();
  server_->server().Shutdown(absl::InfinitePast());
  server_->server().Wait();
  for (const std::string& address : addresses) {
    EXPECT_FALSE(ConnectTo(address).valid()) << address;
  }
}

}  // namespace
}  // namespace attention::testing
