// Keeps sessions alive that their owners still hold.
#ifndef ATTENTION_INTERNAL_LEASE_RENEWER_H_
#define ATTENTION_INTERNAL_LEASE_RENEWER_H_

#include <memory>

#include "attention/connection.h"
#include "attention/internal/session_state.h"

namespace attention::internal {

// Asks the server for each session that nothing has used for a third of its
// lease, and a random part less, so that sessions which began together do not
// stay so. Thread-safe.
//
// One thread, which begins with the first session and ends in the destructor;
// that waits for no call. What it holds: an entry per session that is added and
// not removed, and at most kMostCalls calls; those that are due meanwhile wait.
class LeaseRenewer {
 public:
  static constexpr int kMostCalls = 64;

  explicit LeaseRenewer(const Connection& connection);
  ~LeaseRenewer();
  LeaseRenewer(const LeaseRenewer&) = delete;
  LeaseRenewer& operator=(const LeaseRenewer&) = delete;

  // Throws std::system_error if the thread cannot begin.
  void Add(const std::shared_ptr<SessionState>& session);
  // A call that is under way for it may still end.
  void Remove(const std::shared_ptr<SessionState>& session);

 private:
  class Schedule;
  const std::shared_ptr<Schedule> schedule_;
};

}  // namespace attention::internal

#endif  // ATTENTION_INTERNAL_LEASE_RENEWER_H_
