#include "server/housekeeping.h"

#include <malloc.h>

#include <algorithm>
#include <cstdlib>
#include <ctime>
#include <new>

#include "absl/time/clock.h"

namespace attention::server {
namespace {

// What a tick could not do for want of memory the next one does.
constexpr absl::Duration kAfterFailure = absl::Milliseconds(10);
constexpr absl::Duration kTotalsInterval = absl::Milliseconds(100);
// Giving freed memory back takes the allocator's locks for a while.
constexpr absl::Duration kTrimInterval = absl::Seconds(1);
// Sessions whose lease is over hold memory for so long at the most.
constexpr absl::Duration kEvictionInterval = absl::Seconds(1);
constexpr int64_t kMuchFreed = int64_t{1} << 20;
// Of the time, one part in so many at most goes into measuring what is
// allocated.
constexpr int kMeasureShare = 10;
// gRPC's quota never falls below this: small calls, headers, windows.
constexpr int64_t kLeastQuota = int64_t{32} << 20;
// Smaller changes of the quota are not worth a lock.
constexpr int64_t kQuotaStep = int64_t{4} << 20;

// Bytes that the C library's allocator has given out, and those that it keeps
// to give out again, given back to the system or not. The large buffers of
// BufferPool are not among them, gRPC's are; other allocators say 0.
struct Allocator {
  int64_t used_bytes = 0;
  int64_t free_bytes = 0;
};

Allocator LookAtAllocator() {
#if defined(__GLIBC__) && __GLIBC_PREREQ(2, 33)
  const struct mallinfo2 info = mallinfo2();
  return {static_cast<int64_t>(info.uordblks + info.hblkhd),
          static_cast<int64_t>(info.fordblks)};
#else
  return {};
#endif
}

// A stream's messages are freed as fast as others come. By default each would
// go back to the system and the next one take fresh pages, which cost more than
// the copy into them. So much for each of the allocator's arenas stays until
// GiveFreedMemoryBack().
constexpr int kKeptBytes = 8 << 20;

void KeepFreedMemory() {
#ifdef __GLIBC__
  mallopt(M_TRIM_THRESHOLD, kKeptBytes);
#endif
}

void GiveFreedMemoryBack() {
#ifdef __GLIBC__
  malloc_trim(0);
#endif
}

double CpuSeconds() {
  timespec time;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) +
         1e-9 * static_cast<double>(time.tv_nsec);
}

}  // namespace

Housekeeping::Housekeeping(Admission& admission, CostModel& costs,
                           LogLimiter& log_limiter, SessionStore& sessions,
                           grpc::ResourceQuota& quota, const Options& options)
    : admission_(admission),
      costs_(costs),
      log_limiter_(log_limiter),
      sessions_(sessions),
      lease_clock_(options.lease_clock),
      quota_(quota),
      max_bytes_(options.max_inflight_bytes),
      own_process_(options.own_process),
      baseline_bytes_(LookAtAllocator().used_bytes) {
  if (own_process_) KeepFreedMemory();
  thread_ = std::thread([this] { Run(); });
}

Housekeeping::~Housekeeping() {
  admission_.StopTicking();
  thread_.join();
}

void Housekeeping::Run() {
  absl::Duration pause = absl::ZeroDuration();
  while (admission_.WaitForTick(pause)) {
    const absl::Time now = absl::Now();
    try {
      pause = admission_.Tick(now, TransportBytes(now));
      LookAtMemory(now);
      EvictSessions();
    } catch (const std::bad_alloc&) {
      pause = kAfterFailure;
    }
  }
}

bool Housekeeping::Measure(absl::Time now) {
  if (now < next_measure_) return false;
  const absl::Time begin = absl::Now();
  const Allocator allocator = LookAtAllocator();
  // It walks through all free pieces with the allocator's locks held: millions
  // of them would stop everybody.
  next_measure_ = now + kMeasureShare * (absl::Now() - begin);
  used_bytes_ = allocator.used_bytes;
  free_bytes_ = allocator.free_bytes;
  least_free_bytes_ = std::min(least_free_bytes_, free_bytes_);
  return true;
}

// What the network layer holds, measured; 0 where it is not to be had.
int64_t Housekeeping::TransportBytes(absl::Time now) {
  if (!own_process_ || !admission_.WantsTransportBytes()) return 0;
  const int64_t scratch =
      admission_.snapshot().bytes[static_cast<size_t>(MemoryKind::kScratch)];
  if (!Measure(now)) return 0;
  return std::max<int64_t>(0, used_bytes_ - baseline_bytes_ - scratch);
}

void Housekeeping::LookAtMemory(absl::Time now) {
  SetQuota();
  if (now >= next_totals_) {
    next_totals_ = now + kTotalsInterval;
    costs_.RecordTotals(CpuSeconds(), costs_.compute_seconds(),
                        admission_.transferred_bytes());
  }
  if (now >= next_trim_) {
    next_trim_ = now + kTrimInterval;
    log_limiter_.Tell(now);
    TrimIfFreed(now);
  }
}

// By the clock of leases: wall time may be set back.
void Housekeeping::EvictSessions() {
  const LeaseTime now = lease_clock_->Now();
  if (now < next_eviction_) return;
  next_eviction_ = now + kEvictionInterval;
  sessions_.EvictExpired(now);
}

// After calls, which free their messages, and after anything else that freed
// much: headers, watches, streams that were reset.
void Housekeeping::TrimIfFreed(absl::Time now) {
  Measure(now);
  const int64_t transferred = admission_.transferred_bytes();
  if (transferred == trimmed_at_ &&
      free_bytes_ - least_free_bytes_ < kMuchFreed) {
    return;
  }
  GiveFreedMemoryBack();
  trimmed_at_ = transferred;
  least_free_bytes_ = free_bytes_;
}

// What the budget leaves to gRPC's own buffers.
void Housekeeping::SetQuota() {
  const Admission::Snapshot held = admission_.snapshot();
  int64_t left = max_bytes_;
  for (MemoryKind kind :
       {MemoryKind::kAnswer, MemoryKind::kScratch, MemoryKind::kTensors}) {
    left -= held.bytes[static_cast<size_t>(kind)];
  }
  // Tensors are charged while their message is still being read.
  left += held.reading_bytes;
  left = std::max(left, kLeastQuota);
  if (std::abs(left - quota_bytes_) < kQuotaStep) return;
  quota_bytes_ = left;
  quota_.Resize(static_cast<size_t>(left));
}

}  // namespace attention::server
