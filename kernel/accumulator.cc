#include "kernel/accumulator.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "base/executor.h"
#include "base/saturating.h"
#include "kernel/attention.h"
#include "kernel/cpu/dispatch.h"
#include "kernel/cpu/kernel_job.h"
#include "kernel/cpu/partials.h"
#include "kernel/cpu/row_task.h"
#include "kernel/cpu/strided_rows.h"
#include "kernel/cpu/subtrees.h"
#include "kernel/cpu/task_memory.h"
#include "kernel/cpu/task_rows.h"
#include "kernel/cpu/tasks.h"
#include "kernel/key_values.h"
#include "kernel/plan/checks.h"
#include "kernel/plan/problem.h"

namespace attention {
namespace {

constexpr int64_t kNoEnd = std::numeric_limits<int64_t>::max();
constexpr BlockRange kAfterTheLast = {kNoEnd, kNoEnd};

// Keys that any of the task's rows sees, the mask tensor not considered.
KeyRange SeenBy(const Problem& problem, const RowTask& task) {
  const Sequence sequence = problem.GetSequence(task.sequence);
  const KeyRange first =
      problem.Visible(sequence, task.row_begin / problem.group());
  const KeyRange last =
      problem.Visible(sequence, (task.row_end - 1) / problem.group());
  // Neither end decreases from one query to the next.
  return {first.begin, last.end};
}

template <typename T>
int64_t BytesAs(const AttentionPlan& plan, int threads, int64_t sequences) {
  const Problem& p = *plan.problem;
  const int64_t rows = NumRows(p);
  if (rows == 0) return 0;
  const RowFunctions<T> functions = FunctionsFor<T>(p);
  const int64_t tasks = MostTasks(p);
  constexpr int64_t kBytesPerTask =
      RowCutter::kBytesPerTask + sizeof(TaskState) + sizeof(int64_t) + 1;
  int64_t bytes = SaturatingMultiply(tasks, kBytesPerTask);
  bytes = SaturatingAdd(
      bytes, SaturatingMultiply(p.ragged ? p.batch : 0, sizeof(int64_t)));
  bytes = SaturatingAdd(
      bytes, SaturatingMultiply(threads, functions.scratch_bytes(p)));
  // Unfinished sequences, each as long as the longest.
  const int64_t open = p.ragged ? std::min(sequences, p.batch) : p.batch;
  const int64_t sequence_rows = p.longest_query * p.group();
  // A task has at least the rows of a tile, except the last one of a head, or
  // of those that share a list of indices.
  const int64_t together = p.indices ? p.rows_per_list() : sequence_rows;
  const int64_t rows_per_task = std::min(together, kMaxTileRows);
  const int64_t tasks_per_head =
      sequence_rows / together *
      ((together + rows_per_task - 1) / rows_per_task);
  const int64_t per_head = SaturatingMultiply(
      tasks_per_head, functions.state_bytes(p, rows_per_task));
  return SaturatingAdd(bytes, SaturatingMultiply(open * p.kv_heads, per_head));
}

absl::Status WrongKeys(int64_t view, absl::string_view what, int64_t got,
                       int64_t wanted) {
  return absl::InvalidArgumentError(absl::StrCat(
      "views[", view, "].", what, ": got ", got, ", wanted ", wanted));
}

}  // namespace

// What does not depend on the precision: the checks, and how many keys are
// there.
class Accumulator::Impl {
 public:
  Impl(const AttentionPlan& plan, const AttentionOutputs& outputs,
       std::optional<Keys> part)
      : problem_(*plan.problem),
        is_part_(part.has_value()),
        outputs_(outputs),
        end_(part ? part->end : kNoEnd) {
    problem_.by_views = true;
    if (part) problem_.first_block = part->begin / kKeyBlock;
    const int64_t begin = part ? part->begin : 0;
    if (problem_.ragged) {
      next_.reserve(problem_.batch);
      for (int64_t b = 0; b < problem_.batch; ++b) {
        next_.push_back(std::min(begin, LengthOf(b)));
      }
    } else {
      next_ = {begin};
    }
    if (problem_.batch == 0) return;  // No sequence misses keys.
    for (int64_t b = 0; b < static_cast<int64_t>(next_.size()); ++b) {
      missing_keys_ += std::max<int64_t>(0, EndOf(b) - next_[b]);
    }
  }
  virtual ~Impl() = default;

