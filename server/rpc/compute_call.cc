#include "server/rpc/compute_call.h"

#include <memory>
#include <new>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "kernel/attention.h"
#include "server/admission/refusals.h"
#include "server/convert.h"
#include "server/response_encoder.h"
#include "server/rpc/admitted_call.h"
#include "server/rpc/call_end.h"
#include "server/status.h"
#include "wire/compute_request.h"

namespace attention::server {
namespace {

constexpr char kMethod[] = "ComputeAttention";

// Calls with no more than kInlineBytes and this work take well under a
// millisecond and are answered on gRPC's thread: handing them over would cost
// more.
constexpr double kInlineFlops = 4e6;
// Rows without keys are no flops, but work (AttentionPlan::work).
constexpr double kInlineWork = 2e7;

class ComputeCall final : public AdmittedCall {
 public:
  ComputeCall(const ComputeEnvironment& environment,
              grpc::GenericCallbackServerContext* context)
      : AdmittedCall(kMethod, environment, context) {}

 private:
  // A stage of the work as a job of the executor: first the message is decoded,
  // then what it asks for is computed. Copying payloads comes in pieces, so
  // that a large message holds up nobody.
  class DecodeJob final : public Executor::Job {
   public:
    explicit DecodeJob(ComputeCall& call) : call_(call) {}
    int64_t NextStage() override {
      const int64_t begun = std::exchange(call_.handed_over_copies_, 0);
      return begun > 0 ? begun : call_.NextDecodeStage();
    }
    bool RunTask(int64_t task, const Turn& /*turn*/) override {
      call_.kernel_request_.copies[task].Run();
      return true;
    }
    void Done(JobEnd end) override { call_.Decoded(end); }

   private:
    ComputeCall& call_;
  };

  void ReadFirst() override {
    read_since_ = absl::Now();
    ReadInto(&request_);
  }
  std::optional<absl::Time> ReadingSince() const override {
    return read_since_;
  }

  void OnReadDone(bool ok) override {
    HandOver();
    if (ended_) return;
    Guarded([&] {
      // A read that fails since the stream broke may come before OnCancel().
      if (!ok && (cancelled_ || context_->IsCancelled())) {
        return (void)End(Abandoned());
      }
      if (!has_message_) {
        if (!ok) return (void)End(WrongNumberOfMessages("none"));
        has_message_ = true;
        // Until this one fails the call is still being read: only then is it
        // known that there is no second message.
        return (void)ReadInto(&surplus_);
      }
      if (ok) return (void)End(WrongNumberOfMessages("more than one"));
      Received();
    });
  }

  // Of a large answer.
  void OnWriteDone(bool /*ok*/) override {
    HandOver();
    Hold();
    FinishOnceTaken();
  }

  void Received() {
    received_ = absl::Now();
    Note([&](CallRecord& record) {
      record.receive = received_ - record.arrival - record.wait;
      record.request_bytes = static_cast<int64_t>(request_.Length());
      message_bytes_ = record.request_bytes;
      read_since_.reset();
    });
    if (record_.request_bytes > env_.options.max_request_bytes) {
      return (void)End(RequestTooLarge(record_.request_bytes,
                                       env_.options.max_request_bytes));
    }
    absl::Status status = ticket_.ReadDone(record_.request_bytes);
    if (!status.ok()) return (void)End(status);
    int64_t bytes = record_.request_bytes;
    if (bytes <= kInlineBytes) {
      const int64_t copies = NextDecodeStage();
      // Masks in shared memory may be of any size.
      bytes = BytesToCopy();
      if (bytes <= kInlineBytes) {
        for (int64_t i = 0; i < copies; ++i) kernel_request_.copies[i].Run();
        if (copies > 0) NextDecodeStage();
        return Planned(/*inline_allowed=*/true);
      }
      handed_over_copies_ = copies;
    }
    Submit(JobSlot::kCompute, std::make_unique<DecodeJob>(*this),
           env_.costs.TransferSeconds(bytes));
  }

  int64_t BytesToCopy() const {
    size_t bytes = 0;
    for (const PayloadCopy& copy : kernel_request_.copies) bytes += copy.bytes;
    return static_cast<int64_t>(bytes);
  }

