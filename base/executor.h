// Threads that compute, and whose turn it is.
//
// Work comes as jobs. A job runs in stages, a stage is a number of tasks, and a
// task can be left and taken up again later by any thread. A thread works on a
// task until it is done or its turn is over (class Turn): when a turn is over
// the executor picks anew. So a small job waits for at most one turn per
// thread, and no job waits for another to end.
//
// Who comes next. First by tenant: the one that has had the least time in
// proportion to its weight, where time in which it asked for nothing does not
// count. Within a tenant, by the work that a job has left,
// coarsely: least first. Equal jobs share the threads, up to
// kSharedJobs at a time, the others wait in the order they came. One turn in
// kAgedTurns goes to the job that has waited longest, so that a large job goes
// on beside any number of small ones of its tenant.
//
// Nothing here blocks but Run() and the destructor. Submit() and Cancel() take
// a lock that is never held while a job's code runs.
#ifndef ATTENTION_BASE_EXECUTOR_H_
#define ATTENTION_BASE_EXECUTOR_H_

#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <list>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/time/time.h"

namespace attention {

class Executor;

// What a thread has of the executor's time while it works on a task.
class Turn {
 public:
  using Clock = std::chrono::steady_clock;

  // Whether to leave the task as it is and return. Cheap; tasks ask every few
  // hundred microseconds of work. True once another job waits and this turn has
  // lasted kLength, once the job is cancelled, and once its deadline passed.
  bool Over() const;

  // A turn outside any executor: over once `over` is true; never if null.
  explicit Turn(const std::atomic<bool>* over) : cancelled_(over) {}

  // How long a turn lasts at least where others wait.
  static constexpr std::chrono::microseconds kLength{2000};

 private:
  friend class Executor;
  Turn() = default;

  // Null: never.
  const std::atomic<bool>* cancelled_ = nullptr;
  const std::atomic<bool>* cancelled_by_owner_ = nullptr;
  // Jobs with a task that no thread has, and whether this one is among them.
  const std::atomic<int64_t>* waiting_ = nullptr;
  const std::atomic<bool>* self_waiting_ = nullptr;
  Clock::time_point end_;
  Clock::time_point deadline_ = Clock::time_point::max();
};

// How a job ended.
enum class JobEnd { kDone, kCancelled, kDeadlineExceeded };

class Executor {
 public:
  static constexpr int kSharedJobs = 4;
  static constexpr int kAgedTurns = 8;

  struct JobOptions {
    // Thread-seconds that the job will take, as far as one can tell.
    double seconds = 0;
    // Who pays for it, and the tenant's share in proportion to the others'.
    int tenant = 0;
    double weight = 1;
    // The job ends then, done or not.
    absl::Time deadline = absl::InfiniteFuture();
    // Once true the job ends as if cancelled; read between tasks and by
    // Turn::Over(). Does not wake anybody: Cancel() does. May be null.
    const std::atomic<bool>* cancelled = nullptr;
  };

  // A job. Owned by whoever submits it; must live until Done() is called.
  class Job {
   public:
    Job() = default;
    virtual ~Job() = default;
    Job(const Job&) = delete;
    Job& operator=(const Job&) = delete;

    // Begins the next stage and returns its number of tasks; 0 when there is
    // none. Called before the first stage and after all tasks of a stage have
    // ended, by one thread at a time.
    virtual int64_t NextStage() = 0;
    // Works on a task until it is done (true) or the turn is over (false: it
    // will be called again for the same task). Different tasks run on several
    // threads at once; those of smaller numbers begin first.
    virtual bool RunTask(int64_t task, const Turn& turn) = 0;
    // Called once, last, when no other function of the job runs or will be
    // called. May delete the job.
    virtual void Done(JobEnd end) = 0;

    // Time that threads spent in RunTask(), all together; in Done() and after.
    double used_seconds() const { return used_seconds_; }

   private:
    friend class Executor;
    enum class State : uint8_t { kNew, kActive, kEnded };
    struct Waiter;

    bool HasTask() const {
      return stages_ == 0 ? running_ == 0 : !left_.empty() || next_ < tasks_;
    }
    bool Cancelled() const {
      return cancelled_ || (options_.cancelled && *options_.cancelled);
    }

