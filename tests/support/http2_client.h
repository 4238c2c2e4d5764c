// An HTTP/2 client that sends what it is told, frame by frame: for calls that
// gRPC's own clients do not make.
#ifndef ATTENTION_TESTS_SUPPORT_HTTP2_CLIENT_H_
#define ATTENTION_TESTS_SUPPORT_HTTP2_CLIENT_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "server/connections/descriptor.h"

namespace attention::testing {

using HeaderList = std::vector<std::pair<std::string, std::string>>;

// What gRPC's clients send with a call of `path`.
HeaderList GrpcHeaders(const std::string& path);

// A message as gRPC frames it.
std::string GrpcMessage(const std::string& bytes, bool compressed = false);

// A connection. Fails the test where it would wait for longer than 30 s. Not
// thread-safe.
class Http2Client {
 public:
  // Connects and exchanges settings.
  explicit Http2Client(const std::string& address);

  // A request's headers, on a new stream whose number it returns.
  uint32_t Call(const HeaderList& headers, bool last = false);
  // A part of the request's body.
  void SendData(uint32_t stream, const std::string& bytes, bool last);
  // Ends a stream as a client does that cancels its call.
  void Cancel(uint32_t stream);
  // Whether a ping is answered, before the connection closes.
  bool Ping();

  // All that comes on a stream until it ends or the connection closes: headers
  // as they are coded, which is plain text where the connection had none of the
  // same name and value before.
  std::string ReadAnswer(uint32_t stream);

  // Closes the connection.
  void Vanish() { socket_ = server::Descriptor(); }

 private:
  enum class Type : uint8_t {
    kData = 0,
    kHeaders = 1,
    kReset = 3,
    kSettings = 4,
    kPing = 6,
    kGoaway = 7,
    kContinuation = 9
  };
  struct Frame {
    Type type;
    uint8_t flags;
    uint32_t stream;
    std::string payload;
  };

  void SendFrame(Type type, uint8_t flags, uint32_t stream,
                 const std::string& payload);
  // The next frame; false if the connection is closed.
  bool ReadFrame(Frame* frame);
  bool ReadBytes(size_t count, std::string* bytes);

  server::Descriptor socket_;
  uint32_t next_stream_ = 1;
};

// Whether the coded headers in `answer` have this one.
bool HasHeader(const std::string& answer, const std::string& name,
               const std::string& value);

}  // namespace attention::testing

#endif  // ATTENTION_TESTS_SUPPORT_HTTP2_CLIENT_H_