  // OK if the keys may be added.
  absl::Status Check(const AddedKeys& keys) const {
    if (broken_) return Broken();
    const auto count = static_cast<int64_t>(keys.views.size());
    if (problem_.ragged) {
      if (keys.first_sequence < 0 || count > problem_.batch ||
          keys.first_sequence > problem_.batch - count) {
        return absl::InvalidArgumentError(absl::StrCat(
            "views: got ", count, " from sequence ", keys.first_sequence,
            " on, wanted sequences below ", problem_.batch));
      }
    } else if (keys.first_sequence != 0 || count != problem_.batch) {
      return absl::InvalidArgumentError(absl::StrCat(
          "views: got ", count, " from sequence ", keys.first_sequence,
          " on, wanted ", problem_.batch, " from 0 on"));
    }
    for (int64_t i = 0; i < count; ++i) {
      const KeyValueView& view = keys.views[i];
      const int64_t sequence = keys.first_sequence + i;
      const int64_t next = NextOf(sequence);
      if (view.begin != next) return WrongKeys(i, "begin", view.begin, next);
      const int64_t left = EndOf(sequence) - next;
      if (view.length < 0 || view.length > left ||
          (view.length % kKeyBlock != 0 && view.length != left)) {
        return absl::InvalidArgumentError(
            absl::StrCat("views[", i, "].length: got ", view.length,
                         ", wanted a multiple of ", kKeyBlock, " below ", left,
                         ", or all ", left, " keys that are missing"));
      }
      if (!problem_.ragged && view.length != keys.views[0].length) {
        return WrongKeys(i, "length", view.length, keys.views[0].length);
      }
      const auto blocks = static_cast<int64_t>(view.blocks.size());
      if (blocks != BlocksOf(view.length)) {
        return WrongKeys(i, "blocks", blocks, BlocksOf(view.length));
      }
    }
    return absl::OkStatus();
  }

  // The mask while `keys` are attended to: its columns of these keys.
  absl::StatusOr<std::optional<MaskOperand>> MaskFor(
      const AddedKeys& keys) const {
    if (!problem_.mask) {
      if (!keys.mask) return std::nullopt;
      return FieldError("mask", "got a mask, wanted none, as in the plan");
    }
    if (problem_.batch == 0) return problem_.mask;  // Nobody's.
    const int64_t begin = NextOf(0);
    const int64_t length = keys.views.empty() ? 0 : keys.views[0].length;
    absl::StatusOr<MaskOperand> operand = PlanMaskColumns(
        keys.mask, keys.mask_is_checked, *problem_.mask, begin, begin + length);
    if (!operand.ok()) return operand.status();
    return *std::move(operand);
  }

  absl::Status CheckFinish() const {
    if (is_part_) {
      return absl::FailedPreconditionError(
          "a part of the keys cannot finish rows");
    }
    return CheckComplete();
  }
  absl::Status CheckExport() const {
    if (!is_part_) {
      return absl::FailedPreconditionError(
          "an accumulator of all keys has no partials to export");
    }
    return CheckComplete();
  }
  absl::Status CheckComplete() const {
    if (broken_) return Broken();
    if (missing_keys_ == 0) return absl::OkStatus();
    return absl::FailedPreconditionError(
        absl::StrCat(missing_keys_, " keys have not been added"));
  }

