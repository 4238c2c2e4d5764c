#include "server/rpc/step_call.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "attention/v1/session.pb.h"
#include "base/executor.h"
#include "base/field_error.h"
#include "base/job_group.h"
#include "base/saturating.h"
#include "server/admission/cost_model.h"
#include "server/admission/refusals.h"
#include "server/rpc/admitted_call.h"
#include "server/session_error.h"
#include "server/status.h"
#include "server/step_item.h"
#include "wire/memory_meter.h"
#include "wire/message_writer.h"
#include "wire/session_request.h"

namespace attention::server {
namespace {

constexpr size_t kMaxItems = 1024;

// One message at a time: it is awaited, decoded, computed and answered before
// the next one is read. Each counts as a call: for admission, in the log and in
// metrics.
//
// Whoever has the turn, gRPC that calls back or a job that has ended, has all
// of the state below to itself.
class StepCall final : public AdmittedCall {
 public:
  StepCall(const ComputeEnvironment& environment, SessionStore& store,
           grpc::GenericCallbackServerContext* context)
      : AdmittedCall("Step", environment, context), store_(store) {}

 private:
  // Decodes the message and copies what is in it.
  class DecodeJob final : public Executor::Job {
   public:
    explicit DecodeJob(StepCall& call) : call_(call) {}
    int64_t NextStage() override { return call_.NextDecodeStage(); }
    bool RunTask(int64_t task, const Turn& /*turn*/) override {
      call_.Copy(task);
      return true;
    }
    void Done(JobEnd end) override { call_.Decoded(end); }

   private:
    StepCall& call_;
  };

  // The computations of all items as one job.
  class ComputeJob final : public JobGroup {
   public:
    ComputeJob(StepCall& call, bool submitted)
        : call_(call), submitted_(submitted) {}
    void Done(JobEnd end) override {
      JobGroup::Done(end);
      // May destroy this.
      submitted_ ? call_.ComputedThere(end) : call_.ComputedHere(end);
    }

   private:
    StepCall& call_;
    const bool submitted_;  // or run where it was made
  };

  // gRPC's side.

  void ReadFirst() override { ReadNext(); }
  std::optional<absl::Time> ReadingSince() const override {
    return std::nullopt;  // It has all the time that it likes.
  }

  void ReadNext() {
    {
      const std::lock_guard<std::recursive_mutex> lock(mutex_);
      if (ended_) return;
      writing_ = false;
      record_.BeginAgain();
      record_.answered = true;
      message_bytes_.reset();
    }
    const absl::Status status = ticket_.AwaitNext(Deadline());
    if (!status.ok()) return (void)End(status);
    ReadInto(&request_);
  }

  void OnReadDone(bool ok) override {
    HandOver();
    if (ended_) return;
    Guarded([&] {
      if (!ok) {
        // A read that fails since the stream broke may come before OnCancel().
        const bool broken = cancelled_ || context_->IsCancelled();
        return (void)End(broken ? Abandoned() : absl::OkStatus());
      }
      const absl::Status status = Came();
      if (!status.ok()) return (void)End(status);
      if (record_.request_bytes > kInlineBytes) {
        return Submit(JobSlot::kCompute, std::make_unique<DecodeJob>(*this),
                      env_.costs.TransferSeconds(record_.request_bytes));
      }
      while (const int64_t copies = NextDecodeStage()) {
        for (int64_t i = 0; i < copies; ++i) Copy(i);
      }
      Compute(/*inline_allowed=*/true);
    });
  }

  void OnWriteDone(bool ok) override {
    HandOver();
    Guarded([&] {
      if (!ok) return (void)End(Abandoned());
      response_.Clear();
      ReadNext();
    });
  }

