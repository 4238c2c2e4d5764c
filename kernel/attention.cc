// Cuts a planned computation into stages and tasks.
#include "kernel/attention.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <utility>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "base/executor.h"
#include "kernel/attention_simd.h"
#include "kernel/problem.h"
#include "kernel/scratch.h"
#include "kernel/task_rows.h"
#include "kernel/tasks.h"

namespace attention {
namespace {

// Work below this is done on the calling thread: waking others takes as long.
constexpr double kInlineFlops = 1e6;
// Tasks a thread should find, so that none idles long at the end.
constexpr int64_t kTasksPerThread = 4;
// Up to so many are cut in the step between two stages, in a tenth of a
// millisecond. More are a task of their own, which can be left.
constexpr int64_t kTasksCutAtOnce = 2048;
// Bytes that one task copies into a present tensor.
constexpr int64_t kCopyBytes = int64_t{4} << 20;

// An error, without its text where there is no memory even for that.
absl::Status ErrorOf(absl::StatusCode code, absl::string_view text) {
  try {
    return absl::Status(code, text);
  } catch (const std::bad_alloc&) {
    return absl::Status(code, "");
  }
}

absl::Status NoMemory() {
  return ErrorOf(absl::StatusCode::kResourceExhausted,
                 "memory to compute in could not be allocated");
}

// What `function` returns, or NoMemory() if it throws std::bad_alloc.
template <typename Function>
auto Guarded(const Function& function) -> decltype(function()) {
  try {
    return function();
  } catch (const std::bad_alloc&) {
    return NoMemory();
  }
}

int64_t Blocks(int64_t keys) { return (keys + kKeyBlock - 1) / kKeyBlock; }

// Memory of a SubtreePartial.
template <typename T>
class PartBuffer {
 public:
  PartBuffer(const Problem& p, int64_t block_begin, int64_t block_end)
      : memory_(new T[NumRows(p) * (2 + p.value_head_size)]) {
    const int64_t rows = NumRows(p);
    part_.max = memory_.get();
    part_.sum = part_.max + rows;
    part_.output = part_.sum + rows;
    part_.block_begin = block_begin;
    part_.block_end = block_end;
  }
  const SubtreePartial<T>& part() const { return part_; }

 private:
  std::unique_ptr<T[]> memory_;
  SubtreePartial<T> part_;
};

template <typename T>
using PartBuffers = std::vector<PartBuffer<T>>;

// [begin, end) cut into the largest subtrees of at most `most` blocks, a power
// of two. `blocks` is the number of all blocks.
template <typename T>
PartBuffers<T> CutBlocks(const Problem& p, int64_t begin, int64_t end,
                         int64_t most, int64_t blocks) {
  PartBuffers<T> parts;
  // Only the last subtree may stick out, over the last block of all: what is
  // missing there is the identity. Elsewhere it is another part's.
  const int64_t limit =
      end < blocks ? end : std::numeric_limits<int64_t>::max();
  while (begin < end) {
    int64_t size = most;
    while (begin % size != 0 || begin + size / 2 >= end ||
           begin + size > limit) {
      size /= 2;
    }
    const int64_t stop = std::min(begin + size, end);
    parts.emplace_back(p, begin, stop);
    begin = stop;
  }
  return parts;
}

// Few rows over many keys: their keys are cut too, into subtrees of this many
// blocks, so that every thread has work. 0 where that is not needed.
int64_t BlocksPerPart(int64_t tasks, int64_t blocks, double flops,
                      int threads) {
  if (threads == 1 || blocks <= 1 || flops <= kInlineFlops) return 0;
  if (tasks >= kTasksPerThread * threads / 2) return 0;
  const int64_t wanted = kTasksPerThread * threads / tasks + 1;
  int64_t most = 1;
  while (most * wanted < blocks) most *= 2;
  return most;
}

// Past and current keys or values joined as (B, Hkv, T, columns), a piece of
// the rows of each head a task.
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

// The stages of a computation, in their order; each is left out where there is
// nothing to do.
enum class Stage : uint8_t {
  kPresentKey,
  kPresentValue,
  kCut,    // cuts the rows into tasks; before those that follow
  kRows,   // rows over all their keys
  kParts,  // rows over parts of the keys
  kMerge,  // rows from parts
};
using Stages = absl::InlinedVector<Stage, 5>;

// A computation as a job, in the precision T.
template <typename T>
class Computation final : public Executor::Job {
 public:
  Computation(std::shared_ptr<const Problem> problem, double flops,
              const AttentionOutputs& outputs, int threads, Stages stages,
              absl::AnyInvocable<void(absl::Status)> done)
      : problem_(std::move(problem)),
        flops_(flops),
        outputs_(outputs),
        threads_(threads),
        stages_(std::move(stages)),
        done_(std::move(done)),
        functions_(FunctionsFor<T>(*problem_)) {}