  absl::Status CheckMerge(const Partial& partial, DataType type) const {
    if (broken_) return Broken();
    if (partial.rows != NumRows(problem_) ||
        partial.value_head_size != problem_.value_head_size ||
        partial.type != type) {
      return absl::InvalidArgumentError(absl::StrCat(
          "partial: got ", partial.rows, " rows of ", partial.value_head_size,
          " columns, ", Name(partial.type), ", wanted ", NumRows(problem_),
          " of ", problem_.value_head_size, ", ", Name(type)));
    }
    const int64_t blocks = BlocksOf(problem_.longest_keys);
    const int64_t begin = partial.block_begin, end = partial.block_end;
    if (begin < 0 || end <= begin ||
        end > BlocksOf(std::min(end_, problem_.longest_keys)) ||
        CutBlocks(begin, end, kMostBlocks, blocks).size() != 1) {
      return absl::InvalidArgumentError(absl::StrCat(
          "partial: got blocks [", begin, ", ", end,
          "), wanted one subtree of the tree of ", blocks, " blocks"));
    }
    for (int64_t b = 0; b < static_cast<int64_t>(next_.size()); ++b) {
      const int64_t wanted = std::min(begin * kKeyBlock, LengthOf(b));
      if (next_[b] != wanted) {
        return absl::InvalidArgumentError(
            absl::StrCat("partial: got keys from ", begin * kKeyBlock,
                         " on, wanted from ", next_[b], " on"));
      }
    }
    return absl::OkStatus();
  }

  // Counts `keys` as added.
  void Advance(const AddedKeys& keys) {
    if (!problem_.ragged) {
      const int64_t length = keys.views.empty() ? 0 : keys.views[0].length;
      next_[0] += length;
      missing_keys_ -= length;
      return;
    }
    for (size_t i = 0; i < keys.views.size(); ++i) {
      next_[keys.first_sequence + i] += keys.views[i].length;
      missing_keys_ -= keys.views[i].length;
    }
  }
  // Counts the keys of all sequences before `block` as added.
  void AdvanceTo(int64_t block) {
    for (int64_t b = 0; b < static_cast<int64_t>(next_.size()); ++b) {
      const int64_t next = std::min(block * kKeyBlock, EndOf(b));
      missing_keys_ -= next - next_[b];
      next_[b] = next;
    }
  }
  void Break() { broken_ = true; }

  // The jobs of Add(), Merge(), Finish() and Export(). Their arguments must
  // have been checked.
  virtual std::unique_ptr<KernelJob> MakeAdd(
      const AddedKeys& keys, std::optional<MaskOperand> mask, int threads,
      absl::AnyInvocable<void(absl::Status)> done) = 0;
  virtual std::unique_ptr<KernelJob> MakeMerge(
      const Partial& partial, int threads,
      absl::AnyInvocable<void(absl::Status)> done) = 0;
  virtual std::unique_ptr<KernelJob> MakeFinish(
      int threads, absl::AnyInvocable<void(absl::Status)> done) = 0;
  virtual std::unique_ptr<KernelJob> MakeExport(
      std::vector<Partial>* partials, int threads,
      absl::AnyInvocable<void(absl::Status)> done) = 0;
  virtual DataType type() const = 0;

  int64_t finished_queries() const { return finished_queries_; }
  // At most; causal mask, window and valid lengths are not considered.
  double FlopsOf(const AddedKeys& keys) const {
    double count = 0;
    for (const KeyValueView& view : keys.views) {
      count += static_cast<double>(view.length);
    }
    return 2 * count * static_cast<double>(problem_.longest_query) *
           static_cast<double>(problem_.query_heads) *
           static_cast<double>(problem_.head_size + problem_.value_head_size);
  }

 protected:
  // A power of two above any number of blocks.
  static constexpr int64_t kMostBlocks = int64_t{1} << 54;

  static absl::Status Broken() {
    return absl::FailedPreconditionError(
        "an earlier call was cancelled or failed");
  }
  int64_t LengthOf(int64_t sequence) const {
    return problem_.ragged ? problem_.key_starts[sequence + 1] -
                                 problem_.key_starts[sequence]
                           : problem_.total_keys();
  }
  int64_t EndOf(int64_t sequence) const {
    return std::min(end_, LengthOf(sequence));
  }
  int64_t NextOf(int64_t sequence) const {
    return next_[problem_.ragged ? sequence : 0];
  }

