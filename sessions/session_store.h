// All sessions of a server, by owner and id.
#ifndef ATTENTION_SESSIONS_SESSION_STORE_H_
#define ATTENTION_SESSIONS_SESSION_STORE_H_

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/btree_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "base/buffer_pool.h"
#include "sessions/lease_clock.h"
#include "sessions/memory_account.h"
#include "sessions/session.h"

namespace attention {

// The session that a NotFound error of the store is about; empty for others.
std::string MissingSession(const absl::Status& status);

// Thread-safe. An owner sees its own sessions only. Every `now` is that of one
// LeaseClock.
//
// An `incarnation` beside an id is that of the session that is meant: where the
// session of this id has another, the one that is meant has ended. 0: whichever
// session has the id.
//
// Invariants:
//   1. Only sessions whose lease is over are evicted, however short memory is.
//   2. The bytes of all pages, those that only readers still hold included, are
//      at most Limits::bytes, and those of an owner at most its own limit.
class SessionStore {
 public:
  struct Limits {
    // Of the pages of all sessions.
    int64_t bytes = 0;
    // Sessions of all owners.
    int64_t sessions = int64_t{1} << 16;
  };
  struct OwnerLimits {
    int64_t bytes = 0;
    int64_t sessions = 0;
  };
  using SessionPtr = std::shared_ptr<Session>;

  // The longest id, in bytes. Ids are printable ASCII without spaces.
  static constexpr size_t kMaxIdBytes = 128;

  // `pool` has the memory of the pages.
  SessionStore(const Limits& limits, std::shared_ptr<BufferPool> pool);

  // What `owner` may have, from now on. By default as much as all.
  void SetLimits(absl::string_view owner, const OwnerLimits& limits);

  // InvalidArgument naming the member, as in SessionConfig of session.proto.
  static absl::Status Check(const SessionConfig& config);

  // Whether a ResourceExhausted error is about the number of sessions, not
  // about bytes.
  static bool IsOfNumber(const absl::Status& status);

  // Whether a NotFound error is about a session whose id another one has now.
  static bool IsOfAnother(const absl::Status& status);

  // A new session, or the one that `id` names already if its configuration is
  // the same.
  //
  // Errors: InvalidArgument naming the field; AlreadyExists if the
  // configuration is another; ResourceExhausted beyond the number of sessions,
  // or where there is no room for its layers.
  // Throws std::bad_alloc, as the functions below may.
  absl::StatusOr<SessionPtr> Create(absl::string_view owner,
                                    absl::string_view id,
                                    const SessionConfig& config, LeaseTime now);

  // For a call, as Session::Use(). Errors: NotFound.
  absl::StatusOr<SessionPtr> Use(absl::string_view owner, absl::string_view id,
                                 LeaseTime now, uint64_t incarnation = 0);

  // Without renewing the lease. Errors: NotFound.
  absl::StatusOr<SessionPtr> Find(absl::string_view owner, absl::string_view id,
                                  LeaseTime now,
                                  uint64_t incarnation = 0) const;

  // Sessions and their ids, in the order of the ids, from the first one after
  // `after` on.
  std::vector<std::pair<std::string, SessionPtr>> List(absl::string_view owner,
                                                       absl::string_view after,
                                                       size_t most,
                                                       LeaseTime now) const;

  // Whether there was such a session.
  bool Delete(absl::string_view owner, absl::string_view id,
              uint64_t incarnation = 0);

  struct ForkRequest {
    std::string source;
    std::string target;
    uint64_t source_incarnation = 0;
  };
  // All or none. Renews the sources. Errors: InvalidArgument naming
  // "forks[i]"; NotFound; AlreadyExists if there is a target already, or twice;
  // ResourceExhausted as for Create().
  absl::StatusOr<std::vector<SessionPtr>> Fork(
      absl::string_view owner, absl::Span<const ForkRequest> forks,
      LeaseTime now);

  // Evicts the sessions whose lease is over; how many.
  int64_t EvictExpired(LeaseTime now);

  struct Totals {
    int64_t sessions = 0;
    int64_t bytes = 0;
  };
  Totals totals() const;
  Totals totals(absl::string_view owner) const;

 private:
  struct Owner {
    std::shared_ptr<MemoryAccount> account;
    int64_t max_sessions = 0;
    absl::btree_map<std::string, SessionPtr> sessions;
  };

  // With mutex_ held.
  Owner& OwnerOf(absl::string_view name);
  absl::Status CheckRoom(const Owner& owner, int64_t more) const;
  absl::StatusOr<SessionPtr> FindLocked(absl::string_view owner,
                                        absl::string_view id, LeaseTime now,
                                        uint64_t incarnation) const;

  const Limits limits_;
  const std::shared_ptr<BufferPool> pool_;
  const std::shared_ptr<MemoryAccount> account_;  // of all

  mutable std::mutex mutex_;
  absl::btree_map<std::string, Owner> owners_;
  int64_t sessions_ = 0;
};

}  // namespace attention

#endif  // ATTENTION_SESSIONS_SESSION_STORE_H_
