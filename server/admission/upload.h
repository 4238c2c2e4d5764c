// How a call's message comes in, and what is charged for it meanwhile.
#ifndef ATTENTION_SERVER_ADMISSION_UPLOAD_H_
#define ATTENTION_SERVER_ADMISSION_UPLOAD_H_

#include <cstdint>
#include <optional>

#include "absl/time/time.h"

namespace attention::server {

// gRPC tells the size of a message only when it is whole. So a message whose
// size the caller has not announced is charged by what can be seen, the bytes
// that its connection received: for a small message while it is young, then for
// the largest message as long as bytes come fast, and for what has come while
// they come slowly or not at all. A message that nobody has asked for, the next
// one of a call that takes many, is charged only once something of it can be
// seen, and may take its time. Thread-compatible.
class Upload {
 public:
  struct Settings {
    int64_t max_bytes = 0;    // of a message
    int64_t young_bytes = 0;  // what is charged for it while it is young
    double min_rate = 0;      // bytes per second, over each `grace`
    absl::Duration grace;
  };
  enum class Pace : uint8_t { kAnnounced, kYoung, kFast, kSlow, kAwaited };

  Upload() = default;
  // One that may come, or never. `received`: as below.
  static Upload Awaited(std::optional<int64_t> received, absl::Time now);
  // Begins now. `announced`: the size of the message, if that is known;
  // `received`: the bytes of its connection so far, if that can be told.
  Upload(const Settings& settings, std::optional<int64_t> announced,
         std::optional<int64_t> received, absl::Time now);

  // Whether it is time for Look().
  bool Due(absl::Time now) const { return now >= next_look_; }
  // Looks at it again. `received` as above. `reads`: messages that come on this
  // connection; `announced`: what all these may have, by what callers said.
  void Look(const Settings& settings, std::optional<int64_t> received,
            int64_t reads, int64_t announced, absl::Time now);

  // Of what the connection received, in all `received` by now, so many bytes
  // were another message, which may have begun before this one.
  void NotMine(int64_t bytes, int64_t received);

  Pace pace() const { return pace_; }
  // Bytes to charge for the message from here on.
  int64_t bytes() const { return bytes_; }
  // Next to nothing has come for a while: it takes no time now, and has to go
  // if others need its memory.
  bool stalled() const { return stalled_; }
  // Whether it has to go, whatever others need: too little came within so long.
  std::optional<absl::Duration> TooSlow(const Settings& settings,
                                        absl::Time now) const;

 private:
  Pace pace_ = Pace::kYoung;
  bool may_wait_ = false;  // Awaited()
  int64_t bytes_ = 0;
  absl::Time start_;
  // Bytes of the connection when this began and at the last look.
  std::optional<int64_t> received_first_;
  int64_t received_last_ = 0;
  absl::Time next_look_;
  // Whether it is stalled is told again and again over a short while from here.
  absl::Time while_;
  int64_t while_received_ = 0;
  bool stalled_ = false;
  // The rate is measured from here, over `grace`.
  absl::Time window_;
  int64_t window_received_ = 0;
  bool below_rate_ = false;
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_ADMISSION_UPLOAD_H_