  Problem problem_;  // a copy: its key_views and mask change with each Add()
  const bool is_part_;
  const AttentionOutputs outputs_;
  const int64_t end_;  // of the part's keys; kNoEnd: of all keys
  // [B] with RAGGED, else [1]: the first key that is missing.
  std::vector<int64_t> next_;
  int64_t missing_keys_ = 0;  // sum of EndOf(b) - next_[b]
  bool broken_ = false;       // a job was cancelled or failed
  int64_t finished_queries_ = 0;
};

namespace {

constexpr DataType TypeOf(float) { return DataType::kFloat32; }
constexpr DataType TypeOf(double) { return DataType::kFloat64; }

}  // namespace

// In the precision T.
template <typename T>
class AccumulatorIn final : public Accumulator::Impl {
 public:
  AccumulatorIn(const AttentionPlan& plan, const AttentionOutputs& outputs,
                std::optional<Accumulator::Keys> part)
      : Impl(plan, outputs, part), functions_(FunctionsFor<T>(problem_)) {}

  DataType type() const override { return TypeOf(T{}); }

  std::unique_ptr<KernelJob> MakeAdd(
      const AddedKeys& keys, std::optional<MaskOperand> mask, int threads,
      absl::AnyInvocable<void(absl::Status)> done) override {
    return std::make_unique<AddJob>(*this, keys, std::move(mask), threads,
                                    std::move(done));
  }
  std::unique_ptr<KernelJob> MakeMerge(
      const Partial& partial, int threads,
      absl::AnyInvocable<void(absl::Status)> done) override {
    return std::make_unique<MergeJob>(*this, partial, threads, std::move(done));
  }
  std::unique_ptr<KernelJob> MakeFinish(
      int threads, absl::AnyInvocable<void(absl::Status)> done) override {
    return std::make_unique<FinishJob>(*this, threads, std::move(done));
  }
  std::unique_ptr<KernelJob> MakeExport(
      std::vector<Partial>* partials, int threads,
      absl::AnyInvocable<void(absl::Status)> done) override {
    return std::make_unique<ExportJob>(*this, partials, threads,
                                       std::move(done));
  }

 private:
  // A job over some of the tasks. Stages: the rows are cut into tasks, unless
  // an earlier job has done so; then the listed tasks run.
  class TasksJob : public KernelJob {
   public:
    TasksJob(AccumulatorIn& accumulator, int threads,
             absl::AnyInvocable<void(absl::Status)> done)
        : KernelJob(std::move(done)), a_(accumulator), threads_(threads) {}

   protected:
    // Lists the tasks to run, as indices into tasks_.
    virtual void ListTasks(std::vector<int64_t>* tasks) = 0;
    // Runs tasks_[task], which is number `index` of the list.
    virtual TaskEnd RunListed(int64_t index, int64_t task,
                              const Turn& turn) = 0;
    // All of them have run.
    virtual void Succeed() = 0;

    AccumulatorIn& a_;
    // The task that a thread probably runs after number `index` of the list:
    // threads draw tasks in turn.
    const RowTask* TaskAfter(int64_t index) const {
      const size_t next = static_cast<size_t>(index) + threads_;
      return next < listed_.size() ? &a_.tasks_[listed_[next]] : nullptr;
    }

   private:
    int64_t Next() final {
      if (!a_.cut_) {
        if (!cutting_) {
          cutting_ = true;
          cutter_.emplace(a_.problem_, threads_);
          return 1;
        }
        a_.TakeTasks(cutter_->TakeTasks());
        cutter_.reset();
      }
      if (std::exchange(listed_all_, true)) return 0;
      ListTasks(&listed_);
      return static_cast<int64_t>(listed_.size());
    }

    bool Run(int64_t index, const Turn& turn) final {
      if (!a_.cut_) return cutter_->Run(turn);
      const int64_t task = listed_[index];
      const TaskEnd end = RunListed(index, task, turn);
      if (end == TaskEnd::kFinished) a_.finished_[task] = 1;
      return end != TaskEnd::kSuspended;
    }

    void End(bool ok) final {
      a_.problem_.key_views = {};
      if (ok) {
        Succeed();
      } else {
        a_.Break();
      }
      listed_ = {};
      cutter_.reset();
    }

