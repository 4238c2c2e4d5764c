#include "server/connections/connection_table.h"

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <string>
#include <vector>

#include "base/descriptor.h"
#include "server/connections/listener.h"
#include "tests/support/socket.h"
#include "tests/support/test_server.h"

namespace attention::server {
namespace {

using ::attention::testing::ConnectTo;
using ::attention::testing::IPv4NameOf;
using ::attention::testing::Send;
using ::attention::testing::WaitUntil;

struct Connection {
  Descriptor client;
  Descriptor served;
};

class ConnectionTableTest : public ::testing::Test {
 protected:
  Connection NewConnection() { return NewConnection(*listener_); }

  static Connection NewConnection(const Listener& listener) {
    Connection connection;
    connection.client = ConnectTo(listener.address());
    EXPECT_TRUE(WaitUntil([&] {
      connection.served =
          Descriptor(accept(listener.sockets()[0].get(), nullptr, nullptr));
      return connection.served.valid();
    }));
    return connection;
  }

  absl::StatusOr<Listener> listener_ = Listener::Open("127.0.0.1:0");
  ConnectionTable table_;
};

TEST_F(ConnectionTableTest, CountsUntilClosed) {
  EXPECT_EQ(table_.open(), 0);
  Connection first = NewConnection();
  const Connection second = NewConnection();
  EXPECT_TRUE(table_.Add(first.served.get()));
  EXPECT_TRUE(table_.Add(second.served.get()));
  EXPECT_EQ(table_.open(), 2);
  // That the peer has closed is not yet an end.
  first.client = Descriptor();
  table_.Prune();
  EXPECT_EQ(table_.open(), 2);
  close(first.served.Release());
  table_.Prune();
  EXPECT_EQ(table_.open(), 1);
}

TEST_F(ConnectionTableTest, ANumberUsedAgainIsAnotherConnection) {
  Connection first = NewConnection();
  EXPECT_TRUE(table_.Add(first.served.get()));
  Send(first.client, "0123456789");
  const std::string peer = IPv4NameOf(first.client);
  EXPECT_TRUE(WaitUntil([&] { return table_.BytesReceived(peer) == 10; }));
  const int number = first.served.get();
  Connection second = NewConnection();
  // In one step, so that no other thread gets the number.
  ASSERT_EQ(dup2(second.served.get(), number), number);
  // Before it is known, and after.
  EXPECT_EQ(table_.BytesReceived(peer), std::nullopt);
  EXPECT_TRUE(table_.Add(number));
  EXPECT_EQ(table_.open(), 1);
  EXPECT_EQ(table_.BytesReceived(peer), std::nullopt);
  EXPECT_EQ(table_.BytesReceived(IPv4NameOf(second.client)), 0);
}

TEST_F(ConnectionTableTest, ANumberUsedForSomethingElseIsNoConnection) {
  const Connection connection = NewConnection();
  EXPECT_TRUE(table_.Add(connection.served.get()));
  ASSERT_GE(dup2(STDERR_FILENO, connection.served.get()), 0);
  EXPECT_EQ(table_.BytesReceived(IPv4NameOf(connection.client)), std::nullopt);
  table_.Prune();
  EXPECT_EQ(table_.open(), 0);
}

TEST_F(ConnectionTableTest, ManyArePrunedInParts) {
  std::vector<Connection> connections(300);
  for (Connection& connection : connections) {
    connection = NewConnection();
    ASSERT_TRUE(table_.Add(connection.served.get()));
  }
  EXPECT_EQ(table_.open(), 300);
  for (int i = 0; i < 300; i += 2) connections[i] = Connection();
  table_.Prune();
  EXPECT_EQ(table_.open(), 150);
  connections.clear();
  table_.Prune();
  EXPECT_EQ(table_.open(), 0);
}

TEST_F(ConnectionTableTest, RefusesAPeerThatIsGone) {
  Connection connection = NewConnection();
  // Closing resets it, instead of waiting for what was sent.
  const linger reset = {.l_onoff = 1, .l_linger = 0};
  setsockopt(connection.client.get(), SOL_SOCKET, SO_LINGER, &reset,
             sizeof(reset));
  connection.client = Descriptor();
  EXPECT_TRUE(WaitUntil([&] {
    sockaddr_storage peer;
    socklen_t length = sizeof(peer);
    return getpeername(connection.served.get(),
                       reinterpret_cast<sockaddr*>(&peer), &length) != 0;
  }));
  EXPECT_FALSE(table_.Add(connection.served.get()));
  EXPECT_EQ(table_.open(), 0);
}

TEST_F(ConnectionTableTest, BytesOfUnixSocketsAreUnknown) {
  const auto listener =
      Listener::Open("unix-abstract:table_" + std::to_string(getpid()));
  ASSERT_TRUE(listener.ok()) << listener.status();
  const Connection connection = NewConnection(*listener);
  EXPECT_TRUE(table_.Add(connection.served.get()));
  EXPECT_EQ(table_.open(), 1);
  EXPECT_EQ(table_.BytesReceived("unix:"), std::nullopt);
  EXPECT_EQ(table_.BytesReceived(""), std::nullopt);
}

TEST_F(ConnectionTableTest, BytesOfStrangersAreUnknown) {
  for (const char* peer : {"ipv4:127.0.0.1:1", "inproc", "%", "%5"}) {
    EXPECT_EQ(table_.BytesReceived(peer), std::nullopt) << peer;
  }
}

TEST_F(ConnectionTableTest, ListsThemInParts) {
  std::vector<Connection> connections(5);
  for (Connection& connection : connections) {
    connection = NewConnection();
    ASSERT_TRUE(table_.Add(connection.served.get()));
  }
  std::vector<ConnectionId> found;
  int position = table_.List(0, 3, found);
  EXPECT_EQ(found.size(), 3);
  EXPECT_GT(position, 0);
  position = table_.List(position, 3, found);
  EXPECT_EQ(position, 0);
  ASSERT_EQ(found.size(), 5);
  for (int i = 0; i < 5; ++i) {
    EXPECT_EQ(table_.PeerOf(found[i]), IPv4NameOf(connections[i].client)) << i;
    EXPECT_EQ(table_.Find(IPv4NameOf(connections[i].client)), found[i]);
  }
}

TEST_F(ConnectionTableTest, ACutConnectionIsReset) {
  const Connection connection = NewConnection();
  ASSERT_TRUE(table_.Add(connection.served.get()));
  Send(connection.client, "0123456789");
  const ConnectionId id = table_.Find(IPv4NameOf(connection.client)).value();
  EXPECT_TRUE(
      WaitUntil([&] { return ConnectionTable::BytesUnread(id) == 10; }));
  EXPECT_TRUE(table_.Cut(id));
  EXPECT_FALSE(table_.Cut(id));
  // What has come is gone, and the peer hears of it.
  char byte;
  EXPECT_LE(recv(connection.served.get(), &byte, 1, MSG_DONTWAIT), 0);
  EXPECT_EQ(recv(connection.client.get(), &byte, 1, 0), -1);
  EXPECT_EQ(errno, ECONNRESET);
  std::vector<ConnectionId> found;
  table_.List(0, 10, found);
  EXPECT_TRUE(found.empty());
}

TEST_F(ConnectionTableTest, CutsNobodyWhoHasTheNumberNow) {
  Connection first = NewConnection();
  ASSERT_TRUE(table_.Add(first.served.get()));
  const ConnectionId id = table_.Find(IPv4NameOf(first.client)).value();
  Connection second = NewConnection();
  ASSERT_GE(dup2(second.served.get(), first.served.get()), 0);
  EXPECT_FALSE(table_.Cut(id));
  Send(first.served, "x");
  char byte = 0;
  EXPECT_EQ(recv(second.client.get(), &byte, 1, 0), 1);
}

TEST_F(ConnectionTableTest, BytesOverIPv6) {
  const auto listener = Listener::Open("[::]:0");
  ASSERT_TRUE(listener.ok()) << listener.status();
  const std::string port =
      listener->address().substr(listener->address().rfind(':'));
  for (const std::string host : {"127.0.0.1", "[::1]"}) {
    Connection connection;
    connection.client = ConnectTo(host + port);
    if (!connection.client.valid()) continue;  // No IPv6 here.
    ASSERT_TRUE(WaitUntil([&] {
      connection.served =
          Descriptor(accept(listener->sockets()[0].get(), nullptr, nullptr));
      return connection.served.valid();
    }));
    EXPECT_TRUE(table_.Add(connection.served.get()));
    Send(connection.client, "01234");
    sockaddr_in6 own{};
    socklen_t length = sizeof(own);
    ASSERT_EQ(getsockname(connection.client.get(),
                          reinterpret_cast<sockaddr*>(&own), &length),
              0);
    // Both families have the port at the same place.
    const std::string number = std::to_string(ntohs(own.sin6_port));
    const std::string peer = host == "127.0.0.1" ? "ipv4:127.0.0.1:" + number
                                                 : "ipv6:%5B::1%5D:" + number;
    EXPECT_TRUE(WaitUntil([&] { return table_.BytesReceived(peer) == 5; }))
        << peer;
  }
}

}  // namespace
}  // namespace attention::server
