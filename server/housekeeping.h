// What has to be looked after while calls come and go: time limits, the rates
// that admission counts with, and memory that has been freed.
#ifndef ATTENTION_SERVER_HOUSEKEEPING_H_
#define ATTENTION_SERVER_HOUSEKEEPING_H_

#include <cstdint>
#include <memory>
#include <thread>

#include "absl/time/time.h"
#include "grpcpp/resource_quota.h"
#include "server/admission/admission.h"
#include "server/admission/cost_model.h"
#include "server/log_limiter.h"
#include "server/options.h"
#include "sessions/lease_clock.h"
#include "sessions/session_store.h"

namespace attention::server {

// One thread; it runs from construction to destruction and holds nothing that
// calls wait for but for Admission's lock.
class Housekeeping {
 public:
  // `quota` is gRPC's, over all of its buffers: the net below admission, for
  // callers who are so fast or so many that nobody could look in time.
  Housekeeping(Admission& admission, CostModel& costs, LogLimiter& log_limiter,
               SessionStore& sessions, grpc::ResourceQuota& quota,
               const Options& options);
  ~Housekeeping();
  Housekeeping(const Housekeeping&) = delete;
  Housekeeping& operator=(const Housekeeping&) = delete;

 private:
  void Run();
  // False if it is too early to measure again.
  bool Measure(absl::Time now);
  int64_t TransportBytes(absl::Time now);
  void TrimIfFreed(absl::Time now);
  void LookAtMemory(absl::Time now);
  void EvictSessions();
  void SetQuota();

  Admission& admission_;
  CostModel& costs_;
  LogLimiter& log_limiter_;
  SessionStore& sessions_;
  const std::shared_ptr<const LeaseClock> lease_clock_;
  grpc::ResourceQuota& quota_;
  const int64_t max_bytes_;
  const bool own_process_;
  const int64_t baseline_bytes_;  // allocated before the first call
  int64_t quota_bytes_ = 0;
  int64_t trimmed_at_ = 0;  // Admission::transferred_bytes() then
  // Of the allocator, as last measured, and the least since it was trimmed.
  int64_t used_bytes_ = 0;
  int64_t free_bytes_ = 0;
  int64_t least_free_bytes_ = 0;
  absl::Time next_measure_, next_totals_, next_trim_;
  LeaseTime next_eviction_;
  std::thread thread_;
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_HOUSEKEEPING_H_
