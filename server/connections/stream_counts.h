// How many streams peers have started, as gRPC's transport counts them.
#ifndef ATTENTION_SERVER_CONNECTIONS_STREAM_COUNTS_H_
#define ATTENTION_SERVER_CONNECTIONS_STREAM_COUNTS_H_

#include <cstdint>
#include <optional>
#include <string>
#include <unordered_map>

#include "absl/time/time.h"

namespace attention::server {

// Asks channelz, gRPC's own statistics, which counts a stream as soon as its
// headers are parsed. gRPC may tell of the call seconds later, if it has
// thousands of others to begin first. Not thread-safe.
class StreamCounts {
 public:
  // `peer` as in ConnectionTable. Nothing if gRPC does not know it (yet).
  // Some 20 us; may throw std::bad_alloc.
  std::optional<int64_t> Started(const std::string& peer, absl::Time now);

 private:
  void LearnSockets(absl::Time now);

  std::unordered_map<std::string, int64_t> sockets_;  // channelz ids by peer
  absl::Time next_lesson_;
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_CONNECTIONS_STREAM_COUNTS_H_