  // Before the first stage: the parts that kParts fills, or that kMerge reads.
  void SetParts(std::vector<SubtreePartial<T>> parts) {
    parts_ = std::move(parts);
  }

  int64_t NextStage() override {
    try {
      while (!failed_ && next_stage_ < stages_.size()) {
        if (const int64_t tasks = Begin(stages_[next_stage_++])) return tasks;
      }
    } catch (const std::bad_alloc&) {
      failed_ = true;
    }
    return 0;
  }

  bool RunTask(int64_t task, const Turn& turn) override {
    if (failed_) return true;
    try {
      if (stage_ == Stage::kCut) return CutOn(turn);
      TaskState state = TakeState(task);
      if (RunTask(task, &state, turn)) return true;
      KeepState(task, std::move(state));
      return false;
    } catch (const std::bad_alloc&) {
      failed_ = true;
      return true;
    }
  }

  void Done(JobEnd end) override {
    absl::Status status;
    if (end == JobEnd::kCancelled) {
      status = ErrorOf(absl::StatusCode::kCancelled, "cancelled by the caller");
    } else if (end == JobEnd::kDeadlineExceeded) {
      status =
          ErrorOf(absl::StatusCode::kDeadlineExceeded, "the deadline passed");
    } else if (failed_) {
      status = NoMemory();
    }
    // Frees what the job took before anybody is told that it ended.
    ReleaseMemory();
    // May destroy this.
    auto done = std::move(done_);
    done(std::move(status));
  }

 private:
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
      case Stage::kParts:
      case Stage::kMerge:
        return static_cast<int64_t>(
            tasks_.size() * (stage == Stage::kParts ? parts_.size() : 1));
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
    const int64_t blocks = Blocks(problem_->longest_keys);
    const int64_t blocks_per_part =
        BlocksPerPart(count, blocks, flops_, threads_);
    if (blocks_per_part == 0) return count;
    buffers_ = CutBlocks<T>(*problem_, 0, blocks, blocks_per_part, blocks);
    for (const PartBuffer<T>& buffer : buffers_) {
      parts_.push_back(buffer.part());
    }
    stages_.push_back(Stage::kMerge);
    return Begin(Stage::kParts);
  }

  bool RunTask(int64_t task, TaskState* state, const Turn& turn) {
    const auto parts = static_cast<int64_t>(parts_.size());
    switch (stage_) {
      case Stage::kPresentKey:
      case Stage::kPresentValue:
        copy_->Run(task);
        return true;
      case Stage::kCut:
        break;  // CutOn()
      case Stage::kRows: {
        RowStretch then;
        if (const RowTask* next = TaskAfter(task)) {
          then = FirstKeys(*problem_, *next, 0);
        }
        return functions_.compute_rows(*problem_, tasks_[task], then, outputs_,
                                       state, turn);
      }
      case Stage::kParts: {
        RowStretch then;
        if (const int64_t next = task + threads_;
            next < static_cast<int64_t>(tasks_.size()) * parts) {
          then = FirstKeys(*problem_, tasks_[next / parts],
                           parts_[next % parts].block_begin);
        }
        return functions_.compute_part(*problem_, tasks_[task / parts], then,
                                       parts_[task % parts], state, turn);
      }
      case Stage::kMerge:
        return functions_.merge_parts(*problem_, tasks_[task], parts_, outputs_,
                                      state, turn);
    }
    return true;
  }

  // What a thread probably gets after `task`: threads draw tasks in turn.
  const RowTask* TaskAfter(int64_t task) const {
    const int64_t next = task + threads_;
    return next < static_cast<int64_t>(tasks_.size()) ? &tasks_[next] : nullptr;
  }

  TaskState TakeState(int64_t task) {
    if (!any_left_.load(std::memory_order_acquire)) return {};
    std::lock_guard<std::mutex> lock(left_mutex_);
    for (Left& left : left_) {
      if (left.task != task) continue;
      TaskState state = std::move(*left.state);
      std::swap(left, left_.back());
      left_.pop_back();
      return state;
    }
    return {};
  }

  void KeepState(int64_t task, TaskState state) {
    std::lock_guard<std::mutex> lock(left_mutex_);
    left_.push_back({task, std::make_unique<TaskState>(std::move(state))});
    any_left_.store(true, std::memory_order_release);
  }

  void ReleaseMemory() {
    left_.clear();
    buffers_.clear();
    parts_.clear();
    cutter_.reset();
    tasks_ = {};
  }

  struct Left {
    int64_t task;
    std::unique_ptr<TaskState> state;
  };

  const std::shared_ptr<const Problem> problem_;
  const double flops_;
  const AttentionOutputs outputs_;
  const int threads_;
  Stages stages_;
  absl::AnyInvocable<void(absl::Status)> done_;
  const RowFunctions<T> functions_;