    // All guarded by the executor's mutex, but for the atomic ones.
    State state_ = State::kNew;
    JobOptions options_;
    Turn::Clock::time_point deadline_;
    int64_t stages_ = 0;         // begun
    int64_t tasks_ = 0;          // of this stage
    int64_t next_ = 0;           // the first task not begun
    int64_t running_ = 0;        // threads at it
    std::vector<int64_t> left_;  // tasks begun and left
    double used_seconds_ = 0;
    double turn_seconds_ = 0;  // used since served_
    uint64_t served_ = 0;      // order of the last whole turn, or of arrival
    bool open_ = false;        // had a turn
    bool late_ = false;
    Waiter* waiter_ = nullptr;  // of Run()
    std::atomic<bool> cancelled_{false};
    std::atomic<bool> waiting_{false};  // in a tenant's queue
    // A list of this job alone, whose node moves to the queue it stands in.
    std::list<Job*> home_;
    std::list<Job*>* queue_ = nullptr;
    std::list<Job*>::iterator node_;
  };

  // Starts `threads` threads, >= 0; with 0 only Run() works.
  explicit Executor(int threads);
  // Every job must have ended.
  ~Executor();
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;

  // Threads of its own; Run() adds the calling one.
  int threads() const { return static_cast<int>(threads_.size()); }

  // Starts a job, whose Done() a thread of the executor will call. Needs at
  // least one thread.
  void Submit(Job* job, const JobOptions& options);

  // Ends a job that was submitted: Done(kCancelled) follows within a turn,
  // queued or running. Nothing if it has ended, or is new: but then the job
  // must still exist. Thread-safe.
  void Cancel(Job* job);

  // Runs a job and blocks until Done() has returned; computes on the calling
  // thread too. Done() may be called on any thread.
  void Run(Job* job, const JobOptions& options);

  // Runs a job on the calling thread alone, without any executor. Once
  // `cancelled` (may be null) is true the job ends as cancelled.
  static void RunHere(Job* job, const std::atomic<bool>* cancelled = nullptr);

 private:
  using Queue = std::list<Job*>;
  // The seconds left as a power of two: up to 1 ms, 2 ms, 4 ms, ...
  static constexpr int kRanks = 40;
  struct Rank {
    Queue open;     // had a turn; the least recently served first
    Queue waiting;  // had none, in the order they came
  };
  struct Tenant {
    double time = 0;      // thread-seconds over weight
    int64_t active = 0;   // jobs that have not ended
    int64_t waiting = 0;  // jobs in `ranks`: with a task that no thread has
    uint64_t picks = 0;   // of its jobs
    std::array<Rank, kRanks> ranks;
  };
  // What a thread is to do next. Tasks below 0 stand for the steps between.
  static constexpr int64_t kAdvance = -1, kEnd = -2;
  struct Claim {
    Job* job = nullptr;  // null: nothing to do
    int64_t task = kAdvance;
  };
  using Lock = std::unique_lock<std::mutex>;

  void Work();
  // With the mutex held, but for the last four, which give it up in between.
  Claim Pick();
  static Job* LongestUnserved(Tenant& tenant);
  static Job* PickJob(Tenant& tenant);
  Claim ClaimTask(Job* job);
  bool HasClaim(const Job* job) const;
  void Prepare(Job* job, const JobOptions& options);
  Tenant& Joined(int tenant);
  void Enqueue(Job* job);
  void Dequeue(Job* job);
  void MoveTo(Queue* queue, Job* job);
  Queue& QueueOf(Job* job);
  Tenant& TenantOf(const Job* job);
  void Wake(int64_t threads);
  void EndTurn(Job* job, int64_t task, bool done, double seconds);
  void Serve(const Claim& claim, Lock& lock);
  void RunTurn(const Claim& claim, Lock& lock);
  void Advance(Job* job, Lock& lock);
  void End(Job* job, Lock& lock);

  std::mutex mutex_;
  std::condition_variable ready_;
  // All guarded by mutex_, but for the atomic ones.
  std::map<int, Tenant> tenants_;
  Queue ending_;  // cancelled while no thread was at them
  int64_t idle_ = 0;
  uint64_t order_ = 0;  // of arrivals and turns
  // That of the tenant picked last, as it was then: who begins to wait has had
  // no less.
  double time_ = 0;
  bool stopping_ = false;
  std::atomic<int64_t> waiting_{0};   // jobs in the tenants' queues
  std::atomic<uint32_t> signals_{0};  // grows with each Wake()
  std::vector<std::thread> threads_;
};

}  // namespace attention

#endif  // ATTENTION_BASE_EXECUTOR_H_
