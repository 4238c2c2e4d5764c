#include "kernel/cpu/attention_job.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "base/executor.h"
#include "base/saturating.h"
#include "kernel/attention.h"
#include "kernel/cpu/dispatch.h"
#include "kernel/cpu/partials.h"
#include "kernel/cpu/row_task.h"
#include "kernel/cpu/strided_rows.h"
#include "kernel/cpu/subtrees.h"
#include "kernel/cpu/task_memory.h"
#include "kernel/cpu/task_rows.h"
#include "kernel/cpu/tasks.h"
#include "kernel/plan/problem.h"

namespace attention {
namespace {

// Tasks wanted per thread, so that no thread idles long at the end.
constexpr int64_t kTasksPerThread = 4;
// Up to so many tasks are cut between two stages, in a tenth of a millisecond.
// Cutting more is a task itself, which can be suspended.
constexpr int64_t kTasksCutAtOnce = 2048;
// Bytes that one task copies into a present tensor.
constexpr int64_t kCopyBytes = int64_t{4} << 20;

// Where there are too few tasks for the threads (decode over many keys), the
// keys are cut as well, into subtrees of so many blocks. 0: they are not.
int64_t BlocksPerSubtree(int64_t tasks, int64_t blocks, double flops,
                         int threads) {
  if (threads == 1 || blocks <= 1 || flops <= kInlineFlops) return 0;
  if (tasks >= kTasksPerThread * threads / 2) return 0;
  const int64_t wanted = kTasksPerThread * threads / tasks + 1;
  int64_t most = 1;
  while (most * wanted < blocks) most *= 2;
  return most;
}

// Copies past and new keys, or values, to a present tensor [B, Hkv, T,
// columns]. A task copies some rows of one head.
class PresentCopy {
 public:
  PresentCopy(const Problem& p, const Operand& past, const Operand& current,
              int64_t columns, void* present)
      : p_(p),
        past_(past),
        current_(current),
        row_bytes_(columns * static_cast<int64_t>(SizeOf(current.type))),
        rows_per_task_(std::max<int64_t>(1, kCopyBytes / row_bytes_)),
        tasks_per_head_((p.total_keys() + rows_per_task_ - 1) / rows_per_task_),
        present_(static_cast<char*>(present)) {}

  int64_t tasks() const { return p_.batch * p_.kv_heads * tasks_per_head_; }

  void Run(int64_t task) const {
    const int64_t head = task / tasks_per_head_;
    const int64_t begin = task % tasks_per_head_ * rows_per_task_;
    const int64_t end = std::min(begin + rows_per_task_, p_.total_keys());
    char* target = present_ + (head * p_.total_keys() + begin) * row_bytes_;
    for (int64_t row = begin; row < end; ++row, target += row_bytes_) {
      const bool in_past = row < p_.past_length;
      const void* source = (in_past ? past_ : current_)
                               .Row(head / p_.kv_heads, head % p_.kv_heads,
                                    in_past ? row : row - p_.past_length);
      std::memcpy(target, source, row_bytes_);
    }
  }

 private:
  const Problem& p_;
  const Operand& past_;
  const Operand& current_;
  const int64_t row_bytes_;
  const int64_t rows_per_task_;
  const int64_t tasks_per_head_;
  char* const present_;
};

// The stages of a computation, in order. Stages without tasks are skipped.
enum class Stage : uint8_t {
  kPresentKey,
  kPresentValue,
  kCut,       // cuts the rows into tasks
  kRows,      // a task's rows over all their keys; or, where keys are cut too,
  kSubtrees,  // a task's rows over one subtree of the blocks, and then
  kMerge,     // a task's rows merged from all subtrees
};
using Stages = absl::InlinedVector<Stage, 5>;

// A computation as a job, in the precision T.
template <typename T>
class AttentionJob final : public KernelJob {
 public:
  AttentionJob(const AttentionPlan& plan, const AttentionOutputs& outputs,
               int threads, absl::AnyInvocable<void(absl::Status)> done)
      : KernelJob(std::move(done)),
        problem_(plan.problem),
        flops_(plan.flops),
        outputs_(outputs),
        threads_(threads),
        functions_(FunctionsFor<T>(*problem_)) {}

