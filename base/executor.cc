#include "base/executor.h"

#include <algorithm>
#include <cmath>

#include "absl/time/clock.h"

namespace attention {
namespace {

using Clock = Turn::Clock;

// A thread without work looks for some this long before it sleeps: waking one
// takes longer than a small task. Not longer, for there may be no core to
// spare.
constexpr auto kSpin = std::chrono::microseconds(20);

// A job is ranked by all of its work until so much is left: else, of two equal
// jobs, the one ahead would soon have all the time until its end. It is again
// once it has had so much more than was foretold.
constexpr double kLastPart = 1.0 / 16;
// A job that has had so many times what was foretold is ranked by that.
constexpr double kFarOff = 4;

double Seconds(Clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

Clock::time_point ToSteady(absl::Time time) {
  if (time == absl::InfiniteFuture()) return Clock::time_point::max();
  // Far enough for any deadline, near enough for the clock's range.
  const absl::Duration left =
      std::clamp(time - absl::Now(), -absl::Hours(1), absl::Hours(24 * 365));
  return Clock::now() + absl::ToChronoNanoseconds(left);
}

// Whether `condition` became true while spinning.
template <typename Condition>
bool SpinUntil(const Condition& condition) {
  const auto end = Clock::now() + kSpin;
  do {
    for (int i = 0; i < 16; ++i) {
      if (condition()) return true;
#if defined(__x86_64__) || defined(__i386__)
      __builtin_ia32_pause();
#endif
    }
  } while (Clock::now() < end);
  return false;
}

}  // namespace

bool Turn::Over() const {
  if (cancelled_ && cancelled_->load(std::memory_order_relaxed)) return true;
  if (cancelled_by_owner_ &&
      cancelled_by_owner_->load(std::memory_order_relaxed)) {
    return true;
  }
  if (!waiting_) return false;
  const Clock::time_point now = Clock::now();
  if (now >= deadline_) return true;
  if (now < end_) return false;
  const int64_t self = self_waiting_->load(std::memory_order_relaxed) ? 1 : 0;
  return waiting_->load(std::memory_order_relaxed) > self;
}

// A thread that blocks in Run(). Guarded by the executor's mutex, but for
// `signals`, which grows with each change.
struct Executor::Job::Waiter {
  std::condition_variable changed;
  std::atomic<uint32_t> signals{0};
  bool ended = false;

  void Signal() {
    signals.fetch_add(1, std::memory_order_release);
    changed.notify_one();
  }
};

Executor::Executor(int threads) {
  for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { Work(); });
}

Executor::~Executor() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
    signals_.fetch_add(1, std::memory_order_release);
  }
  ready_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void Executor::Submit(Job* job, const JobOptions& options) {
  std::lock_guard<std::mutex> lock(mutex_);
  Prepare(job, options);
}

void Executor::Cancel(Job* job) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (job->state_ != Job::State::kActive) return;
  job->cancelled_ = true;
  if (job->running_ > 0 || job->queue_ == &ending_) return;
  Dequeue(job);
  MoveTo(&ending_, job);
  Wake(1);
}

void Executor::Run(Job* job, const JobOptions& options) {
  Job::Waiter waiter;
  Lock lock(mutex_);
  job->waiter_ = &waiter;
  Prepare(job, options);
  while (!waiter.ended) {
    if (HasClaim(job)) {
      Serve(ClaimTask(job), lock);
      continue;
    }
    const uint32_t seen = waiter.signals.load(std::memory_order_acquire);
    lock.unlock();
    const bool signalled = SpinUntil(
        [&] { return waiter.signals.load(std::memory_order_acquire) != seen; });
    lock.lock();
    if (signalled) continue;
    waiter.changed.wait(
        lock, [&] { return waiter.ended || waiter.signals.load() != seen; });
  }
}

bool Executor::HasClaim(const Job* job) const {
  if (job->state_ != Job::State::kActive || job->queue_ == &ending_) {
    return false;
  }
  // A cancelled job is ended by the last of those who are still at it.
  return job->Cancelled() ? job->running_ == 0 : job->HasTask();
}

void Executor::RunHere(Job* job, const std::atomic<bool>* cancelled) {
  const Turn turn(cancelled);
  while (const int64_t tasks = job->NextStage()) {
    for (int64_t i = 0; i < tasks; ++i) {
      if (turn.Over() || !job->RunTask(i, turn)) {
        return job->Done(JobEnd::kCancelled);
      }
    }
  }
  job->Done(turn.Over() ? JobEnd::kCancelled : JobEnd::kDone);
}