    const int threads_;
    bool cutting_ = false;
    std::optional<RowCutter> cutter_;
    bool listed_all_ = false;
    std::vector<int64_t> listed_;
  };

  class AddJob final : public TasksJob {
   public:
    AddJob(AccumulatorIn& accumulator, const AddedKeys& keys,
           std::optional<MaskOperand> mask, int threads,
           absl::AnyInvocable<void(absl::Status)> done)
        : TasksJob(accumulator, threads, std::move(done)),
          keys_(keys),
          mask_(std::move(mask)) {}

   private:
    void ListTasks(std::vector<int64_t>* tasks) override {
      AccumulatorIn& a = this->a_;
      a.problem_.key_views = keys_.views;
      a.problem_.first_view = keys_.first_sequence;
      if (mask_) a.problem_.mask = std::move(mask_);
      a.ListWithoutKeys(tasks);
      const int64_t end =
          keys_.first_sequence + static_cast<int64_t>(keys_.views.size());
      for (int64_t task = a.FirstTaskOf(keys_.first_sequence);
           task < static_cast<int64_t>(a.tasks_.size()) &&
           a.tasks_[task].sequence < end;
           ++task) {
        // Tasks that see later keys only have nothing to do yet.
        if (!a.finished_[task] &&
            SeenBy(a.problem_, a.tasks_[task]).begin < ViewEnd(task)) {
          tasks->push_back(task);
        }
      }
    }

    // Where the added keys of the task's sequence end; kNoEnd if no more
    // follow.
    int64_t ViewEnd(int64_t task) const {
      const AccumulatorIn& a = this->a_;
      const int64_t sequence = a.tasks_[task].sequence;
      if (sequence < keys_.first_sequence) return kNoEnd;
      const KeyValueView& view = keys_.views[sequence - keys_.first_sequence];
      const int64_t end = view.begin + view.length;
      return end == a.LengthOf(sequence) ? kNoEnd : end;
    }

    TaskEnd RunListed(int64_t index, int64_t task, const Turn& turn) override {
      AccumulatorIn& a = this->a_;
      const int64_t end = ViewEnd(task);
      const int64_t begin = a.NextOf(a.tasks_[task].sequence);
      StridedRows next_keys;
      if (const RowTask* next = this->TaskAfter(index)) {
        const int64_t next_begin = a.NextOf(next->sequence);
        next_keys = FirstKeys(a.problem_, *next, next_begin / kKeyBlock);
      }
      return a.functions_.attend(
          a.problem_, a.tasks_[task],
          {begin / kKeyBlock, end == kNoEnd ? kNoEnd : end / kKeyBlock},
          next_keys, a.is_part_ ? nullptr : &a.outputs_, a.StateOf(task), turn);
    }

    void Succeed() override {
      this->a_.Advance(keys_);
      this->a_.CountFinished();
    }

    const AddedKeys keys_;
    std::optional<MaskOperand> mask_;
  };

  class MergeJob final : public TasksJob {
   public:
    MergeJob(AccumulatorIn& accumulator, const Partial& partial, int threads,
             absl::AnyInvocable<void(absl::Status)> done)
        : TasksJob(accumulator, threads, std::move(done)),
          memory_(partial.memory) {
      // merge_subtrees only reads.
      subtree_.max = static_cast<T*>(const_cast<void*>(partial.max));
      subtree_.sum = static_cast<T*>(const_cast<void*>(partial.sum));
      subtree_.output = static_cast<T*>(const_cast<void*>(partial.output));
      subtree_.block_begin = partial.block_begin;
      subtree_.block_end = partial.block_end;
    }

   private:
    void ListTasks(std::vector<int64_t>* tasks) override {
      this->a_.ListUnfinished(tasks);
    }
    TaskEnd RunListed(int64_t /*index*/, int64_t task,
                      const Turn& turn) override {
      AccumulatorIn& a = this->a_;
      return a.functions_.merge_subtrees(a.problem_, a.tasks_[task],
                                         {&subtree_, 1}, nullptr,
                                         a.StateOf(task), turn);
    }
    void Succeed() override { this->a_.AdvanceTo(subtree_.block_end); }

