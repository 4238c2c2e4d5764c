// Whether a stream's client keeps up.
#ifndef ATTENTION_SERVER_ADMISSION_STREAM_PACE_H_
#define ATTENTION_SERVER_ADMISSION_STREAM_PACE_H_

#include <cstdint>
#include <optional>

#include "absl/time/time.h"

namespace attention::server {

// A stream's messages are read one by one, and between them the server may let
// its client wait. So its rate is measured over the time in which the server
// waits for the client, and over no other. What has come is told by the bytes
// that the connection received, less those of messages that came whole, where
// these are known, and else by whole messages. Thread-compatible.
class StreamPace {
 public:
  struct Settings {
    double min_rate = 0;  // bytes per second, over each `grace`
    absl::Duration grace;
    int64_t max_message_bytes = 0;
  };

  // The server waits from here on. `received`: the bytes of the connection so
  // far without those of messages that came whole, if that can be told.
  void Await(std::optional<int64_t> received, absl::Time now);
  // A message of so many bytes has come, which `received` still has, and the
  // server waits no longer. With nothing more than the end of the stream: 0
  // bytes.
  void Came(const Settings& settings, int64_t bytes,
            std::optional<int64_t> received, absl::Time now);

  // Whether it is time for Look().
  bool Due(absl::Time now) const { return waiting_ && now >= next_look_; }
  void Look(const Settings& settings, std::optional<int64_t> received,
            absl::Time now);
  // At most so many bytes came of the message that is awaited; 0 if none is, or
  // if that can not be told.
  int64_t MostBytes(std::optional<int64_t> received) const;

  // The server has waited for a while, and next to nothing came.
  bool stalled() const { return stalled_; }
  // Whether it has to go: too little came within so long.
  std::optional<absl::Duration> TooSlow(const Settings& settings) const;

 private:
  absl::Duration Window(const Settings& settings) const;
  // Counts time and bytes up to now.
  void Advance(std::optional<int64_t> received, absl::Time now);
  // At the end of a window: whether enough came in it.
  void Judge(const Settings& settings);
  void Count(int64_t bytes);

  bool waiting_ = false;
  absl::Time since_;  // counted up to here, while waiting
  absl::Time next_look_;
  std::optional<int64_t> received_;        // by then
  std::optional<int64_t> received_first_;  // when it began to wait
  int64_t counted_ = 0;                    // of the message that is awaited
  // Of the window in which the rate is measured: time waited, bytes that came.
  absl::Duration waited_;
  int64_t came_ = 0;
  bool below_rate_ = false;
  // Since it last made progress.
  absl::Duration idle_;
  int64_t idle_bytes_ = 0;
  bool stalled_ = false;
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_ADMISSION_STREAM_PACE_H_
