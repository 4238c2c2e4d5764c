// What the bytes of one connection were for.
//
// HTTP/2 lets a peer send much that costs it little and the server a lot:
// streams that are reset at once, headers that never end, frames that mean
// nothing, bodies that nobody asked for, calls whose answers nobody takes. gRPC
// 1.51 bounds none of it. All of it is bytes that no call explains, calls that
// are given up as soon as they are made, or more calls than a connection may
// have; calls that are meant explain what they bring.
#ifndef ATTENTION_SERVER_CONNECTIONS_TRAFFIC_H_
#define ATTENTION_SERVER_CONNECTIONS_TRAFFIC_H_

#include <array>
#include <cstdint>
#include <optional>

#include "absl/time/time.h"

namespace attention::server {

// What a stream may send before its message is read (gRPC's lookahead).
inline constexpr int64_t kUnreadWindowBytes = int64_t{16} << 10;

// The account of one connection. Thread-compatible.
class Traffic {
 public:
  // A call's part in it, kept by the call. While it is open it may bring
  // `allowed` bytes.
  struct Call {
    absl::Time begin;
    int64_t header_bytes = 0;
    int64_t allowed = 0;
    // Once its message is read: at most so many bytes, and what had come on the
    // connection before.
    int64_t message_limit = 0;
    int64_t received_before = 0;
  };
  // How a call ended.
  struct CallEnd {
    // Of the message, if all of it came and was read.
    std::optional<int64_t> message_bytes = std::nullopt;
    int64_t response_bytes = 0;
    // By the peer or with the connection, before its deadline.
    bool cancelled = false;
    // What came on the connection by now; wanted for messages that were cut
    // off.
    int64_t received = 0;
  };
  enum class Fault : uint8_t {
    kUnexplainedBytes,
    kCancelledCalls,
    kOpenCalls,
    kUnfinishedStreams
  };

  explicit Traffic(absl::Time now = absl::InfinitePast());

  // A call's headers came, of so many bytes before compression.
  Call Begin(int64_t header_bytes, absl::Time now);
  // Its message is read from here on.
  void Read(Call& call, int64_t message_limit);
  // A message of a stream came, of so many bytes, and so many were answered
  // since the last one; the next has `message_limit` at most.
  void Next(Call& call, int64_t message_bytes, int64_t response_bytes,
            int64_t message_limit);
  void End(const Call& call, const CallEnd& end, absl::Time now);

  // Compares with the bytes that the process took in on the connection: of
  // those that the system received, the ones it has read. A fault says that
  // nobody who means his calls behaves so. Times must not go back.
  std::optional<Fault> Look(int64_t received, absl::Time now);

  // The same for the streams that the peer has started since it connected.
  // Need not follow each Look().
  std::optional<Fault> LookAtStreams(int64_t started);

  // When it was last looked at, and what has come between the last two looks.
  absl::Time looked() const { return looked_; }
  int64_t came() const { return came_; }
  // By the last look, received at most.
  int64_t unexplained() const { return received_ - explained_ - open_; }

 private:
  // What was received some time ago: between `age` and one and a half of it.
  struct Past {
    std::array<int64_t, 3> received{};  // the newest last
    std::array<absl::Time, 3> time;

    void Look(int64_t now_received, absl::Duration age, absl::Time now);
  };
  static constexpr size_t kPasts = 3;

  int64_t explained_ = 0;  // bytes, by calls that ended
  int64_t open_ = 0;       // bytes that open calls may bring
  // What may still come of messages that the server cut off, until then.
  int64_t late_ = 0;
  absl::Time late_until_;
  int64_t open_calls_ = 0;
  int64_t finished_ = 0;  // streams: calls that ended, and what time forgives
  // Calls given up at once, less what time forgives.
  double cancelled_ = 0;
  int64_t received_ = 0;
  int64_t came_ = 0;
  absl::Time looked_;
  std::array<Past, kPasts> pasts_;
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_CONNECTIONS_TRAFFIC_H_