void Executor::Prepare(Job* job, const JobOptions& options) {
  // All memory is taken here, so that nothing later can fail. Each thread that
  // was at the job leaves one task at the most.
  job->left_.reserve(threads_.size() + 1);
  job->node_ = job->home_.insert(job->home_.end(), job);
  ++Joined(options.tenant).active;
  job->state_ = Job::State::kActive;
  job->options_ = options;
  job->deadline_ = ToSteady(options.deadline);
  job->served_ = ++order_;
  Enqueue(job);
  Wake(1);
}

// The tenant, which may be new. Those without jobs are forgotten then, if they
// would come back as if they were new.
Executor::Tenant& Executor::Joined(int tenant) {
  const auto found = tenants_.find(tenant);
  if (found != tenants_.end()) return found->second;
  std::erase_if(tenants_, [this](const auto& entry) {
    return entry.second.active == 0 && entry.second.time <= time_;
  });
  return tenants_[tenant];
}

Executor::Tenant& Executor::TenantOf(const Job* job) {
  return tenants_.find(job->options_.tenant)->second;
}

Executor::Queue& Executor::QueueOf(Job* job) {
  const double all = job->options_.seconds;
  const double used = job->used_seconds_;
  const bool last =
      used >= all * (1 - kLastPart) && used < all * (1 + kLastPart);
  const double left = last                   ? all * kLastPart
                      : used < kFarOff * all ? all
                                             : used;
  const int rank = left <= 1e-3 ? 0 : static_cast<int>(std::log2(left * 1e3));
  Rank& queues = TenantOf(job).ranks[std::clamp(rank, 0, kRanks - 1)];
  return job->open_ ? queues.open : queues.waiting;
}

void Executor::MoveTo(Queue* queue, Job* job) {
  Queue& from = job->queue_ ? *job->queue_ : job->home_;
  Queue& to = queue ? *queue : job->home_;
  to.splice(to.end(), from, job->node_);
  job->queue_ = queue;
}

void Executor::Enqueue(Job* job) {
  Tenant& tenant = TenantOf(job);
  if (!job->waiting_) {
    // Time that a tenant did not ask for is not saved up.
    if (tenant.waiting == 0) tenant.time = std::max(tenant.time, time_);
    ++tenant.waiting;
    job->waiting_ = true;
    ++waiting_;
  }
  MoveTo(&QueueOf(job), job);
}

void Executor::Dequeue(Job* job) {
  if (!job->waiting_) return;
  --TenantOf(job).waiting;
  job->waiting_ = false;
  --waiting_;
  MoveTo(nullptr, job);
}

void Executor::Wake(int64_t threads) {
  signals_.fetch_add(1, std::memory_order_release);
  for (int64_t i = std::min(threads, idle_); i > 0; --i) ready_.notify_one();
}

void Executor::Work() {
  Lock lock(mutex_);
  for (;;) {
    const Claim claim = Pick();
    if (claim.job) {
      Serve(claim, lock);
      continue;
    }
    if (stopping_) return;
    const uint32_t seen = signals_.load(std::memory_order_acquire);
    lock.unlock();
    const bool signalled = SpinUntil(
        [&] { return signals_.load(std::memory_order_acquire) != seen; });
    lock.lock();
    if (signalled) continue;
    ++idle_;
    ready_.wait(lock, [&] { return signals_.load() != seen; });
    --idle_;
  }
}

Executor::Claim Executor::Pick() {
  if (!ending_.empty()) {
    Job* job = ending_.front();
    MoveTo(nullptr, job);
    ++job->running_;
    return {job, kEnd};
  }
  Tenant* next = nullptr;
  for (auto& [id, tenant] : tenants_) {
    if (tenant.waiting > 0 && (!next || tenant.time < next->time))
      next = &tenant;
  }
  if (!next) return {};
  time_ = std::max(time_, next->time);
  return ClaimTask(PickJob(*next));
}

Executor::Job* Executor::LongestUnserved(Tenant& tenant) {
  Job* longest = nullptr;
  for (Rank& rank : tenant.ranks) {
    for (Queue* queue : {&rank.open, &rank.waiting}) {
      if (queue->empty()) continue;
      if (!longest || queue->front()->served_ < longest->served_) {
        longest = queue->front();
      }
    }
  }
  return longest;
}

