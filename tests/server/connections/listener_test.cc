#include "server/connections/listener.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "tests/support/socket.h"

namespace attention::server {
namespace {

using ::attention::testing::ConnectTo;
using ::testing::MatchesRegex;

// Unique to this process; short, as socket paths must be.
std::string SocketPath(const std::string& name) {
  return absl::StrCat(::testing::TempDir(), "listener_", getpid(), "_", name);
}

bool Exists(const std::string& path) {
  struct stat file;
  return lstat(path.c_str(), &file) == 0;
}

absl::Status CannotListen(const std::string& address,
                          const std::string& reason) {
  return absl::UnavailableError("--listen: cannot listen on \"" + address +
                                "\": " + reason);
}

std::string PortOf(const std::string& address) {
  return address.substr(address.rfind(':') + 1);
}

bool HasIPv6() { return Listener::Open("[::1]:0").ok(); }

TEST(ListenerTest, PortZeroBecomesAFreePort) {
  const auto first = Listener::Open("127.0.0.1:0");
  const auto second = Listener::Open("127.0.0.1:0");
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_THAT(first->address(), MatchesRegex("127\\.0\\.0\\.1:[1-9][0-9]*"));
  EXPECT_NE(first->address(), second->address());
  EXPECT_EQ(first->sockets().size(), 1u);
  EXPECT_TRUE(ConnectTo(first->address()).valid());
}

TEST(ListenerTest, ANameListensOnAllItsAddressesWithOnePort) {
  const auto listener = Listener::Open("localhost:0");
  ASSERT_TRUE(listener.ok()) << listener.status();
  EXPECT_THAT(listener->address(), MatchesRegex("localhost:[1-9][0-9]*"));
  EXPECT_TRUE(ConnectTo("127.0.0.1:" + PortOf(listener->address())).valid());
  // Whether it has a second one is the machine's matter.
  EXPECT_EQ(ConnectTo("[::1]:" + PortOf(listener->address())).valid(),
            listener->sockets().size() == 2);
}

TEST(ListenerTest, WildcardsListenOnBothFamilies) {
  for (const std::string host : {"[::]", "0.0.0.0"}) {
    const auto listener = Listener::Open(host + ":0");
    ASSERT_TRUE(listener.ok()) << listener.status();
    EXPECT_TRUE(absl::StartsWith(listener->address(), host + ":"));
    const std::string port = PortOf(listener->address());
    EXPECT_TRUE(ConnectTo("127.0.0.1:" + port).valid()) << host;
    EXPECT_EQ(ConnectTo("[::1]:" + port).valid(), HasIPv6()) << host;
  }
}

TEST(ListenerTest, IPv6ListensOnIPv6Alone) {
  const auto listener = Listener::Open("[::1]:0");
  if (!listener.ok()) GTEST_SKIP() << "no IPv6 here: " << listener.status();
  EXPECT_TRUE(ConnectTo(listener->address()).valid());
  EXPECT_FALSE(ConnectTo("127.0.0.1:" + PortOf(listener->address())).valid());
}

TEST(ListenerTest, RefusesAPortInUse) {
  const auto first = Listener::Open("127.0.0.1:0");
  ASSERT_TRUE(first.ok());
  for (const std::string host : {"127.0.0.1", "localhost", "0.0.0.0", "[::]"}) {
    const std::string address = host + ":" + PortOf(first->address());
    EXPECT_EQ(Listener::Open(address).status(),
              CannotListen(address, "in use"));
  }
}

TEST(ListenerTest, APortIsFreeAgainWhenItsListenerIsGone) {
  std::string address;
  Descriptor client;
  {
    const auto listener = Listener::Open("127.0.0.1:0");
    ASSERT_TRUE(listener.ok());
    address = listener->address();
    client = ConnectTo(address);
    // Closed on this side first, its connection keeps the port for a while.
    const Descriptor served(
        accept(listener->sockets()[0].get(), nullptr, nullptr));
  }
  EXPECT_TRUE(Listener::Open(address).ok());
}

TEST(ListenerTest, RefusesWhatIsNoAddressOfThisMachine) {
  // For documentation only.
  EXPECT_EQ(Listener::Open("192.0.2.1:0").status(),
            CannotListen("192.0.2.1:0", "not an address of this machine"));
  // The first is reserved for no name; what the resolver says of names varies.
  for (const std::string address : {"nowhere.invalid:0", "[localhost]:0"}) {
    const absl::Status status = Listener::Open(address).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(std::string(status.message()),
                MatchesRegex("--listen: cannot listen on \"[^\"]*\": .+"));
  }
}

TEST(ListenerTest, SaysWhatIsWrongWithAPath) {
  EXPECT_EQ(Listener::Open("unix:/no/such/folder/socket").status(),
            CannotListen("unix:/no/such/folder/socket",
                         "there is no folder /no/such/folder"));
  const std::string file = SocketPath("plain");
  std::ofstream(file) << "a file";
  EXPECT_EQ(Listener::Open("unix:" + file + "/socket").status(),
            CannotListen("unix:" + file + "/socket", file + " is no folder"));
  unlink(file.c_str());
}

TEST(ListenerTest, RemovesItsSocketFile) {
  const std::string path = SocketPath("removed");
  {
    const auto listener = Listener::Open("unix:" + path);
    ASSERT_TRUE(listener.ok()) << listener.status();
    EXPECT_EQ(listener->address(), "unix:" + path);
    EXPECT_TRUE(Exists(path));
    EXPECT_TRUE(ConnectTo(listener->address()).valid());
  }
  EXPECT_FALSE(Exists(path));
}

TEST(ListenerTest, LeavesAFileThatIsNotItsOwnAnyMore) {
  const std::string path = SocketPath("taken");
  {
    const auto listener = Listener::Open("unix:" + path);
    ASSERT_TRUE(listener.ok()) << listener.status();
    // Kept, so that its inode is not given to the next file.
    ASSERT_EQ(rename(path.c_str(), (path + "_old").c_str()), 0);
    std::ofstream(path) << "another's";
  }
  EXPECT_TRUE(Exists(path));
  unlink(path.c_str());
  unlink((path + "_old").c_str());
}

// Bound, and closed without removing the file.
void LeaveStaleSocket(const std::string& path) {
  const auto listener = Listener::Open("unix:" + path);
  ASSERT_TRUE(listener.ok()) << listener.status();
  ASSERT_EQ(link(path.c_str(), (path + "_kept").c_str()), 0);
}

TEST(ListenerTest, ReplacesAUnixSocketThatNobodyServes) {
  const std::string path = SocketPath("stale");
  LeaveStaleSocket(path);
  ASSERT_EQ(rename((path + "_kept").c_str(), path.c_str()), 0);
  ASSERT_FALSE(ConnectTo("unix:" + path).valid());
  const auto listener = Listener::Open("unix:" + path);
  ASSERT_TRUE(listener.ok()) << listener.status();
  EXPECT_TRUE(ConnectTo("unix:" + path).valid());
}

TEST(ListenerTest, LeavesAUnixSocketThatSomebodyServes) {
  const std::string address = "unix:" + SocketPath("served");
  const auto first = Listener::Open(address);
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(Listener::Open(address).status(),
            CannotListen(address, "another process serves it"));
  EXPECT_TRUE(ConnectTo(address).valid());
}

TEST(ListenerTest, LeavesAUnixSocketWithAFullQueue) {
  const std::string address = "unix:" + SocketPath("full");
  const auto first = Listener::Open(address);
  ASSERT_TRUE(first.ok()) << first.status();
  listen(first->sockets()[0].get(), 0);
  const Descriptor waiting = ConnectTo(address);
  EXPECT_EQ(Listener::Open(address).status(),
            CannotListen(address, "another process serves it"));
  EXPECT_TRUE(Exists(address.substr(5)));
}

TEST(ListenerTest, LeavesAFileThatIsNoSocket) {
  const std::string path = SocketPath("file");
  std::ofstream(path) << "precious";
  EXPECT_EQ(
      Listener::Open("unix:" + path).status(),
      CannotListen("unix:" + path, "a file that is no socket has this name"));
  EXPECT_TRUE(Exists(path));
  unlink(path.c_str());
}

TEST(ListenerTest, UnixPathsAreThoseOfGrpcsClients) {
  const std::string path = SocketPath("a b");
  for (const std::string& address :
       {"unix://" + path, "unix:" + SocketPath("a%20b")}) {
    const auto listener = Listener::Open(address);
    ASSERT_TRUE(listener.ok()) << listener.status();
    EXPECT_EQ(listener->address(), address);
    EXPECT_TRUE(ConnectTo("unix:" + path).valid());
  }
}

TEST(ListenerTest, AbstractNamesLeaveNoFile) {
  const std::string address =
      absl::StrCat("unix-abstract:attention_listener_", getpid());
  const auto listener = Listener::Open(address);
  ASSERT_TRUE(listener.ok()) << listener.status();
  EXPECT_TRUE(ConnectTo(address).valid());
  EXPECT_EQ(Listener::Open(address).status(), CannotListen(address, "in use"));
}

}  // namespace
}  // namespace attention::server
