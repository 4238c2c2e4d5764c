// Work that may take long, as reading and writing JSON does, on a thread of its
// own.
#ifndef ATTENTION_SERVER_HTTP_WORK_LANE_H_
#define ATTENTION_SERVER_HTTP_WORK_LANE_H_

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/auth/tenant.h"
#include "server/http/http_server.h"

namespace attention::server {

// One piece of it at a time. Tenants take turns by weight: next comes the work
// of the tenant that has had the fewest bytes in proportion; within a tenant,
// in the order in which it came. What waits is bounded by
// HttpServerOptions::max_exchanges, for it owns its exchange. Thread-safe.
class WorkLane {
 public:
  struct Work {
    std::shared_ptr<HttpExchange> exchange;
    TenantPtr tenant;
    // What is read or written: a measure of the time that it takes.
    int64_t bytes = 0;
    absl::Time deadline = absl::InfiniteFuture();
    // Not called once the client has gone. Where it throws std::bad_alloc the
    // exchange is aborted.
    std::function<void()> run = {};
    // Called in place of `run` when the deadline has passed.
    std::function<void()> expired = {};
  };

  // Errors: Unavailable if there is no thread to be had.
  static absl::StatusOr<std::unique_ptr<WorkLane>> Create();
  // What has not begun is dropped.
  ~WorkLane();
  WorkLane(const WorkLane&) = delete;
  WorkLane& operator=(const WorkLane&) = delete;

  // May throw std::bad_alloc.
  void Post(Work work);

 private:
  struct Turns {
    // Bytes that the tenant has had, each divided by its weight. Whose work
    // begins to wait has had no less than whose was taken last.
    double had = 0;
    std::deque<Work> waiting;
  };

  WorkLane() = default;
  void Run();
  // With the mutex held, of what waits: one whose deadline has passed, if there
  // is one; and whose turn it is, where something waits.
  std::optional<Work> TakeExpired(absl::Time now);
  Work TakeNext();

  std::mutex mutex_;
  std::condition_variable changed_;
  // All guarded by mutex_.
  std::map<int, Turns> tenants_;  // by id: all that ever had work here
  int64_t waiting_ = 0;           // of all tenants
  double last_had_ = 0;           // of the tenant whose work was taken last
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_HTTP_WORK_LANE_H_
