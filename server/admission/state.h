// What admission remembers of calls, connections and tenants; for its own
// files.
#ifndef ATTENTION_SERVER_ADMISSION_STATE_H_
#define ATTENTION_SERVER_ADMISSION_STATE_H_

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <list>
#include <numeric>
#include <optional>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/admission/admission.h"
#include "server/admission/stream_pace.h"
#include "server/admission/upload.h"
#include "server/admission/work_budget.h"
#include "server/auth/tenant.h"

namespace attention::server {

// What a call that waits may have sent already: gRPC's flow control lets a
// stream send 16 KiB before it is read (server.cc), beside its headers; buffers
// have slack.
inline constexpr int64_t kWaitingBytes = int64_t{128} << 10;
// A message that is said to have no more is small: read, it takes little more
// than unread, and is soon gone.
inline constexpr int64_t kSmallBytes = kWaitingBytes;
// Calls among which a small one is looked for when the first does not fit.
inline constexpr int kMostPassed = 64;

// Calls by the power of two of their seconds, from 1 us on.
inline size_t RankOf(double seconds, size_t ranks) {
  if (!(seconds > 1e-6)) return 0;
  return std::min(ranks - 1, static_cast<size_t>(std::log2(seconds * 1e6)));
}

// What the executor does before a call of so many seconds of the same tenant,
// or in turn with it: the smaller of two calls goes first, by powers of two.
template <size_t kRanks>
double UpToRankOf(double seconds, const std::array<double, kRanks>& by_rank) {
  const size_t last = std::min(RankOf(seconds, kRanks) + 1, kRanks - 1);
  // Less than nothing can only be an error of rounding.
  return std::max(
      0.0, std::accumulate(by_rank.begin(), by_rank.begin() + last + 1, 0.0));
}

// The calls of one connection.
struct Admission::Peer {
  int64_t waiting = 0;
  int64_t reading = 0;
  int64_t inside = 0;         // those that are read, too
  int64_t reading_bytes = 0;  // charged for the messages
  int64_t streams = 0;        // of those inside
  int64_t stream_bytes = 0;   // charged for the messages of these
  // Of what the connection received: messages that came whole, or are given up.
  int64_t done_bytes = 0;
  std::list<Entry*> reads;  // those that are reading
};

struct Admission::Entry {
  enum class Phase : uint8_t {
    kWaiting,
    kReading,
    kWorking,
    kSending,
    kLeaving  // its entrant may be gone
  };

  Entrant* entrant = nullptr;
  Request request;
  Peers::iterator peer;
  Share* share = nullptr;
  Entries::iterator self;  // its place in a list
  std::array<int64_t, kMemoryKinds> bytes{};
  double seconds = 0;
  double charged = 0;  // of its share's time, in seconds
  Phase phase = Phase::kWaiting;
  absl::Time since;       // of this phase
  absl::Status expelled;  // why it has to go; OK: it need not
  bool cut = false;       // its answer or status was not taken in time
  Upload upload;          // while reading
  bool awaiting = false;  // while reading: a message that need not come
  // Of itself, whose node stands in the connection's `reads` while it reads, so
  // that nothing is allocated then.
  std::list<Entry*> read_node;
  int64_t unknown_bytes = 0;  // of unknown_bytes_
  int64_t sending_bytes = 0;  // while sending
  // Of a stream, while it works; its `seconds` are those of what has come.
  std::optional<StreamPace> pace;
  int64_t answering_bytes = 0;  // on their way since answering_since
  absl::Time answering_since;

  bool Reading() const { return phase == Phase::kReading && expelled.ok(); }
  bool Streaming() const {
    return phase == Phase::kWorking && pace && expelled.ok();
  }
  bool Small() const { return request.bytes && *request.bytes <= kSmallBytes; }
};

// What a tenant has of the server.
struct Admission::Share {
  explicit Share(absl::Time now) : work(now) {}

  TenantPtr tenant;  // as its latest call had it
  Entries waiting;   // not read yet: small ones first, each kind in the order
                     // they came
  int64_t small_waiting = 0;  // so many, which stand first in `waiting`
  int64_t inside = 0;
  int64_t entering = 0;       // in Enter(), which may let go of the lock
  int64_t bytes = 0;          // all that its calls are charged for
  int64_t unknown_bytes = 0;  // of those, uploads of unknown size
  // Thread-seconds of the calls that wait and of those inside, by rank.
  std::array<double, kRanks> seconds_waiting{};
  std::array<double, kRanks> seconds_inside{};
  double all_waiting = 0, all_inside = 0;  // the sums of both
  double time = 0;  // thread-seconds that were let in, over weight
  WorkBudget work;

  bool Idle() const { return waiting.empty() && inside == 0 && entering == 0; }
  // What counts for its limit: how much of an upload of unknown size is there
  // can not be told.
  int64_t limited_bytes() const { return bytes - unknown_bytes; }
  // Less than nothing can only be an error of rounding.
  double inside_seconds() const { return std::max(0.0, all_inside); }
  double all_seconds() const { return std::max(0.0, all_inside + all_waiting); }

  // What is worked off of all tenants until `own` seconds of this one are.
  // Others have their part by weight meanwhile, or all that they want,
  // (*wanted)(), if that is less.
  double Until(const Shares& shares, double own,
               double (Share::*wanted)() const) const {
    double seconds = own;
    for (const auto& [id, other] : shares) {
      if (&other == this) continue;
      seconds += std::min((other.*wanted)(),
                          own * other.tenant->weight / tenant->weight);
    }
    return seconds;
  }
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_ADMISSION_STATE_H_