  size_t next_stage_ = 0;
  Stage stage_ = Stage::kRows;
  std::optional<PresentCopy> copy_;
  std::optional<RowCutter> cutter_;
  std::vector<RowTask> tasks_;
  PartBuffers<T> buffers_;
  std::vector<SubtreePartial<T>> parts_;
  std::atomic<bool> failed_{false};

  // Tasks that a thread has begun and left.
  std::atomic<bool> any_left_{false};
  std::mutex left_mutex_;
  std::vector<Left> left_;  // guarded by left_mutex_
};

// Runs a job and blocks until it is done.
absl::Status RunBlocking(double flops, Executor& executor,
                         const std::atomic<bool>* cancelled, Executor::Job& job,
                         const absl::Status& status) {
  if (flops < kInlineFlops) {
    Executor::RunHere(&job, cancelled);
  } else {
    executor.Run(&job, {.seconds = flops * 1e-11, .cancelled = cancelled});
  }
  return status;
}

Stages AllStages() {
  return {Stage::kPresentKey, Stage::kPresentValue, Stage::kCut, Stage::kRows};
}

template <typename T>
absl::Status Run(const AttentionPlan& plan, const AttentionOutputs& outputs,
                 Executor& executor, const std::atomic<bool>* cancelled) {
  absl::Status result;
  Computation<T> job(plan.problem, plan.flops, outputs, executor.threads() + 1,
                     AllStages(),
                     [&](absl::Status status) { result = std::move(status); });
  return RunBlocking(plan.flops, executor, cancelled, job, result);
}

template <typename T>
const PartBuffers<T>& BuffersOf(const AttentionPart::Impl& part);

}  // namespace

struct AttentionPart::Impl {
  int64_t rows = 0;
  int64_t value_head_size = 0;
  int64_t block_begin = 0;
  int64_t block_end = 0;
  // One of them, by the precision of the computation.
  PartBuffers<float> floats;
  PartBuffers<double> doubles;
};

namespace {

template <>
const PartBuffers<float>& BuffersOf(const AttentionPart::Impl& part) {
  return part.floats;
}
template <>
const PartBuffers<double>& BuffersOf(const AttentionPart::Impl& part) {
  return part.doubles;
}

template <typename T>
absl::Status RunPart(const AttentionPlan& plan, int64_t begin, int64_t end,
                     Executor& executor, const std::atomic<bool>* cancelled,
                     PartBuffers<T>* buffers) {
  // A power of two above any number of blocks: as few subtrees as there can be.
  *buffers = CutBlocks<T>(*plan.problem, begin, end, int64_t{1} << 54,
                          Blocks(plan.problem->longest_keys));
  absl::Status result;
  Computation<T> job(plan.problem, plan.flops, {}, executor.threads() + 1,
                     {Stage::kCut, Stage::kParts},
                     [&](absl::Status status) { result = std::move(status); });
  std::vector<SubtreePartial<T>> parts;
  for (const PartBuffer<T>& buffer : *buffers) parts.push_back(buffer.part());
  job.SetParts(std::move(parts));
  return RunBlocking(plan.flops, executor, cancelled, job, result);
}

template <typename T>
absl::Status RunMerge(const AttentionPlan& plan,
                      absl::Span<const AttentionPart> parts,
                      const AttentionOutputs& outputs, Executor& executor,
                      const std::atomic<bool>* cancelled) {
  std::vector<SubtreePartial<T>> subtrees;
  for (const AttentionPart& part : parts) {
    for (const PartBuffer<T>& buffer : BuffersOf<T>(part.impl())) {
      subtrees.push_back(buffer.part());
    }
  }
  absl::Status result;
  Computation<T> job(
      plan.problem, plan.flops, outputs, executor.threads() + 1,
      {Stage::kPresentKey, Stage::kPresentValue, Stage::kCut, Stage::kMerge},
      [&](absl::Status status) { result = std::move(status); });
  job.SetParts(std::move(subtrees));
  return RunBlocking(plan.flops, executor, cancelled, job, result);
}

// a + count * size, at most the largest int64_t.
int64_t SaturatingAdd(int64_t a, int64_t count, int64_t size) {
  int64_t product, sum;
  return __builtin_mul_overflow(count, size, &product) ||
                 __builtin_add_overflow(a, product, &sum)
             ? std::numeric_limits<int64_t>::max()
             : sum;
}

template <typename T>
int64_t WorkingBytesAs(const AttentionPlan& plan, int threads) {
  const Problem& p = *plan.problem;
  const int64_t rows = NumRows(p);
  if (rows == 0) return 0;
  const int64_t task_rows = MostTaskRows(p);
  const int64_t tasks = MostTasks(p);
  const int64_t blocks = Blocks(p.longest_keys);
  // Each thread's scratch, or that of the task that it left.
  int64_t bytes =
      SaturatingAdd(0, threads, FunctionsFor<T>(p).scratch_bytes(p, task_rows));
  bytes = SaturatingAdd(bytes, tasks, RowCutter::kBytesPerTask);
  // Parts, if the keys may be cut too (BlocksPerPart).
  const bool few = rows <= kTasksPerThread * threads * kTaskRows;
  if (few && threads > 1 && blocks > 1 && plan.flops > kInlineFlops) {
    const int64_t parts =
        std::min<int64_t>(blocks, 2 * (kTasksPerThread * threads + 1));
    bytes = SaturatingAdd(
        bytes, parts * rows,
        (2 + p.value_head_size) * static_cast<int64_t>(sizeof(T)));
  }
  return bytes;
}

}  // namespace