 private:
  int64_t Next() override {
    while (next_stage_ < stages_.size()) {
      if (const int64_t tasks = Begin(stages_[next_stage_++])) return tasks;
    }
    return 0;
  }

  bool Run(int64_t task, const Turn& turn) override {
    if (stage_ == Stage::kCut) return CutOn(turn);
    TaskState state = ResumeState(task);
    if (Work(task, &state, turn) != TaskEnd::kSuspended) return true;
    SuspendState(task, std::move(state));
    return false;
  }

  void End(bool /*ok*/) override {
    suspended_.clear();
    buffers_.clear();
    subtrees_.clear();
    cutter_.reset();
    tasks_ = {};
  }

  // Prepares a stage and returns the number of its tasks.
  int64_t Begin(Stage stage) {
    stage_ = stage;
    switch (stage) {
      case Stage::kPresentKey:
        return BeginPresent(problem_->past_key, problem_->key,
                            problem_->head_size, outputs_.present_key);
      case Stage::kPresentValue:
        return BeginPresent(problem_->past_value, problem_->value,
                            problem_->value_head_size, outputs_.present_value);
      case Stage::kCut:
        cutter_.emplace(*problem_, threads_);
        if (MostTasks(*problem_) > kTasksCutAtOnce) return 1;
        CutOn(Turn(nullptr));
        return 0;
      case Stage::kRows:
        return BeginRows();
      case Stage::kSubtrees:
      case Stage::kMerge:
        return static_cast<int64_t>(
            tasks_.size() * (stage == Stage::kSubtrees ? subtrees_.size() : 1));
    }
    return 0;
  }

  bool CutOn(const Turn& turn) {
    if (!cutter_->Run(turn)) return false;
    tasks_ = cutter_->TakeTasks();
    cutter_.reset();
    return true;
  }

  int64_t BeginPresent(const Operand& past, const Operand& current,
                       int64_t columns, void* present) {
    if (!problem_->return_present || problem_->total_keys() == 0) return 0;
    copy_.emplace(*problem_, past, current, columns, present);
    return copy_->tasks();
  }

  int64_t BeginRows() {
    const auto count = static_cast<int64_t>(tasks_.size());
    if (count == 0) return 0;
    const int64_t blocks = BlocksOf(problem_->longest_keys);
    const int64_t most = BlocksPerSubtree(count, blocks, flops_, threads_);
    if (most == 0) return count;
    for (const Subtree& subtree : CutBlocks(0, blocks, most, blocks)) {
      buffers_.emplace_back(*problem_, subtree);
      subtrees_.push_back(buffers_.back().partial());
    }
    stages_.push_back(Stage::kMerge);
    return Begin(Stage::kSubtrees);
  }

  TaskEnd Work(int64_t task, TaskState* state, const Turn& turn) {
    const auto subtrees = static_cast<int64_t>(subtrees_.size());
    switch (stage_) {
      case Stage::kPresentKey:
      case Stage::kPresentValue:
        copy_->Run(task);
        return TaskEnd::kFinished;
      case Stage::kCut:
        break;  // CutOn()
      case Stage::kRows: {
        StridedRows next_keys;
        if (const RowTask* next = TaskAfter(task)) {
          next_keys = FirstKeys(*problem_, *next, 0);
        }
        return functions_.attend(*problem_, tasks_[task], {}, next_keys,
                                 &outputs_, state, turn);
      }
      case Stage::kSubtrees: {
        StridedRows next_keys;
        if (const int64_t next = task + threads_;
            next < static_cast<int64_t>(tasks_.size()) * subtrees) {
          next_keys = FirstKeys(*problem_, tasks_[next / subtrees],
                                subtrees_[next % subtrees].block_begin);
        }
        return functions_.attend_subtree(*problem_, tasks_[task / subtrees],
                                         next_keys, subtrees_[task % subtrees],
                                         state, turn);
      }
      case Stage::kMerge:
        return functions_.merge_subtrees(*problem_, tasks_[task], subtrees_,
                                         &outputs_, state, turn);
    }
    return TaskEnd::kFinished;
  }