  absl::Status Came() {
    const auto bytes = static_cast<int64_t>(request_.Length());
    {
      const std::lock_guard<std::recursive_mutex> lock(mutex_);
      record_.BeginAgain();
      record_.request_bytes = bytes;
      message_bytes_ = 0;  // traffic_ is told here.
    }
    if (absl::Status status = CheckTokenAgain(); !status.ok()) return status;
    decode_stage_ = 0;
    traffic_.Next(bytes, std::exchange(answer_bytes_, 0),
                  env_.options.max_request_bytes);
    if (bytes > env_.options.max_request_bytes) {
      return RequestTooLarge(bytes, env_.options.max_request_bytes);
    }
    return ticket_.ReadDone(bytes);
  }

  // Decoding.

  // How many pieces there are to copy; then 0.
  int64_t NextDecodeStage() {
    const absl::Time start = absl::Now();
    try {
      if (decode_stage_++ == 0) {
        Note(
            [&](CallRecord& record) { record.queue = start - record.arrival; });
        decode_started_ = start;
        status_ = Decode();
        const int64_t copies = status_.ok() ? ListCopies() : 0;
        if (copies > 0) return copies;
      }
      if (status_.ok()) status_ = Prepare();
    } catch (const std::bad_alloc&) {
      status_ = OutOfMemory();
    }
    decoded_ = absl::Now();
    Note([&](CallRecord& record) {
      record.decode = decoded_ - decode_started_;
    });
    return 0;
  }

  absl::Status Decode() {
    if (over_ || !request_.Dump(&slices_).ok()) return Abandoned();
    // As many bytes as the message has were taken with it.
    wire::MemoryMeter meter(record_.request_bytes, [this](int64_t bytes) {
      return ticket_.Hold(MemoryKind::kTensors, bytes);
    });
    auto fields =
        wire::DecodeStepRequest(slices_, env_.buffers, meter, kMaxItems);
    if (!fields.ok()) return fields.status();
    absl::Status status =
        meter.Take(static_cast<int64_t>(fields->size() * sizeof(StepItem)));
    if (!status.ok()) return status;
    for (wire::StepFields& item : *fields) items_.emplace_back(std::move(item));
    RefuseConflicts();
    const LeaseTime now = env_.options.lease_clock->Now();
    for (StepItem& item : items_) {
      if (!item.status().ok()) continue;
      const auto session =
          store_.Use(record_.tenant->name, item.id(), now, item.incarnation());
      if (!session.ok()) {
        item.Fail(SessionError(item.id(), session.status()));
        continue;
      }
      item.Begin(*session, env_.buffers, meter);
    }
    return absl::OkStatus();
  }

  // Items on the same layer are refused where one of them appends: nothing says
  // whether the others would see its tokens.
  void RefuseConflicts() {
    std::vector<StepItem*> by_layer;
    by_layer.reserve(items_.size());
    for (StepItem& item : items_) by_layer.push_back(&item);
    const auto layer_of = [](const StepItem* item) {
      return std::pair<absl::string_view, int64_t>(item->id(), item->layer());
    };
    std::sort(by_layer.begin(), by_layer.end(),
              [&](const StepItem* a, const StepItem* b) {
                return layer_of(a) < layer_of(b);
              });
    for (auto begin = by_layer.begin(); begin != by_layer.end();) {
      const auto end =
          std::find_if(begin, by_layer.end(), [&](const StepItem* item) {
            return layer_of(item) != layer_of(*begin);
          });
      const bool appends = std::any_of(
          begin, end, [](const StepItem* item) { return item->appends(); });
      if (appends && end - begin > 1) {
        for (auto item = begin; item != end; ++item) {
          (*item)->Fail(FieldError(
              "layer",
              "other items of this message name it too, wanted none where one "
              "of them appends"));
        }
      }
      begin = end;
    }
  }

  int64_t ListCopies() {
    copies_.clear();
    copies_.reserve(items_.size());
    int64_t count = 0;
    for (StepItem& item : items_) {
      const int64_t own = item.status().ok() ? item.copies() : 0;
      if (own == 0) continue;
      copies_.push_back({&item, count});
      count += own;
    }
    return count;
  }

  void Copy(int64_t number) {
    const auto after = std::upper_bound(
        copies_.begin(), copies_.end(), number,
        [](int64_t of, const Copies& copies) { return of < copies.begin; });
    const Copies& copies = *(after - 1);
    copies.item->Run(number - copies.begin);
  }

