// What a ClientSession knows of its session.
#ifndef ATTENTION_INTERNAL_SESSION_STATE_H_
#define ATTENTION_INTERNAL_SESSION_STATE_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "attention/v1/session.pb.h"

namespace attention::internal {

// An append in several calls, of which not all were done.
struct UnfinishedAppend {
  size_t digest = 0;
  int64_t tokens = 0;
  // The first so many of them are in the layer, at its end.
  int64_t done = 0;
};

// Thread-safe.
//
// Invariants:
//   1. At most one append per layer is under way.
//   2. A layer's request id stays the same until an append with it was
//      answered well, or the layer's length is told anew: an append whose
//      outcome is not known has the same id when it is tried again.
//   3. Once the session is gone it stays so.
class SessionState {
 public:
  using Clock = std::chrono::steady_clock;

  // A session as the server tells of it.
  explicit SessionState(const v1::Session& session);
  SessionState(const SessionState&) = delete;
  SessionState& operator=(const SessionState&) = delete;

  const std::string& id() const { return id_; }
  // 0: the server, an older one, told none.
  uint64_t incarnation() const { return incarnation_; }
  const v1::SessionConfig& config() const { return config_; }
  // How long it lives unused.
  Clock::duration lease() const { return lease_; }
  // -1: there is no such layer.
  int64_t length(int64_t layer) const;

  // NOT_FOUND once the session is gone.
  absl::Status Check() const;

  // To be told how each call ended that named the session, and when it began:
  // it has begun the lease anew, or found out that the session is gone.
  void CallEnded(const absl::Status& status, Clock::time_point begun);
  void Deleted();
  Clock::time_point last_used() const;

  // Takes over the server's lengths.
  void SetLengths(const v1::Session& session);

 private:
  friend class LayerClaim;
  struct Layer {
    int64_t length = 0;
    bool appending = false;
    // Request ids used up.
    int64_t appends = 0;
    std::optional<UnfinishedAppend> unfinished;
  };

  Layer* Find(int64_t layer);

  const std::string id_;
  const uint64_t incarnation_;
  const v1::SessionConfig config_;
  const Clock::duration lease_;
  // What begins every request id: no other object has the same.
  const std::string nonce_;

  mutable std::mutex mutex_;
  // All guarded by mutex_.
  std::vector<Layer> layers_;
  absl::Status gone_;
  Clock::time_point last_used_;
};

// An append to a layer while it is under way: nobody else of this object
// appends to the layer then. Movable; the destructor lets the layer go, and
// leaves length and request id as they are unless Appended() was called.
// Refers to the state.
class LayerClaim {
 public:
  // ABORTED, with ConflictLength(), if another append is under way. A layer
  // that the session does not have is not claimed: the server will say so.
  static absl::StatusOr<LayerClaim> Of(SessionState& state, int64_t layer);

  LayerClaim(LayerClaim&& other) noexcept;
  LayerClaim& operator=(LayerClaim&&) = delete;
  ~LayerClaim();

  // What to send; nothing and empty for a layer that there is not.
  std::optional<int64_t> expected_length() const;
  std::string request_id() const;

  // The tokens are there, the layer has `length` with them. The next append
  // that the claim is used for has another request id.
  void Appended(int64_t length);

  // What was left last, if nothing has been appended or truncated since.
  std::optional<UnfinishedAppend> unfinished() const;
  void LeaveUnfinished(const UnfinishedAppend& append);

 private:
  LayerClaim(SessionState& state, SessionState::Layer* layer, int64_t number)
      : state_(state), layer_(layer), number_(number) {}

  SessionState& state_;
  SessionState::Layer* layer_;  // null: none, or moved from
  int64_t number_;
};

}  // namespace attention::internal

#endif  // ATTENTION_INTERNAL_SESSION_STATE_H_