int64_t WorkingBytes(const AttentionPlan& plan, int threads) {
  return plan.problem->double_precision ? WorkingBytesAs<double>(plan, threads)
                                        : WorkingBytesAs<float>(plan, threads);
}

absl::Status RunAttention(const AttentionPlan& plan,
                          const AttentionOutputs& outputs, Executor& executor,
                          const std::atomic<bool>* cancelled) {
  return Guarded([&] {
    return plan.problem->double_precision
               ? Run<double>(plan, outputs, executor, cancelled)
               : Run<float>(plan, outputs, executor, cancelled);
  });
}

std::unique_ptr<Executor::Job> MakeAttentionJob(
    const AttentionPlan& plan, const AttentionOutputs& outputs, int threads,
    absl::AnyInvocable<void(absl::Status)> done) {
  if (plan.problem->double_precision) {
    return std::make_unique<Computation<double>>(plan.problem, plan.flops,
                                                 outputs, threads, AllStages(),
                                                 std::move(done));
  }
  return std::make_unique<Computation<float>>(
      plan.problem, plan.flops, outputs, threads, AllStages(), std::move(done));
}

absl::StatusOr<AttentionPart> RunAttentionPart(
    const AttentionPlan& plan, int64_t key_begin, int64_t key_end,
    Executor& executor, const std::atomic<bool>* cancelled) {
  return Guarded([&]() -> absl::StatusOr<AttentionPart> {
    const Problem& p = *plan.problem;
    const int64_t keys = p.longest_keys;
    if (key_begin < 0 || key_begin > key_end || key_end > keys ||
        key_begin % kKeyBlock != 0 ||
        (key_end % kKeyBlock != 0 && key_end != keys)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "part [", key_begin, ", ", key_end, "): wanted multiples of ",
          kKeyBlock, " in ascending order up to the number of keys, ", keys));
    }
    auto impl = std::make_shared<AttentionPart::Impl>();
    impl->rows = NumRows(p);
    impl->value_head_size = p.value_head_size;
    impl->block_begin = key_begin / kKeyBlock;
    impl->block_end = Blocks(key_end);
    absl::Status status =
        p.double_precision
            ? RunPart<double>(plan, impl->block_begin, impl->block_end,
                              executor, cancelled, &impl->doubles)
            : RunPart<float>(plan, impl->block_begin, impl->block_end, executor,
                             cancelled, &impl->floats);
    if (!status.ok()) return status;
    return AttentionPart(std::move(impl));
  });
}

absl::Status MergeAttentionParts(const AttentionPlan& plan,
                                 absl::Span<const AttentionPart> parts,
                                 const AttentionOutputs& outputs,
                                 Executor& executor,
                                 const std::atomic<bool>* cancelled) {
  return Guarded([&]() -> absl::Status {
    const Problem& p = *plan.problem;
    int64_t next = 0;
    for (const AttentionPart& part : parts) {
      const AttentionPart::Impl& impl = part.impl();
      if (impl.rows != NumRows(p) ||
          impl.value_head_size != p.value_head_size ||
          (p.double_precision ? !impl.floats.empty() : !impl.doubles.empty())) {
        return absl::InvalidArgumentError("part: computed by another plan");
      }
      if (impl.block_begin != next) {
        return absl::InvalidArgumentError(absl::StrCat(
            "parts: got one that begins at key ", impl.block_begin * kKeyBlock,
            ", wanted ", next * kKeyBlock));
      }
      next = impl.block_end;
    }
    if (const int64_t blocks = Blocks(p.longest_keys); next != blocks) {
      return absl::InvalidArgumentError(absl::StrCat(
          "parts: got keys up to block ", next, ", wanted ", blocks));
    }
    return p.double_precision
               ? RunMerge<double>(plan, parts, outputs, executor, cancelled)
               : RunMerge<float>(plan, parts, outputs, executor, cancelled);
  });
}

}  // namespace attention