  // Finds the tensors in the message, then plans. Returns how many pieces there
  // are to copy in between.
  int64_t NextDecodeStage() {
    const absl::Time start = absl::Now();
    try {
      if (decode_stage_++ == 0) {
        Note([&](CallRecord& record) { record.queue = start - received_; });
        status_ = FindTensors();
        if (status_.ok() && !kernel_request_.copies.empty()) {
          Note(
              [&](CallRecord& record) { record.decode = absl::Now() - start; });
          return static_cast<int64_t>(kernel_request_.copies.size());
        }
      }
      if (status_.ok() && !plan_) status_ = Plan();
    } catch (const std::bad_alloc&) {
      status_ = OutOfMemory();
    }
    decoded_ = absl::Now();
    Note([&](CallRecord& record) {
      record.decode = decoded_ - received_ - record.queue;
    });
    return 0;
  }

  absl::Status FindTensors() {
    if (cancelled_) return Abandoned();
    // Nothing else leaves a message that has come without bytes.
    if (!request_.Dump(&slices_).ok()) return Abandoned();
    // As many bytes as the message has were taken with it.
    wire::MemoryMeter meter(record_.request_bytes, [this](int64_t bytes) {
      return ticket_.Hold(MemoryKind::kTensors, bytes);
    });
    // A batch of B sequences has B + 1 starts.
    auto fields =
        wire::DecodeRequest(slices_, env_.buffers, meter,
                            static_cast<size_t>(env_.options.max_batch) + 1);
    if (!fields.ok()) return fields.status();
    auto kernel_request =
        ToKernel(*std::move(fields), env_.buffers, meter,
                 {.table = &env_.regions, .tenant = record_.tenant->id});
    if (!kernel_request.ok()) return kernel_request.status();
    kernel_request_ = *std::move(kernel_request);
    return absl::OkStatus();
  }

  // Everything that can be wrong with a request is found here, before memory
  // for the answer is taken.
  absl::Status Plan() {
    kernel_request_.copies.clear();
    slices_ = {};
    request_.Clear();
    auto plan = PlanAttention(kernel_request_.inputs, kernel_request_.options,
                              env_.options.kernel_limits());
    if (!plan.ok()) return plan.status();
    plan_ = *std::move(plan);
    absl::Status status = CheckOutputs(kernel_request_.outputs, *plan_);
    if (!status.ok()) return status;
    encoder_.emplace(*plan_, kernel_request_.float_values,
                     std::exchange(kernel_request_.outputs, {}));
    NoteShapes(kernel_request_.inputs);
    status = HoldMemory();
    if (!status.ok()) return status;
    const double seconds =
        env_.costs.ComputeSeconds(WorkClassOf(*plan_), plan_->work);
    Note([&](CallRecord& record) { record.predicted_seconds = seconds; });
    return ticket_.Expect(
        seconds + env_.costs.TransferSeconds(record_.request_bytes +
                                             encoder_->bytes()),
        plan_->work);
  }

  absl::Status HoldMemory() {
    const int64_t bytes = encoder_->bytes();
    if (bytes > env_.options.max_response_bytes) {
      return AnswerTooLarge(bytes, env_.options.max_response_bytes);
    }
    absl::Status status = ticket_.Hold(MemoryKind::kRequest, 0);
    if (status.ok()) {
      status = ticket_.Hold(MemoryKind::kTensors, kernel_request_.bytes);
    }
    if (status.ok()) {
      status = ticket_.Hold(MemoryKind::kAnswer, encoder_->held_bytes());
    }
    if (status.ok()) {
      status = ticket_.Hold(MemoryKind::kScratch,
                            WorkingBytes(*plan_, env_.executor.threads()));
    }
    return status;
  }

  void Decoded(JobEnd end) {
    {
      const std::unique_ptr<Executor::Job> job = TakeJob(JobSlot::kCompute);
      Guarded([&] {
        if (end != JobEnd::kDone) return (void)End(Abandoned());
        Planned(/*inline_allowed=*/false);
      });
    }
    JobEnded();
  }