    const std::shared_ptr<const void> memory_;
    SubtreePartial<T> subtree_;
  };

  class FinishJob final : public TasksJob {
   public:
    using TasksJob::TasksJob;

   private:
    void ListTasks(std::vector<int64_t>* tasks) override {
      this->a_.ListUnfinished(tasks);
    }
    TaskEnd RunListed(int64_t /*index*/, int64_t task,
                      const Turn& turn) override {
      AccumulatorIn& a = this->a_;
      return a.functions_.attend(a.problem_, a.tasks_[task], kAfterTheLast, {},
                                 &a.outputs_, &a.states_[task], turn);
    }
    void Succeed() override { this->a_.CountFinished(); }
  };

  class ExportJob final : public TasksJob {
   public:
    ExportJob(AccumulatorIn& accumulator, std::vector<Partial>* partials,
              int threads, absl::AnyInvocable<void(absl::Status)> done)
        : TasksJob(accumulator, threads, std::move(done)),
          partials_(partials) {}

   private:
    void ListTasks(std::vector<int64_t>* tasks) override {
      const Problem& p = this->a_.problem_;
      const int64_t end = BlocksOf(std::min(this->a_.end_, p.longest_keys));
      for (const Subtree& subtree :
           CutBlocks(p.first_block, end, Impl::kMostBlocks,
                     BlocksOf(p.longest_keys))) {
        const SubtreeBuffer<T> buffer(p, subtree);
        subtrees_.push_back(buffer.partial());
        Partial& partial = results_.emplace_back();
        partial.block_begin = subtree.begin;
        partial.block_end = subtree.end;
        partial.rows = NumRows(p);
        partial.value_head_size = p.value_head_size;
        partial.type = TypeOf(T{});
        partial.max = buffer.partial().max;
        partial.sum = buffer.partial().sum;
        partial.output = buffer.partial().output;
        partial.memory = buffer.memory();
      }
      this->a_.ListUnfinished(tasks);
    }
    TaskEnd RunListed(int64_t /*index*/, int64_t task,
                      const Turn& /*turn*/) override {
      AccumulatorIn& a = this->a_;
      return a.functions_.store_subtrees(a.problem_, a.tasks_[task], subtrees_,
                                         &a.states_[task]);
    }
    void Succeed() override { *partials_ = std::move(results_); }

    std::vector<Partial>* const partials_;
    std::vector<Partial> results_;
    std::vector<SubtreePartial<T>> subtrees_;
  };

  // Sorts the tasks by sequence, then by rows.
  void TakeTasks(std::vector<RowTask> tasks) {
    std::sort(tasks.begin(), tasks.end(),
              [](const RowTask& a, const RowTask& b) {
                if (a.sequence != b.sequence) return a.sequence < b.sequence;
                if (a.row_begin != b.row_begin) {
                  return a.row_begin < b.row_begin;
                }
                return a.kv_head < b.kv_head;
              });
    states_ = std::vector<TaskState>(tasks.size());
    finished_.assign(tasks.size(), 0);
    tasks_ = std::move(tasks);
    cut_ = true;
  }

  int64_t FirstTaskOf(int64_t sequence) const {
    return std::partition_point(tasks_.begin(), tasks_.end(),
                                [sequence](const RowTask& task) {
                                  return task.sequence < sequence;
                                }) -
           tasks_.begin();
  }

  // Lists the tasks, from the first unfinished one on, of sequences without
  // keys: no view will ever come for them.
  void ListWithoutKeys(std::vector<int64_t>* tasks) const {
    for (size_t task = first_unfinished_;
         task < tasks_.size() && LengthOf(tasks_[task].sequence) == 0; ++task) {
      if (tasks_[task].sequence >= problem_.first_view) return;
      if (!finished_[task]) tasks->push_back(static_cast<int64_t>(task));
    }
  }

