#include "attention/internal/lease_renewer.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <map>
#include <mutex>
#include <random>
#include <set>
#include <thread>
#include <utility>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "attention/client.h"
#include "attention/internal/session_calls.h"
#include "attention/internal/unary_call.h"
#include "attention/v1/session.pb.h"

namespace attention::internal {
namespace {

using Clock = SessionState::Clock;
using Session = std::shared_ptr<SessionState>;

// A call that takes longer is tried again.
absl::Duration TimeoutOf(const SessionState& session) {
  return std::clamp(absl::FromChrono(session.lease()) / 3, absl::Seconds(1),
                    absl::Seconds(10));
}

}  // namespace

// Shared with the calls that are under way.
class LeaseRenewer::Schedule
    : public std::enable_shared_from_this<LeaseRenewer::Schedule> {
 public:
  explicit Schedule(Connection connection)
      : connection_(std::move(connection)), random_(std::random_device()()) {}

  void Add(const Session& session) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!thread_.joinable()) thread_ = std::thread([this] { Run(); });
    Plan(session, session->last_used() + Interval(*session));
  }

  void Remove(const Session& session) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = due_.find(session);
    if (found == due_.end()) return;
    order_.erase({found->second, session});
    due_.erase(found);
  }

  void Stop() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stopped_ = true;
      due_.clear();
      order_.clear();
    }
    changed_.notify_all();
    if (thread_.joinable()) thread_.join();
  }

 private:
  // A third of the lease, or up to a quarter less.
  Clock::duration Interval(const SessionState& session) {
    std::uniform_real_distribution<double> part(0.75, 1);
    return std::chrono::duration_cast<Clock::duration>(session.lease() / 3 *
                                                       part(random_));
  }

  // With the mutex held.
  void Plan(const Session& session, Clock::time_point time) {
    due_[session] = time;
    order_.insert({time, session});
    if (order_.begin()->second == session) changed_.notify_all();
  }

  void Run() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (!stopped_) {
      if (order_.empty() || calls_ >= kMostCalls) {
        changed_.wait(lock);
        continue;
      }
      const auto [time, session] = *order_.begin();
      if (time > Clock::now()) {
        changed_.wait_until(lock, time);
        continue;
      }
      order_.erase(order_.begin());
      if (!session->Check().ok()) {
        due_.erase(session);
        continue;
      }
      const auto used_until = session->last_used() + Interval(*session);
      if (used_until > Clock::now()) {
        Plan(session, used_until);
        continue;
      }
      ++calls_;
      lock.unlock();
      Renew(session);
      lock.lock();
    }
  }

  void Renew(const Session& session) {
    v1::GetSessionRequest request;
    request.set_id(session->id());
    request.set_incarnation(session->incarnation());
    const Clock::time_point begun = Clock::now();
    StartUnary(
        connection_, {.timeout = TimeoutOf(*session)},
        CallOf(SessionMethod("GetSession"), request),
        [self = shared_from_this(), session, begun](const UnaryAnswer& answer) {
          self->Renewed(session, begun, answer.status);
        });
  }

  void Renewed(const Session& session, Clock::time_point begun,
               const absl::Status& status) {
    session->CallEnded(status, begun);
    const std::lock_guard<std::mutex> lock(mutex_);
    if (calls_-- == kMostCalls) changed_.notify_all();
    const auto found = due_.find(session);
    if (found == due_.end()) return;  // Removed, or stopped.
    if (!session->Check().ok()) {
      due_.erase(found);
      return;
    }
    // Soon again where there was no answer: there is time for some more.
    Plan(session, status.ok() ? begun + Interval(*session)
                              : Clock::now() + session->lease() / 12);
  }

  const Connection connection_;
  std::mutex mutex_;
  std::condition_variable changed_;
  // All guarded by mutex_, but for joining the thread.
  std::mt19937 random_;
  // When to look at each session; `order_` lacks those whose call is under way.
  std::map<Session, Clock::time_point> due_;
  std::set<std::pair<Clock::time_point, Session>> order_;
  int calls_ = 0;
  bool stopped_ = false;
  std::thread thread_;
};

LeaseRenewer::LeaseRenewer(const Connection& connection)
    : schedule_(std::make_shared<Schedule>(connection)) {}

LeaseRenewer::~LeaseRenewer() { schedule_->Stop(); }

void LeaseRenewer::Add(const Session& session) { schedule_->Add(session); }

void LeaseRenewer::Remove(const Session& session) {
  schedule_->Remove(session);
}

}  // namespace attention::internal
