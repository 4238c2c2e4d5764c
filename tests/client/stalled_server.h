// A peer that lets a client send as much as it likes, and stops reading in the
// middle.
#ifndef ATTENTION_TESTS_CLIENT_STALLED_SERVER_H_
#define ATTENTION_TESTS_CLIENT_STALLED_SERVER_H_

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/descriptor.h"
#include "tests/support/http2_frames.h"

namespace attention {

// Takes one connection.
class StalledServer {
 public:
  // Bytes that are read: enough to know that the call has begun.
  static constexpr size_t kRead = 256 << 10;

  StalledServer() : listener_(socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    auto* generic = reinterpret_cast<sockaddr*>(&address);
    socklen_t length = sizeof(address);
    EXPECT_EQ(bind(listener_.get(), generic, length), 0);
    EXPECT_EQ(listen(listener_.get(), 1), 0);
    EXPECT_EQ(getsockname(listener_.get(), generic, &length), 0);
    port_ = ntohs(address.sin_port);
    reader_ = std::thread([this] { AcceptAndRead(); });
  }
  ~StalledServer() { WaitUntilStalled(); }

  std::string address() const { return absl::StrCat("127.0.0.1:", port_); }

  // Until it has read all that it will.
  void WaitUntilStalled() {
    if (reader_.joinable()) reader_.join();
  }

  // Breaks the connection. After WaitUntilStalled().
  void Close() { connection_ = Descriptor(); }

 private:
  void AcceptAndRead() {
    using testing::BigEndian;
    using testing::FrameType;
    using testing::MakeFrame;
    connection_ = Descriptor(accept(listener_.get(), nullptr, nullptr));
    constexpr uint32_t kMost = (uint32_t{1} << 31) - 1;
    // INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE; then the connection's window.
    const std::string start =
        MakeFrame(FrameType::kSettings, 0, 0,
                  BigEndian(4, 2) + BigEndian(kMost) + BigEndian(5, 2) +
                      BigEndian((1 << 24) - 1)) +
        MakeFrame(FrameType::kSettings, testing::kAck, 0, "") +
        MakeFrame(FrameType::kWindowUpdate, 0, 0, BigEndian(kMost - 65535));
    EXPECT_EQ(send(connection_.get(), start.data(), start.size(), MSG_NOSIGNAL),
              start.size());
    std::vector<char> bytes(kRead);
    EXPECT_EQ(recv(connection_.get(), bytes.data(), kRead, MSG_WAITALL), kRead);
  }

  Descriptor listener_;
  Descriptor connection_;
  int port_ = 0;
  std::thread reader_;
};

}  // namespace attention

#endif  // ATTENTION_TESTS_CLIENT_STALLED_SERVER_H_
