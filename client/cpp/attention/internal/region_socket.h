// The client's side of the socket at which memory is registered with a server
// (SharedMemoryRequest in attention.proto).
#ifndef ATTENTION_INTERNAL_REGION_SOCKET_H_
#define ATTENTION_INTERNAL_REGION_SOCKET_H_

#include <atomic>
#include <cstdint>
#include <deque>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "attention/internal/patience.h"
#include "attention/v1/attention.pb.h"
#include "base/descriptor.h"

namespace attention::internal {

// A server that answers nothing for a second is given up: the socket is broken
// then, for good. Thread-safe; one thread at a time asks.
class RegionSocket {
 public:
  // To "unix:/path"; not connected if nobody serves it, or it cannot be reached
  // from here. Does not wait.
  explicit RegionSocket(const std::string& address);

  // Whether the server has not ended it. Looks, does not ask.
  bool connected() const;

  // The region's id. What the server says if it refuses, with its code;
  // UNAVAILABLE: the socket is broken; DEADLINE_EXCEEDED: the patience was
  // over first. The region is dropped then if the server registers it after
  // all.
  absl::StatusOr<std::string> Register(int memory, const std::string& token,
                                       const Patience& patience);

  // Without a wait, best effort. What the server is told later than this comes
  // after it.
  void Drop(std::string region);

 private:
  // What the server has yet to answer, in its order.
  struct Asked {
    absl::Time at;
    bool waits = false;     // it is waited for
    bool given_up = false;  // a registration that was waited for
  };

  void TryTellDrops();
  absl::StatusOr<v1::SharedMemoryResponse> Ask(int memory,
                                               const std::string& token,
                                               const Patience& patience);
  // The rest needs the turn.
  bool Send(const v1::SharedMemoryRequest& request, int descriptor);
  bool TakeAnswer(v1::SharedMemoryResponse& response);
  bool TakeAnswers(v1::SharedMemoryResponse* response);
  void TellDrops();
  void TellDrop(const std::string& region);
  void Break();

  Descriptor socket_;
  std::atomic<bool> broken_{false};
  Turns turns_;
  std::deque<Asked> asked_;  // with the turn

  std::mutex mutex_;
  std::vector<std::string> dropped_;  // guarded by mutex_, to be told
};

}  // namespace attention::internal

#endif  // ATTENTION_INTERNAL_REGION_SOCKET_H_