  // Everything that can be wrong with an item, or is too much, is found here,
  // and memory for the answers is taken.
  absl::Status Prepare() {
    copies_.clear();
    for (StepItem& item : items_) {
      if (item.status().ok()) item.Prepare(env_.options.kernel_limits());
    }
    slices_ = {};
    request_.Clear();
    if (over_) return Abandoned();
    absl::Status status = HoldMemory();
    if (status.ok()) status = Expect();
    for (StepItem& item : items_) {
      if (!item.status().ok()) continue;
      if (status.ok()) {
        item.Allocate(env_.buffers);
      } else {
        item.Fail(status);
      }
    }
    return absl::OkStatus();
  }

  absl::Status HoldMemory() {
    int64_t tensors = 0, answer = 0, held = 0;
    std::vector<const AttentionPlan*> plans;
    plans.reserve(items_.size());
    for (const StepItem& item : items_) {
      if (!item.status().ok()) continue;
      tensors = SaturatingAdd(tensors, item.tensor_bytes());
      answer = SaturatingAdd(answer, item.answer_bytes());
      held = SaturatingAdd(held, item.held_bytes());
      if (item.plan() != nullptr) plans.push_back(item.plan());
    }
    if (answer > env_.options.max_response_bytes) {
      return AnswerTooLarge(answer, env_.options.max_response_bytes);
    }
    absl::Status status = ticket_.Hold(MemoryKind::kRequest, 0);
    if (status.ok()) status = ticket_.Hold(MemoryKind::kTensors, tensors);
    if (status.ok()) status = ticket_.Hold(MemoryKind::kAnswer, held);
    if (status.ok()) {
      status = ticket_.Hold(MemoryKind::kScratch,
                            WorkingBytes(plans, env_.executor.threads()));
    }
    return status;
  }

  absl::Status Expect() {
    flops_ = work_ = seconds_ = 0;
    work_by_class_ = {};
    for (const StepItem& item : items_) {
      const AttentionPlan* plan = item.plan();
      if (!item.status().ok() || plan == nullptr) continue;
      const WorkClass work_class = WorkClassOf(*plan);
      flops_ += plan->flops;
      work_ += plan->work;
      work_by_class_[static_cast<size_t>(work_class)] += plan->work;
      seconds_ += env_.costs.ComputeSeconds(work_class, plan->work);
    }
    Note([&](CallRecord& record) { record.predicted_seconds = seconds_; });
    return ticket_.Expect(
        seconds_ + env_.costs.TransferSeconds(record_.request_bytes), work_);
  }

  void Decoded(JobEnd end) {
    {
      const std::unique_ptr<Executor::Job> job = TakeJob(JobSlot::kCompute);
      Guarded([&] {
        if (end != JobEnd::kDone) return Stop(Abandoned());
        Compute(/*inline_allowed=*/false);
      });
    }
    JobEnded();
  }

  // The layers are free for others before the client hears of it.
  void Stop(const absl::Status& status) {
    items_.clear();
    End(status);
  }

  // Computing.

  void Compute(bool inline_allowed) {
    if (!status_.ok()) return Stop(status_);
    if (over_) return Stop(Abandoned());
    const bool here = inline_allowed && TakesLittle(flops_, work_);
    auto job = std::make_unique<ComputeJob>(*this, /*submitted=*/!here);
    const auto items =
        std::count_if(items_.begin(), items_.end(), [](const StepItem& item) {
          return item.status().ok() && item.plan() != nullptr;
        });
    // Where there are many items their keys need not be cut.
    const auto threads =
        here ? 1
             : std::max<int64_t>(
                   1, env_.executor.threads() / std::max<int64_t>(1, items));
    for (StepItem& item : items_) {
      if (!item.status().ok() || item.plan() == nullptr) continue;
      job->Add(item.MakeJob(static_cast<int>(threads)));
    }
    computing_since_ = absl::Now();
    Note([&](CallRecord& record) {
      record.encode = computing_since_ - decoded_;
    });
    if (here) return Executor::RunHere(job.get(), &over_);
    Submit(JobSlot::kCompute, std::move(job), seconds_);
  }