  void ListUnfinished(std::vector<int64_t>* tasks) const {
    for (size_t task = first_unfinished_; task < tasks_.size(); ++task) {
      if (!finished_[task]) tasks->push_back(static_cast<int64_t>(task));
    }
  }

  // The state of a task, in memory of its own. Its thread's memory would be
  // larger than the task needs, and states live long here.
  TaskState* StateOf(int64_t task) {
    TaskState& state = states_[task];
    if (state.memory.data == nullptr) {
      const RowTask& rows = tasks_[task];
      state.memory = AllocateTaskMemory(
          functions_.state_bytes(problem_, rows.row_end - rows.row_begin));
    }
    return &state;
  }

  void CountFinished() {
    while (first_unfinished_ < tasks_.size() && finished_[first_unfinished_]) {
      ++first_unfinished_;
    }
    finished_queries_ = problem_.query_length;
    if (first_unfinished_ == tasks_.size()) return;
    if (problem_.ragged) {
      const RowTask& task = tasks_[first_unfinished_];
      finished_queries_ = problem_.query_starts[task.sequence] +
                          task.row_begin / problem_.group();
      return;
    }
    for (size_t task = first_unfinished_; task < tasks_.size(); ++task) {
      if (finished_[task]) continue;
      finished_queries_ = std::min(finished_queries_,
                                   tasks_[task].row_begin / problem_.group());
    }
  }

  const RowFunctions<T> functions_;
  bool cut_ = false;
  std::vector<RowTask> tasks_;     // ascending by sequence
  std::vector<TaskState> states_;  // [tasks]
  // [tasks]. Not bool: threads write neighbours.
  std::vector<char> finished_;
  size_t first_unfinished_ = 0;  // all tasks before it are finished
};

namespace {

std::unique_ptr<Accumulator::Impl> MakeImpl(
    const AttentionPlan& plan, const AttentionOutputs& outputs,
    std::optional<Accumulator::Keys> part) {
  if (plan.double_precision) {
    return std::make_unique<AccumulatorIn<double>>(plan, outputs, part);
  }
  return std::make_unique<AccumulatorIn<float>>(plan, outputs, part);
}

absl::Status CheckPlan(const AttentionPlan& plan) {
  if (plan.scores) {
    return FieldError("options.return_scores", "not with an Accumulator");
  }
  if (plan.present_key) {
    return FieldError("options.return_present", "not with an Accumulator");
  }
  if (plan.problem->mask && plan.problem->mask->first_key > 0) {
    return FieldError("mask_begin", "not with an Accumulator");
  }
  return absl::OkStatus();
}

// Makes a job with make(threads, done), runs it and returns how it ended.
template <typename Make>
absl::Status RunJob(double flops, Executor& executor,
                    const std::atomic<bool>* cancelled, const Make& make) {
  absl::Status result;
  const std::unique_ptr<KernelJob> job =
      make(executor.threads() + 1,
           [&result](absl::Status status) { result = std::move(status); });
  RunBlocking(*job, flops, executor, cancelled);
  return result;
}

}  // namespace

Accumulator::Accumulator(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Accumulator::Accumulator(Accumulator&&) noexcept = default;
Accumulator& Accumulator::operator=(Accumulator&&) noexcept = default;
Accumulator::~Accumulator() = default;

absl::StatusOr<Accumulator> Accumulator::Create(
    const AttentionPlan& plan, const AttentionOutputs& outputs) {
  ATTENTION_RETURN_IF_ERROR(CheckPlan(plan));
  return Accumulator(MakeImpl(plan, outputs, std::nullopt));
}

absl::StatusOr<Accumulator> Accumulator::CreatePart(const AttentionPlan& plan,
                                                    Keys keys) {
  ATTENTION_RETURN_IF_ERROR(CheckPlan(plan));
  const int64_t all = plan.problem->longest_keys;
  if (keys.end == kNoEnd) keys.end = all;
  if (keys.begin < 0 || keys.begin > keys.end || keys.end > all ||
      keys.begin % kKeyBlock != 0 ||
      (keys.end % kKeyBlock != 0 && keys.end != all)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "part [", keys.begin, ", ", keys.end, "): wanted multiples of ",
        kKeyBlock, " in ascending order up to the number of keys, ", all));
  }
  return Accumulator(MakeImpl(plan, {}, keys));
}

