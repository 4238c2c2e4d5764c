#include "server/rpc/tensor_call.h"

#include <memory>
#include <new>
#include <utility>

#include "absl/time/clock.h"
#include "attention/v1/session.pb.h"
#include "server/admission/refusals.h"
#include "server/status.h"

namespace attention::server {

// A stage of the work as a job of the executor: first the message is decoded,
// then what it asks for is computed. Copying payloads comes in pieces, so that
// a large message holds up nobody.
class TensorCall::DecodeJob final : public Executor::Job {
 public:
  explicit DecodeJob(TensorCall& call) : call_(call) {}
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
  TensorCall& call_;
};

void TensorCall::Received() {
  int64_t bytes = record_.request_bytes;
  if (bytes <= kInlineBytes && DecodesLittle()) {
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

int64_t TensorCall::BytesToCopy() const {
  size_t bytes = 0;
  for (const PayloadCopy& copy : kernel_request_.copies) bytes += copy.bytes;
  return static_cast<int64_t>(bytes);
}

// Finds the tensors in the message, then plans. Returns how many pieces there
// are to copy in between.
int64_t TensorCall::NextDecodeStage() {
  const absl::Time start = absl::Now();
  try {
    if (decode_stage_++ == 0) {
      Note([&](CallRecord& record) { record.queue = start - received_; });
      status_ = FindTensors();
      if (status_.ok() && !kernel_request_.copies.empty()) {
        Note([&](CallRecord& record) { record.decode = absl::Now() - start; });
        return static_cast<int64_t>(kernel_request_.copies.size());
      }
    }
    if (status_.ok() && !plan_) status_ = Prepare();
  } catch (const std::bad_alloc&) {
    status_ = OutOfMemory();
  }
  decoded_ = absl::Now();
  Note([&](CallRecord& record) {
    record.decode = decoded_ - received_ - record.queue;
  });
  return 0;
}

absl::Status TensorCall::FindTensors() {
  if (cancelled_) return Abandoned();
  // Nothing else leaves a message that has come without bytes.
  if (!request_.Dump(&slices_).ok()) return Abandoned();
  // As many bytes as the message has were taken with it.
  wire::MemoryMeter meter(record_.request_bytes, [this](int64_t bytes) {
    return ticket_.Hold(MemoryKind::kTensors, bytes);
  });
  auto kernel_request = Decode(slices_, meter);
  if (!kernel_request.ok()) return kernel_request.status();
  kernel_request_ = *std::move(kernel_request);
  return absl::OkStatus();
}

absl::StatusOr<AttentionPlan> TensorCall::Plan(const KernelRequest& request) {
  return PlanAttention(request.inputs, request.options,
                       env_.options.kernel_limits());
}

absl::Status TensorCall::Prepare() {
  kernel_request_.copies.clear();
  slices_ = {};
  request_.Clear();
  auto plan = Plan(kernel_request_);
  if (!plan.ok()) return plan.status();
  plan_ = *std::move(plan);
  absl::Status status;
  if (shard_ == nullptr) {
    status = CheckOutputs(kernel_request_.outputs, *plan_);
    if (!status.ok()) return status;
    encoder_.emplace(*plan_, kernel_request_.float_values,
                     std::exchange(kernel_request_.outputs, {}));
  }
  NoteShapes(kernel_request_.inputs);
  status = HoldMemory();
  if (status.ok() && shard_ != nullptr) status = shard_->Begin();
  if (!status.ok()) return status;
  const double seconds =
      env_.costs.ComputeSeconds(WorkClassOf(*plan_), plan_->work);
  Note([&](CallRecord& record) { record.predicted_seconds = seconds; });
  const int64_t moved = record_.request_bytes + WrittenBytes();
  return ticket_.Expect(seconds + env_.costs.TransferSeconds(moved),
                        plan_->work);
}

int64_t TensorCall::WrittenBytes() const {
  return encoder_ ? encoder_->written_bytes() : shard_->answer_bytes();
}

absl::Status TensorCall::HoldMemory() {
  const int64_t bytes = encoder_ ? encoder_->bytes() : shard_->answer_bytes();
  if (const int64_t most = MaxAnswerBytes(); bytes > most) {
    return AnswerTooLarge(bytes, most);
  }
  absl::Status status = ticket_.Hold(MemoryKind::kRequest, 0);
  if (status.ok()) {
    status = ticket_.Hold(MemoryKind::kTensors, kernel_request_.bytes);
  }
  if (status.ok()) {
    status = ticket_.Hold(MemoryKind::kAnswer,
                          encoder_ ? encoder_->held_bytes() : bytes);
  }
  if (status.ok()) {
    status =
        ticket_.Hold(MemoryKind::kScratch,
                     encoder_ ? WorkingBytes(*plan_, env_.executor.threads())
                              : shard_->working_bytes());
  }
  return status;
}

void TensorCall::Decoded(JobEnd end) {
  {
    const std::unique_ptr<Executor::Job> job = TakeJob(JobSlot::kCompute);
    Guarded([&] {
      if (end != JobEnd::kDone) return (void)End(Abandoned());
      Planned(/*inline_allowed=*/false);
    });
  }
  JobEnded();
}

void TensorCall::Planned(bool inline_allowed) {
  if (!status_.ok()) return Fail(status_);
  if (cancelled_) return (void)End(Abandoned());
  AttentionOutputs outputs;
  if (encoder_) outputs = encoder_->Allocate(env_.buffers);
  const absl::Time allocated = absl::Now();
  Note([&](CallRecord& record) { record.encode = allocated - decoded_; });
  decoded_ = allocated;
  const bool small =
      TakesLittle(plan_->flops, plan_->work) && WrittenBytes() <= kInlineBytes;
  if (small && inline_allowed) {
    const auto job = MakeJob(outputs, 1, [this](absl::Status status) {
      Note(
          [&](CallRecord& record) { record.compute = absl::Now() - decoded_; });
      Computed(std::move(status));
    });
    return Executor::RunHere(job.get(), &over_);
  }
  Submit(JobSlot::kCompute,
         MakeJob(outputs, env_.executor.threads(),
                 [this](absl::Status status) { Done(std::move(status)); }),
         record_.predicted_seconds);
}

std::unique_ptr<Executor::Job> TensorCall::MakeJob(
    const AttentionOutputs& outputs, int threads,
    absl::AnyInvocable<void(absl::Status)> done) {
  if (shard_ != nullptr) return shard_->MakeJob(std::move(done));
  return MakeAttentionJob(*plan_, outputs, threads, std::move(done));
}

void TensorCall::Done(absl::Status status) {
  {
    const auto job = TakeJob(JobSlot::kCompute);
    FinishJob(*job);
    Guarded([&] { Computed(std::move(status)); });
  }
  JobEnded();
}

// What the executor knows of the computation that has ended.
void TensorCall::FinishJob(const Executor::Job& job) {
  const double seconds = job.used_seconds();
  Note([&](CallRecord& record) {
    record.used_seconds = seconds;
    record.compute = absl::Now() - decoded_;
  });
  env_.costs.RecordCompute(WorkClassOf(*plan_), plan_->work, seconds);
}

void TensorCall::Computed(absl::Status status) {
  if (absl::IsCancelled(status) || absl::IsDeadlineExceeded(status)) {
    status = Abandoned();
  } else if (absl::IsResourceExhausted(status)) {
    status = OutOfMemory();
  }
  if (!status.ok()) return Fail(status);
  const absl::Time start = absl::Now();
  plan_->problem.reset();
  // For the next request, while this one's answer is being sent.
  kernel_request_.payloads.clear();
  kernel_request_.regions.clear();
  Note([&](CallRecord& record) { record.encode += absl::Now() - start; });
  absl::StatusOr<wire::MessageWriter> answer = EncodeAnswer();
  if (!answer.ok()) return Fail(answer.status());
  AddFields(*answer);
  static_cast<void>(ticket_.Hold(MemoryKind::kTensors, 0));
  static_cast<void>(ticket_.Hold(MemoryKind::kScratch, 0));
  Answer(std::move(*answer).Finish());
}

absl::StatusOr<wire::MessageWriter> TensorCall::Encode(
    ResponseEncoder& encoder) {
  return encoder.Finish(record_.Timing());
}

absl::StatusOr<wire::MessageWriter> TensorCall::EncodeAnswer() {
  if (encoder_) return Encode(*encoder_);
  wire::MessageWriter answer;
  answer.Message(v1::AttendResponse::kTimingFieldNumber, record_.Timing());
  shard_->Write(answer);
  shard_.reset();
  return answer;
}

void TensorCall::ForgetMessage() {
  request_.Clear();
  slices_ = {};
  kernel_request_ = {};
  plan_.reset();
  encoder_.reset();
  shard_.reset();
  status_ = absl::OkStatus();
  decode_stage_ = 0;
  handed_over_copies_ = 0;
}

}  // namespace attention::server