  // The task that a thread probably runs after `task`: threads draw tasks in
  // turn.
  const RowTask* TaskAfter(int64_t task) const {
    const int64_t next = task + threads_;
    return next < static_cast<int64_t>(tasks_.size()) ? &tasks_[next] : nullptr;
  }

  TaskState ResumeState(int64_t task) {
    if (!any_suspended_.load(std::memory_order_acquire)) return {};
    std::lock_guard<std::mutex> lock(suspended_mutex_);
    for (Suspended& suspended : suspended_) {
      if (suspended.task != task) continue;
      TaskState state = std::move(*suspended.state);
      std::swap(suspended, suspended_.back());
      suspended_.pop_back();
      return state;
    }
    return {};
  }

  void SuspendState(int64_t task, TaskState state) {
    std::lock_guard<std::mutex> lock(suspended_mutex_);
    suspended_.push_back({task, std::make_unique<TaskState>(std::move(state))});
    any_suspended_.store(true, std::memory_order_release);
  }

  struct Suspended {
    int64_t task;
    std::unique_ptr<TaskState> state;
  };

  const std::shared_ptr<const Problem> problem_;
  const double flops_;
  const AttentionOutputs outputs_;
  const int threads_;
  Stages stages_ = {Stage::kPresentKey, Stage::kPresentValue, Stage::kCut,
                    Stage::kRows};
  const RowFunctions<T> functions_;

  size_t next_stage_ = 0;
  Stage stage_ = Stage::kRows;
  std::optional<PresentCopy> copy_;
  std::optional<RowCutter> cutter_;
  std::vector<RowTask> tasks_;
  std::vector<SubtreeBuffer<T>> buffers_;
  std::vector<SubtreePartial<T>> subtrees_;  // of buffers_; empty: keys not cut

  // Tasks begun and suspended; any_suspended_ spares most tasks the lock.
  std::atomic<bool> any_suspended_{false};
  std::mutex suspended_mutex_;
  std::vector<Suspended> suspended_;  // guarded by suspended_mutex_
};

template <typename T>
JobMemory MemoryAs(const AttentionPlan& plan, int threads) {
  const Problem& p = *plan.problem;
  const int64_t rows = NumRows(p);
  if (rows == 0) return {};
  const int64_t task_rows = MostTaskRows(p);
  const int64_t tasks = MostTasks(p);
  const int64_t blocks = BlocksOf(p.longest_keys);
  // Each thread's state and scratch, or the state of the task that it
  // suspended.
  const RowFunctions<T> functions = FunctionsFor<T>(p);
  JobMemory memory;
  memory.of_thread = SaturatingAdd(functions.state_bytes(p, task_rows),
                                   functions.scratch_bytes(p));
  memory.of_job = SaturatingMultiply(tasks, RowCutter::kBytesPerTask);
  // Subtrees, if BlocksPerSubtree() may cut the keys: an upper bound, for the
  // number of tasks is not known yet.
  const bool few = rows <= kTasksPerThread * threads * kTaskRows;
  if (few && threads > 1 && blocks > 1 && plan.flops > kInlineFlops) {
    const int64_t subtrees =
        std::min<int64_t>(blocks, 2 * (kTasksPerThread * threads + 1));
    memory.of_job = SaturatingAdd(
        memory.of_job, SaturatingMultiply(subtrees * rows,
                                          (2 + p.value_head_size) *
                                              static_cast<int64_t>(sizeof(T))));
  }
  return memory;
}

}  // namespace

std::unique_ptr<KernelJob> MakeJob(
    const AttentionPlan& plan, const AttentionOutputs& outputs, int threads,
    absl::AnyInvocable<void(absl::Status)> done) {
  if (plan.problem->double_precision) {
    return std::make_unique<AttentionJob<double>>(plan, outputs, threads,
                                                  std::move(done));
  }
  return std::make_unique<AttentionJob<float>>(plan, outputs, threads,
                                               std::move(done));
}

JobMemory MemoryOfJob(const AttentionPlan& plan, int threads) {
  return plan.problem->double_precision ? MemoryAs<double>(plan, threads)
                                        : MemoryAs<float>(plan, threads);
}

}  // namespace attention