int64_t Accumulator::Bytes(const AttentionPlan& plan, int threads,
                           int64_t sequences) {
  return plan.double_precision ? BytesAs<double>(plan, threads, sequences)
                               : BytesAs<float>(plan, threads, sequences);
}

absl::Status Accumulator::Add(const AddedKeys& keys, Executor& executor,
                              const std::atomic<bool>* cancelled) {
  return Guarded([&]() -> absl::Status {
    ATTENTION_RETURN_IF_ERROR(impl_->Check(keys));
    absl::StatusOr<std::optional<MaskOperand>> mask = impl_->MaskFor(keys);
    ATTENTION_RETURN_IF_ERROR(mask.status());
    return RunJob(impl_->FlopsOf(keys), executor, cancelled,
                  [&](int threads, auto done) {
                    return impl_->MakeAdd(keys, *std::move(mask), threads,
                                          std::move(done));
                  });
  });
}

absl::StatusOr<std::unique_ptr<Executor::Job>> Accumulator::MakeAddJob(
    const AddedKeys& keys, int threads,
    absl::AnyInvocable<void(absl::Status)> done) {
  ATTENTION_RETURN_IF_ERROR(impl_->Check(keys));
  absl::StatusOr<std::optional<MaskOperand>> mask = impl_->MaskFor(keys);
  ATTENTION_RETURN_IF_ERROR(mask.status());
  return std::unique_ptr<Executor::Job>(
      impl_->MakeAdd(keys, *std::move(mask), threads, std::move(done)));
}

absl::Status Accumulator::Merge(const Partial& partial, Executor& executor,
                                const std::atomic<bool>* cancelled) {
  return Guarded([&]() -> absl::Status {
    ATTENTION_RETURN_IF_ERROR(impl_->CheckMerge(partial, impl_->type()));
    return RunJob(0, executor, cancelled, [&](int threads, auto done) {
      return impl_->MakeMerge(partial, threads, std::move(done));
    });
  });
}

absl::Status Accumulator::Finish(Executor& executor,
                                 const std::atomic<bool>* cancelled) {
  return Guarded([&]() -> absl::Status {
    ATTENTION_RETURN_IF_ERROR(impl_->CheckFinish());
    return RunJob(0, executor, cancelled, [&](int threads, auto done) {
      return impl_->MakeFinish(threads, std::move(done));
    });
  });
}

absl::StatusOr<std::unique_ptr<Executor::Job>> Accumulator::MakeFinishJob(
    int threads, absl::AnyInvocable<void(absl::Status)> done) {
  ATTENTION_RETURN_IF_ERROR(impl_->CheckFinish());
  return std::unique_ptr<Executor::Job>(
      impl_->MakeFinish(threads, std::move(done)));
}

absl::StatusOr<std::vector<Partial>> Accumulator::Export(
    Executor& executor, const std::atomic<bool>* cancelled) && {
  return Guarded([&]() -> absl::StatusOr<std::vector<Partial>> {
    ATTENTION_RETURN_IF_ERROR(impl_->CheckExport());
    std::vector<Partial> partials;
    ATTENTION_RETURN_IF_ERROR(
        RunJob(0, executor, cancelled, [&](int threads, auto done) {
          return impl_->MakeExport(&partials, threads, std::move(done));
        }));
    return partials;
  });
}

absl::StatusOr<std::unique_ptr<Executor::Job>> Accumulator::MakeExportJob(
    std::vector<Partial>* partials, int threads,
    absl::AnyInvocable<void(absl::Status)> done) {
  ATTENTION_RETURN_IF_ERROR(impl_->CheckExport());
  return std::unique_ptr<Executor::Job>(
      impl_->MakeExport(partials, threads, std::move(done)));
}

int64_t Accumulator::finished_queries() const {
  return impl_->finished_queries();
}

}  // namespace attention
