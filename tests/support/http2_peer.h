// A client of HTTP/2 by hand, one frame at a time, for what gRPC's own clients
// never do: they answer pings at once and begin no call behind a GOAWAY.
#ifndef ATTENTION_TESTS_SUPPORT_HTTP2_PEER_H_
#define ATTENTION_TESTS_SUPPORT_HTTP2_PEER_H_

#include <cstdint>
#include <optional>
#include <string>

#include "server/connections/descriptor.h"

namespace attention::testing {

// Not thread-safe.
class Http2Peer {
 public:
  enum Type : uint8_t {
    kData = 0,
    kHeaders = 1,
    kRstStream = 3,
    kSettings = 4,
    kPing = 6,
    kGoaway = 7,
    kWindowUpdate = 8
  };
  static constexpr uint8_t kEndStream = 1, kAck = 1;

  struct Frame {
    uint8_t type;
    uint8_t flags;
    uint32_t stream;
    std::string payload;
  };

  // Connects to "127.0.0.1:port", says that it is a client, and waits until the
  // server has answered.
  explicit Http2Peer(const std::string& address);

  // A whole ComputeAttention call on `stream`, an odd number that grows.
  // `message`: at most 16 KiB.
  void SendCall(uint32_t stream, const std::string& message);
  void AnswerPing(const Frame& ping);
  // Lets the server send 16 MiB more, and 16 MiB in each call to come, though
  // little of it fits into this peer's system.
  void TakeMuch();
  // Lets the server send a byte more.
  void TakeOneMore();
  // The next frame; nothing once the server has closed the connection. Fails
  // the test if neither comes within 30 s.
  std::optional<Frame> ReadFrame();
  // The next frame of that type, without those before it.
  std::optional<Frame> ReadFrameOf(Type type);

 private:
  void SendFrame(const Frame& frame);
  bool ReadBytes(size_t count, std::string& bytes);

  const std::string address_;
  const server::Descriptor socket_;
};

// What a GOAWAY names as the last stream that is served.
uint32_t LastStreamOf(const Http2Peer::Frame& goaway);

}  // namespace attention::testing

#endif  // ATTENTION_TESTS_SUPPORT_HTTP2_PEER_H_