Executor::Job* Executor::PickJob(Tenant& tenant) {
  if (++tenant.picks % kAgedTurns == 0) return LongestUnserved(tenant);
  for (Rank& rank : tenant.ranks) {
    if (rank.open.empty() && rank.waiting.empty()) continue;
    if (rank.open.empty()) return rank.waiting.front();
    if (rank.waiting.empty() || rank.open.size() >= kSharedJobs ||
        rank.open.front()->served_ < rank.waiting.front()->served_) {
      return rank.open.front();
    }
    return rank.waiting.front();
  }
  return nullptr;
}

Executor::Claim Executor::ClaimTask(Job* job) {
  Claim claim{job, kAdvance};
  ++job->running_;
  const bool late = Clock::now() >= job->deadline_;
  if (late || job->Cancelled()) {
    job->late_ |= late && !job->Cancelled();
    job->cancelled_ = true;
    Dequeue(job);
    claim.task = kEnd;
    return claim;
  }
  if (job->stages_ > 0) {
    if (!job->left_.empty()) {
      claim.task = job->left_.back();
      job->left_.pop_back();
    } else {
      claim.task = job->next_++;
    }
  }
  if (!job->HasTask()) {
    Dequeue(job);
  } else if (!job->open_) {
    // Others may join, as an open job.
    const bool first = job->queue_ != nullptr;
    job->open_ = true;
    if (first) MoveTo(&QueueOf(job), job);
  }
  job->open_ = true;
  return claim;
}

void Executor::Serve(const Claim& claim, Lock& lock) {
  if (claim.task >= 0) return RunTurn(claim, lock);
  if (claim.task == kAdvance) return Advance(claim.job, lock);
  if (--claim.job->running_ == 0) End(claim.job, lock);
}

void Executor::RunTurn(const Claim& claim, Lock& lock) {
  Job* job = claim.job;
  Turn turn;
  turn.cancelled_ = &job->cancelled_;
  turn.cancelled_by_owner_ = job->options_.cancelled;
  turn.waiting_ = &waiting_;
  turn.self_waiting_ = &job->waiting_;
  turn.deadline_ = job->deadline_;
  lock.unlock();
  const Clock::time_point begin = Clock::now();
  turn.end_ = begin + Turn::kLength;
  const bool done = job->RunTask(claim.task, turn);
  const double seconds = Seconds(Clock::now() - begin);
  lock.lock();
  EndTurn(job, claim.task, done, seconds);
  if (job->running_ > 0) return;
  if (job->Cancelled()) return End(job, lock);
  if (job->HasTask()) return;
  ++job->running_;
  Advance(job, lock);
}

void Executor::EndTurn(Job* job, int64_t task, bool done, double seconds) {
  --job->running_;
  job->used_seconds_ += seconds;
  TenantOf(job).time += seconds / job->options_.weight;
  if (!done) job->left_.push_back(task);
  if (job->Cancelled()) return Dequeue(job);
  if (!job->HasTask()) return;
  job->turn_seconds_ += seconds;
  const bool whole = job->turn_seconds_ >= Seconds(Turn::kLength);
  if (whole) {
    job->served_ = ++order_;
    job->turn_seconds_ = 0;
  }
  const bool was_waiting = job->waiting_;
  if (whole || !was_waiting) Enqueue(job);
  if (!was_waiting) Wake(1);
}

// The caller counts in running_, so that nobody else is at the job.
void Executor::Advance(Job* job, Lock& lock) {
  Dequeue(job);
  ++job->stages_;
  lock.unlock();
  const int64_t tasks = job->NextStage();
  lock.lock();
  --job->running_;
  if (tasks == 0 || job->Cancelled()) return End(job, lock);
  job->tasks_ = tasks;
  job->next_ = 0;
  Enqueue(job);
  Wake(tasks);
  if (job->waiter_) job->waiter_->Signal();
}

void Executor::End(Job* job, Lock& lock) {
  Dequeue(job);
  const JobEnd end = job->late_         ? JobEnd::kDeadlineExceeded
                     : job->Cancelled() ? JobEnd::kCancelled
                                        : JobEnd::kDone;
  job->state_ = Job::State::kEnded;
  --TenantOf(job).active;
  Job::Waiter* const waiter = job->waiter_;
  lock.unlock();
  job->Done(end);
  lock.lock();
  if (!waiter) return;
  waiter->ended = true;
  waiter->Signal();
}

}  // namespace attention
