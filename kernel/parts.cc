#include "kernel/parts.h"

#include <algorithm>
#include <new>
#include <utility>

#include "base/job_group.h"
#include "base/saturating.h"
#include "kernel/cpu/kernel_job.h"
#include "kernel/cpu/tasks.h"
#include "kernel/plan/problem.h"

namespace attention {

struct PartsOfKeys::Part {
  KeyValueView view;
  std::unique_ptr<Accumulator> accumulator;
  // Made with the part, since it finds what is wrong; gone once it has run.
  std::unique_ptr<Executor::Job> add;
  std::vector<Partial> partials;
  absl::Status status;
};

// Some parts at a time: attends to their keys, then exports their partials.
class PartsOfKeys::PartsJob final : public KernelJob {
 public:
  PartsJob(PartsOfKeys& owner, absl::AnyInvocable<void(absl::Status)> done)
      : KernelJob(std::move(done)), owner_(owner) {}

 private:
  int64_t Next() override {
    for (;;) {
      if (group_ != nullptr) {
        if (const int64_t tasks = group_->NextStage(); tasks > 0) return tasks;
        EndGroup(JobEnd::kDone);
        TakeResults();
      }
      if (!BeginGroup()) return 0;
    }
  }

  bool Run(int64_t task, const Turn& turn) override {
    return group_->RunTask(task, turn);
  }

  void End(bool /*ok*/) override {
    if (group_ != nullptr) EndGroup(JobEnd::kCancelled);
    owner_.parts_.clear();
  }

  absl::Span<Part> Current() {
    return absl::MakeSpan(owner_.parts_).subspan(begin_, end_ - begin_);
  }

  // False: nothing is left to do.
  bool BeginGroup() {
    if (!exporting_) {
      const auto all = static_cast<int64_t>(owner_.parts_.size());
      begin_ = end_;
      end_ = std::min(begin_ + owner_.at_once_, all);
      if (begin_ == end_) return false;
    }
    auto group = std::make_unique<JobGroup>();
    for (Part& part : Current()) {
      group->Add(exporting_ ? MakeExport(part) : std::move(part.add));
    }
    group_ = std::move(group);
    return true;
  }

  std::unique_ptr<Executor::Job> MakeExport(Part& part) const {
    return part.accumulator
        ->MakeExportJob(
            &part.partials, owner_.threads_,
            [&part](const absl::Status& status) { part.status = status; })
        .value();
  }

  void EndGroup(JobEnd end) {
    group_->Done(end);
    group_.reset();
  }

  void TakeResults() {
    for (Part& part : Current()) {
      // Nothing else can go wrong by now.
      if (!part.status.ok()) throw std::bad_alloc();
      if (!exporting_) continue;
      for (Partial& partial : part.partials) {
        owner_.partials_.push_back(std::move(partial));
      }
      part = {};
    }
    exporting_ = !exporting_;
  }

  PartsOfKeys& owner_;
  // Parts [begin_, end_) are in the group, or were last.
  std::unique_ptr<JobGroup> group_;
  int64_t begin_ = 0, end_ = 0;
  bool exporting_ = false;  // the group, or the next one
};

PartsOfKeys::PartsOfKeys(int64_t at_once, int threads)
    : at_once_(at_once), threads_(threads) {}
PartsOfKeys::~PartsOfKeys() = default;

int64_t PartsOfKeys::AtOnce(const AttentionPlan& plan, int64_t parts,
                            int threads) {
  // Each has at least a task for each key/value head.
  const int64_t tasks = std::max<int64_t>(1, plan.problem->kv_heads);
  return std::clamp<int64_t>(4 * threads / tasks, 1,
                             std::max<int64_t>(1, parts));
}

absl::StatusOr<std::unique_ptr<PartsOfKeys>> PartsOfKeys::Create(
    const AttentionPlan& plan, absl::Span<const KeyPart> parts, int threads) {
  const auto count = static_cast<int64_t>(parts.size());
  std::unique_ptr<PartsOfKeys> created(
      new PartsOfKeys(AtOnce(plan, count, threads), threads));
  created->partials_.reserve(parts.size());
  // Jobs refer to their part: the list must not move.
  created->parts_.resize(parts.size());
  for (int64_t i = 0; i < count; ++i) {
    Part& part = created->parts_[i];
    part.view = parts[i].view;
    const KeyValueView& view = part.view;
    absl::StatusOr<Accumulator> accumulator =
        Accumulator::CreatePart(plan, {view.begin, view.begin + view.length});
    if (!accumulator.ok()) return accumulator.status();
    part.accumulator = std::make_unique<Accumulator>(*std::move(accumulator));
    auto add = part.accumulator->MakeAddJob(
        {.views = absl::MakeConstSpan(&view, 1), .mask = parts[i].mask},
        threads, [&part](const absl::Status& status) { part.status = status; });
    if (!add.ok()) return add.status();
    part.add = *std::move(add);
  }
  return created;
}

int64_t PartsOfKeys::Bytes(const AttentionPlan& plan, int64_t parts,
                           int threads) {
  // A copy of the problem, the job with its task list, the partial.
  constexpr int64_t kPartBytes = 4096;
  return SaturatingAdd(SaturatingMultiply(parts, kPartBytes),
                       SaturatingMultiply(AtOnce(plan, parts, threads),
                                          Accumulator::Bytes(plan, threads)));
}

int64_t PartsOfKeys::PartialBytes(const AttentionPlan& plan) {
  const Problem& problem = *plan.problem;
  const int64_t row = SaturatingMultiply(
      SaturatingAdd(problem.value_head_size, 2),
      static_cast<int64_t>(plan.double_precision ? sizeof(double)
                                                 : sizeof(float)));
  return SaturatingMultiply(NumRows(problem), row);
}

std::unique_ptr<Executor::Job> PartsOfKeys::MakeJob(
    absl::AnyInvocable<void(absl::Status)> done) {
  return std::make_unique<PartsJob>(*this, std::move(done));
}

}  // namespace attention
