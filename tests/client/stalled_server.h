// A peer that lets a client send as much as it likes, and stops reading in the
// middle.
#ifndef ATTENTION_TESTS_CLIENT_STALLED_SERVER_H_
#define ATTENTION_TESTS_CLIENT_STALLED_SERVER_H_

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cstddef>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "base/descriptor.h"
#include "tests/support/http2_frames.h"

namespace attention {

// Takes one connection, over a Unix socket: what the system keeps of what is
// not read stays far below a message of megabytes there.
class StalledServer {
 public:
  // Bytes that are read: enough to know that the call has begun.
  static constexpr size_t kRead = 256 << 10;

  explicit StalledServer(int family = AF_UNIX)
      : listener_(socket(family, SOCK_STREAM, 0)) {
    // On a free port; or under an abstract name that the system gives.
    sockaddr_in tcp{};
    tcp.sin_family = AF_INET;
    tcp.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    sockaddr_un local{};
    local.sun_family = AF_UNIX;
    const bool is_tcp = family == AF_INET;
    auto* generic = is_tcp ? reinterpret_cast<sockaddr*>(&tcp)
                           : reinterpret_cast<sockaddr*>(&local);
    socklen_t length = is_tcp ? sizeof(tcp) : sizeof(local.sun_family);
    EXPECT_EQ(bind(listener_.get(), generic, length), 0);
    EXPECT_EQ(listen(listener_.get(), 1), 0);
    length = is_tcp ? sizeof(tcp) : sizeof(local);
    EXPECT_EQ(getsockname(listener_.get(), generic, &length), 0);
    address_ = is_tcp ? absl::StrCat("127.0.0.1:", ntohs(tcp.sin_port))
                      : absl::StrCat(
                            "unix-abstract:",
                            absl::string_view(
                                local.sun_path + 1,
                                length - offsetof(sockaddr_un, sun_path) - 1));
    reader_ = std::thread([this] { AcceptAndRead(); });
  }
  ~StalledServer() { WaitUntilStalled(); }

  const std::string& address() const { return address_; }

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
  std::string address_;
  std::thread reader_;
};

}  // namespace attention

#endif  // ATTENTION_TESTS_CLIENT_STALLED_SERVER_H_