  void ComputedHere(JobEnd end) {
    Guarded([&] { Computed(end, 0); });
  }

  void ComputedThere(JobEnd end) {
    {
      const std::unique_ptr<Executor::Job> job = TakeJob(JobSlot::kCompute);
      Guarded([&] { Computed(end, job->used_seconds()); });
    }
    JobEnded();
  }

  void Computed(JobEnd end, double used_seconds) {
    const absl::Time now = absl::Now();
    Note([&](CallRecord& record) {
      record.compute = now - computing_since_;
      record.used_seconds = used_seconds;
    });
    if (end != JobEnd::kDone || over_) return Stop(Abandoned());
    if (used_seconds > 0) TellCosts(used_seconds);
    Answer(now);
  }

  // What each class took is not known: as much as was foretold, in proportion.
  void TellCosts(double used_seconds) {
    for (size_t i = 0; i < kWorkClasses; ++i) {
      const double work = work_by_class_[i];
      if (work == 0) continue;
      const auto work_class = static_cast<WorkClass>(i);
      const double foretold = env_.costs.ComputeSeconds(work_class, work);
      env_.costs.RecordCompute(work_class, work,
                               used_seconds * foretold / seconds_);
    }
  }

  // Answering.

  void Answer(absl::Time start) {
    wire::MessageWriter response;
    for (StepItem& item : items_) {
      if (item.status().ok()) item.Publish();
      response.Message(v1::StepResponse::kResultsFieldNumber, item.Result());
    }
    Note([&](CallRecord& record) { record.encode += absl::Now() - start; });
    response.Message(v1::StepResponse::kTimingFieldNumber, record_.Timing());
    items_.clear();
    const grpc::ByteBuffer message = std::move(response).Finish();
    static_cast<void>(ticket_.Hold(MemoryKind::kTensors, 0));
    static_cast<void>(ticket_.Hold(MemoryKind::kScratch, 0));
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    if (ended_) return;
    response_ = message;
    const auto bytes = static_cast<int64_t>(response_.Length());
    record_.response_bytes = answer_bytes_ = bytes;
    env_.costs.RecordCall(
        record_.request_bytes,
        seconds_ + env_.costs.TransferSeconds(record_.request_bytes + bytes));
    ticket_.Sending(bytes);
    record_.End(absl::OkStatus(), env_.log, env_.log_limiter, env_.metrics);
    record_.answered = true;
    writing_ = true;
    HandOver();
    StartWrite(&response_);
  }

  // The client has no more to ask.
  void TellSuccess() override {
    // Nothing but the status is on its way.
    ticket_.Failing();
  }
  void SendAnswer() override { SendError(grpc::Status::OK); }
  void SendError(const grpc::Status& status) override {
    if (writing_ || answer_bytes_ <= kLargeAnswer) return Finish(status);
    Hold();
    FinishOnceTaken(status);
  }

  // Of one item: those from number `begin` on.
  struct Copies {
    StepItem* item;
    int64_t begin;
  };

  SessionStore& store_;
  grpc::ByteBuffer request_;
  grpc::ByteBuffer response_;
  int64_t answer_bytes_ = 0;  // of the last answer

  // Of the message that is worked on.
  int decode_stage_ = 0;
  absl::Status status_;
  absl::Time decode_started_, decoded_, computing_since_;
  std::vector<grpc::Slice> slices_;
  std::deque<StepItem> items_;  // they do not move
  std::vector<Copies> copies_;
  // As foretold.
  double flops_ = 0, work_ = 0, seconds_ = 0;
  std::array<double, kWorkClasses> work_by_class_{};
};

}  // namespace

grpc::ServerGenericBidiReactor* StartStepCall(
    const ComputeEnvironment& environment, SessionStore& store,
    grpc::GenericCallbackServerContext* context) {
  auto* call = new StepCall(environment, store, context);
  call->Start();
  return call;
}

}  // namespace attention::server
