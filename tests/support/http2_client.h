// An HTTP/2 client that sends what it is told, frame by frame: for calls that
// gRPC's own clients do not make.
#ifndef ATTENTION_TESTS_SUPPORT_HTTP2_CLIENT_H_
#define ATTENTION_TESTS_SUPPORT_HTTP2_CLIENT_H_

#include <cstdint>
#include <optional>
#include <string>

#include "base/descriptor.h"
#include "tests/support/http2_frames.h"

namespace attention::testing {

// A connection. Fails the test where it would wait for longer than 30 s. Not
// thread-safe.
class Http2Client {
 public:
  struct Frame {
    FrameType type;
    uint8_t flags;
    uint32_t stream;
    std::string payload;
  };

  // Connects and exchanges settings.
  explicit Http2Client(const std::string& address);

  // A request's headers, on a new stream whose number it returns.
  uint32_t Call(const HeaderList& headers, bool last = false);
  // A part of the request's body, at most 16 KiB.
  void SendData(uint32_t stream, const std::string& bytes, bool last);
  // A whole ComputeAttention call; returns its stream.
  uint32_t Compute(const std::string& message);
  // Ends a stream as a client does that cancels its call.
  void Cancel(uint32_t stream);
  // Whether a ping is answered, before the connection closes.
  bool Ping();
  // Answers one of the server's.
  void AnswerPing(const Frame& ping);
  // Lets the server send 16 MiB more, and 16 MiB in each call to come, though
  // little of it fits into this peer's system.
  void TakeMuch();
  // Lets the server send a byte more.
  void TakeOneMore();

  // The next frame; nothing once the server has closed the connection.
  std::optional<Frame> ReadFrame();
  // The next frame of that type, without those before it.
  std::optional<Frame> ReadFrameOf(FrameType type);
  // All that comes on a stream until it ends or the connection closes: headers
  // as they are coded, which is plain text where the connection had none of the
  // same name and value before.
  std::string ReadAnswer(uint32_t stream);

  // Closes the connection.
  void Vanish() { socket_ = Descriptor(); }

 private:
  void SendFrame(FrameType type, uint8_t flags, uint32_t stream,
                 const std::string& payload);
  bool ReadBytes(size_t count, std::string& bytes);

  Descriptor socket_;
  uint32_t next_stream_ = 1;
};

// What a GOAWAY names as the last stream that is served.
uint32_t LastStreamOf(const Http2Client::Frame& goaway);

}  // namespace attention::testing

#endif  // ATTENTION_TESTS_SUPPORT_HTTP2_CLIENT_H_