  void Planned(bool inline_allowed) {
    if (!status_.ok()) return (void)End(status_);
    if (cancelled_) return (void)End(Abandoned());
    const AttentionOutputs outputs = encoder_->Allocate(env_.buffers);
    const absl::Time allocated = absl::Now();
    Note([&](CallRecord& record) { record.encode = allocated - decoded_; });
    decoded_ = allocated;
    const bool small = plan_->flops <= kInlineFlops &&
                       plan_->work <= kInlineWork &&
                       encoder_->bytes() <= kInlineBytes;
    if (small && inline_allowed) {
      const auto job =
          MakeAttentionJob(*plan_, outputs, 1, [this](absl::Status status) {
            Note([&](CallRecord& record) {
              record.compute = absl::Now() - decoded_;
            });
            Computed(std::move(status));
          });
      return Executor::RunHere(job.get(), &over_);
    }
    Submit(JobSlot::kCompute,
           MakeAttentionJob(
               *plan_, outputs, env_.executor.threads(),
               [this](absl::Status status) { Done(std::move(status)); }),
           record_.predicted_seconds);
  }

  void Done(absl::Status status) {
    {
      const auto job = TakeJob(JobSlot::kCompute);
      FinishJob(*job);
      Guarded([&] { Computed(std::move(status)); });
    }
    JobEnded();
  }

  // What the executor knows of the computation that has ended.
  void FinishJob(const Executor::Job& job) {
    const double seconds = job.used_seconds();
    Note([&](CallRecord& record) {
      record.used_seconds = seconds;
      record.compute = absl::Now() - decoded_;
    });
    env_.costs.RecordCompute(WorkClassOf(*plan_), plan_->work, seconds);
  }

  void Computed(absl::Status status) {
    if (absl::IsCancelled(status) || absl::IsDeadlineExceeded(status)) {
      status = Abandoned();
    } else if (absl::IsResourceExhausted(status)) {
      status = OutOfMemory();
    }
    if (!status.ok()) return (void)End(status);
    const absl::Time start = absl::Now();
    plan_->problem.reset();
    // For the next request, while this one's answer is being sent.
    kernel_request_.payloads.clear();
    kernel_request_.regions.clear();
    Note([&](CallRecord& record) { record.encode += absl::Now() - start; });
    response_ = encoder_->Finish(record_.Timing());
    Note([&](CallRecord& record) {
      record.response_bytes = static_cast<int64_t>(response_.Length());
    });
    static_cast<void>(ticket_.Hold(MemoryKind::kTensors, 0));
    static_cast<void>(ticket_.Hold(MemoryKind::kScratch, 0));
    End(absl::OkStatus());
  }

  void TellSuccess() override {
    env_.costs.RecordCall(
        record_.request_bytes,
        record_.predicted_seconds +
            env_.costs.TransferSeconds(record_.request_bytes +
                                       record_.response_bytes));
    ticket_.Sending(record_.response_bytes);
  }

  void SendAnswer() override {
    if (record_.response_bytes > kLargeAnswer) return StartWrite(&response_);
    StartWriteAndFinish(&response_, grpc::WriteOptions(), grpc::Status::OK);
  }

  grpc::ByteBuffer request_;
  bool has_message_ = false;
  grpc::ByteBuffer surplus_;
  grpc::ByteBuffer response_;

  std::optional<absl::Time> read_since_;  // guarded by mutex_
  absl::Time received_, decoded_;
  int decode_stage_ = 0;
  // Of the first stage, which was on gRPC's thread: to be run by a job.
  int64_t handed_over_copies_ = 0;
  absl::Status status_;
  std::vector<grpc::Slice> slices_;
  KernelRequest kernel_request_;
  std::optional<AttentionPlan> plan_;
  std::optional<ResponseEncoder> encoder_;
};

}  // namespace

grpc::ServerGenericBidiReactor* StartComputeCall(
    const ComputeEnvironment& environment,
    grpc::GenericCallbackServerContext* context) {
  auto* call = new ComputeCall(environment, context);
  call->Start();
  return call;
}

}  // namespace attention::server
