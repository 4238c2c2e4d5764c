#include "server/rpc/compute_call.h"

#include <atomic>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "grpc/support/time.h"
#include "grpcpp/alarm.h"
#include "kernel/attention.h"
#include "server/admission/refusals.h"
#include "server/convert.h"
#include "server/logging.h"
#include "server/rpc/call_end.h"
#include "server/rpc/call_headers.h"
#include "server/rpc/call_record.h"
#include "server/rpc/call_traffic.h"
#include "server/status.h"
#include "server/wire/request_decoder.h"
#include "server/wire/response_encoder.h"

namespace attention::server {
namespace {

constexpr char kMethod[] = "ComputeAttention";

// Calls with no more bytes and work than this take well under a millisecond and
// are answered on gRPC's thread: handing them over would cost more.
constexpr int64_t kInlineBytes = int64_t{64} << 10;
constexpr double kInlineFlops = 4e6;
// Rows without keys are no flops, but work (AttentionPlan::work).
constexpr double kInlineWork = 2e7;
// What gRPC and this file take for every call, beside its headers.
constexpr int64_t kCallBytes = int64_t{16} << 10;

// Smaller answers are in the client's hands as soon as they are sent.
constexpr int64_t kLargeAnswer = int64_t{64} << 10;
// Between two looks at whether a client has read its answer.
constexpr absl::Duration kReadLook = absl::Milliseconds(50);
// Another call of the client may keep it from being silent.
constexpr int kMostReadLooks = 20;

// A call may be touched by gRPC, by the thread that works on it and by
// Admission at the same time. So it counts who may still touch it and deletes
// itself when nobody does, and only the first End() counts.
class ComputeCall final : public grpc::ServerGenericBidiReactor,
                          public Admission::Entrant {
 public:
  ComputeCall(const ComputeEnvironment& environment,
              grpc::GenericCallbackServerContext* context)
      : env_(environment),
        context_(context),
        header_bytes_(HeaderBytes(context->client_metadata())),
        traffic_(environment.connections, context->peer(), header_bytes_) {}

  void Start() {
    Guarded([&] {
      const CallHeaders& headers = context_->client_metadata();
      record_.caller = CallerIds(headers);
      const absl::Status status =
          CheckHeaders(headers, env_.options.max_header_bytes);
      if (!status.ok()) return (void)End(status);
      Hold();  // Until Admitted() or Refused().
      try {
        auto tenant = env_.authenticator.Check(context_->client_metadata());
        if (!tenant.ok()) return Refused(tenant.status());
        record_.tenant = *std::move(tenant);
        const absl::Status allowed = MayCompute(*record_.tenant);
        if (!allowed.ok()) return Refused(allowed);
        env_.admission.Enter(this, {.bytes = AnnouncedBytes(),
                                    .deadline = Deadline(),
                                    .peer = context_->peer(),
                                    .header_bytes = header_bytes_ + kCallBytes,
                                    .tenant = record_.tenant});
      } catch (const std::bad_alloc&) {
        Drop();  // Neither will come.
        throw;
      }
    });
    HandOver();
  }

  // Admission's side.

  void Admitted(Admission::Ticket ticket) override {
    {
      const std::lock_guard<std::recursive_mutex> lock(end_mutex_);
      if (!ended_) {
        ticket_ = std::move(ticket);
        record_.wait = absl::Now() - record_.arrival;
        traffic_.Read(
            AnnouncedBytes().value_or(env_.options.max_request_bytes));
        ReadInto(&request_);
      }
    }
    Drop();
  }
  void Refused(absl::Status status) override {
    record_.wait = absl::Now() - record_.arrival;
    End(status);
    Drop();
  }
  void Expel(absl::Status status) override {
    const std::lock_guard<std::recursive_mutex> lock(end_mutex_);
    // Not record_, which another thread may be writing to.
    CallRecord record(kMethod);
    record.tenant = record_.tenant;
    record.wait = absl::Now() - record_.arrival;
    try {
      record.caller = record_.caller;
    } catch (const std::bad_alloc&) {  // NOLINT(bugprone-empty-catch)
      // That the call ends matters more than whose it was.
    }
    if (ended_.exchange(true)) {
      if (!done_) context_->TryCancel();
      return;
    }
    FinishWith(status, record);
  }
  void Hold() override { holders_.fetch_add(1, std::memory_order_relaxed); }
  void Drop() override {
    if (holders_.fetch_sub(1, std::memory_order_acq_rel) == 1) delete this;
  }

 private:
  // A stage of the work as a job of the executor: first the message is decoded,
  // then what it asks for is computed. Copying payloads comes in pieces, so
  // that a large message holds up nobody.
  class DecodeJob final : public Executor::Job {
   public:
    explicit DecodeJob(ComputeCall& call) : call_(call) {}
    int64_t NextStage() override { return call_.NextDecodeStage(); }
    bool RunTask(int64_t task, const Turn& /*turn*/) override {
      call_.kernel_request_.copies[task].Run();
      return true;
    }
    void Done(JobEnd end) override { call_.Decoded(end); }

   private:
    ComputeCall& call_;
  };

  // gRPC's side.

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
        return ReadInto(&surplus_);
      }
      if (ok) return (void)End(WrongNumberOfMessages("more than one"));
      Received();
    });
  }

  // Of a large answer.
  void OnWriteDone(bool /*ok*/) override {
    HandOver();
    Hold();
    FinishOnceRead(std::nullopt);
  }

  void OnCancel() override {
    HandOver();
    given_up_.store(absl::Now() < Deadline(), std::memory_order_relaxed);
    cancelled_.store(true, std::memory_order_relaxed);
    if (env_.admission.Withdraw(this)) {
      End(Abandoned());
      Drop();
    }
    {
      std::lock_guard<std::mutex> lock(job_mutex_);
      if (job_) env_.executor.Cancel(job_.get());
    }
    HandOver();
  }

  void OnDone() override {
    HandOver();
    {
      const std::lock_guard<std::recursive_mutex> lock(end_mutex_);
      done_ = true;
    }
    traffic_.End({.message_bytes = message_bytes_,
                  .response_bytes = record_.response_bytes,
                  .cancelled = given_up_});
    // The answer has been sent, or nobody wants it any more.
    ticket_.Release();
    Drop();
  }

  // Between what is done before gRPC is called and what follows when it calls
  // back. It orders the two itself, but ThreadSanitizer does not see into it.
  void HandOver() { handovers_.fetch_add(1, std::memory_order_acq_rel); }

  // The call's own side.

  std::optional<int64_t> AnnouncedBytes() const {
    const auto& headers = context_->client_metadata();
    const auto found = headers.find(kRequestBytesHeader);
    int64_t bytes;
    if (found == headers.end() ||
        !absl::SimpleAtoi(
            absl::string_view(found->second.data(), found->second.size()),
            &bytes) ||
        bytes < 0) {
      return std::nullopt;
    }
    return bytes;
  }

  // Unless Expel() has ended the call, after which nothing may be started.
  void ReadInto(grpc::ByteBuffer* message) {
    const std::lock_guard<std::recursive_mutex> lock(end_mutex_);
    if (ended_) return;
    HandOver();
    StartRead(message);
  }

  // The client's deadline, or the server's own for those who have none.
  absl::Time Deadline() const {
    // Not deadline(), which overflows at those that are far away.
    const gpr_timespec raw =
        gpr_convert_clock_type(context_->raw_deadline(), GPR_CLOCK_REALTIME);
    const absl::Time none = record_.arrival + absl::Hours(24 * 365);
    const absl::Time given =
        absl::FromUnixSeconds(raw.tv_sec) + absl::Nanoseconds(raw.tv_nsec);
    return given < none ? given
                        : record_.arrival + env_.options.default_deadline;
  }

  void Received() {
    const absl::Time now = absl::Now();
    record_.receive = now - record_.arrival - record_.wait;
    received_ = now;
    record_.request_bytes = static_cast<int64_t>(request_.Length());
    message_bytes_ = record_.request_bytes;
    if (record_.request_bytes > env_.options.max_request_bytes) {
      return (void)End(RequestTooLarge(record_.request_bytes,
                                       env_.options.max_request_bytes));
    }
    absl::Status status = ticket_.ReadDone(record_.request_bytes);
    if (!status.ok()) return (void)End(status);
    if (record_.request_bytes <= kInlineBytes) {
      while (const int64_t tasks = NextDecodeStage()) {
        for (int64_t i = 0; i < tasks; ++i) kernel_request_.copies[i].Run();
      }
      return Planned(/*inline_allowed=*/true);
    }
    Submit(std::make_unique<DecodeJob>(*this),
           env_.costs.TransferSeconds(record_.request_bytes));
  }

  // Hands the call to the executor, whose Done() lets go of it.
  void Submit(std::unique_ptr<Executor::Job> job, double seconds) {
    Hold();
    std::lock_guard<std::mutex> lock(job_mutex_);
    job_ = std::move(job);
    try {
      env_.executor.Submit(job_.get(), {.seconds = seconds,
                                        .tenant = record_.tenant->id,
                                        .weight = record_.tenant->weight,
                                        .deadline = Deadline(),
                                        .cancelled = &cancelled_});
    } catch (...) {
      job_.reset();
      holders_.fetch_sub(1, std::memory_order_relaxed);
      throw;
    }
  }

  // The job of which Done() is running; it is destroyed with the result.
  std::unique_ptr<Executor::Job> TakeJob() {
    std::lock_guard<std::mutex> lock(job_mutex_);
    return std::move(job_);
  }

  // Finds the tensors in the message, then plans. Returns how many pieces there
  // are to copy in between.
  int64_t NextDecodeStage() {
    const absl::Time start = absl::Now();
    try {
      if (decode_stage_++ == 0) {
        record_.queue = start - received_;
        status_ = FindTensors();
        if (status_.ok() && !kernel_request_.copies.empty()) {
          record_.decode += absl::Now() - start;
          return static_cast<int64_t>(kernel_request_.copies.size());
        }
      }
      if (status_.ok() && !plan_) status_ = Plan();
    } catch (const std::bad_alloc&) {
      status_ = OutOfMemory();
    }
    decoded_ = absl::Now();
    record_.decode = decoded_ - received_ - record_.queue;
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
    auto kernel_request = ToKernel(*std::move(fields), env_.buffers, meter);
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
    encoder_.emplace(*plan_, kernel_request_.float_values);
    DescribeShapes();
    absl::Status status = HoldMemory();
    if (!status.ok()) return status;
    record_.predicted_seconds =
        env_.costs.ComputeSeconds(WorkClassOf(), plan_->work);
    return ticket_.Expect(record_.predicted_seconds +
                              env_.costs.TransferSeconds(record_.request_bytes +
                                                         encoder_->bytes()),
                          plan_->work);
  }

  void DescribeShapes() {
    if (!env_.log.should_log(spdlog::level::info)) return;
    const AttentionInputs& inputs = kernel_request_.inputs;
    record_.details =
        absl::StrCat(" query=", Quoted(ToString(inputs.query.shape)),
                     " key=", Quoted(ToString(inputs.key.shape)),
                     " value=", Quoted(ToString(inputs.value.shape)));
  }

  WorkClass WorkClassOf() const {
    if (plan_->double_precision) return WorkClass::kDouble;
    return plan_->fast_math ? WorkClass::kFast : WorkClass::kFloat;
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
    const std::unique_ptr<Executor::Job> job = TakeJob();
    Guarded([&] {
      if (end != JobEnd::kDone) return (void)End(Abandoned());
      Planned(/*inline_allowed=*/false);
    });
    Drop();
  }

  void Planned(bool inline_allowed) {
    if (!status_.ok()) return (void)End(status_);
    if (cancelled_) return (void)End(Abandoned());
    const AttentionOutputs outputs = encoder_->Allocate(env_.buffers);
    const absl::Time allocated = absl::Now();
    record_.encode = allocated - decoded_;
    decoded_ = allocated;
    const bool small = plan_->flops <= kInlineFlops &&
                       plan_->work <= kInlineWork &&
                       encoder_->bytes() <= kInlineBytes;
    if (small && inline_allowed) {
      const auto job =
          MakeAttentionJob(*plan_, outputs, 1, [this](absl::Status status) {
            record_.compute = absl::Now() - decoded_;
            Computed(std::move(status));
          });
      return Executor::RunHere(job.get(), &cancelled_);
    }
    Submit(MakeAttentionJob(*plan_, outputs, env_.executor.threads(),
                            [this](absl::Status status) {
                              const auto job = TakeJob();
                              FinishJob(*job);
                              Guarded([&] { Computed(std::move(status)); });
                              Drop();
                            }),
           record_.predicted_seconds);
  }

  // What the executor knows of the computation that has ended.
  void FinishJob(const Executor::Job& job) {
    record_.used_seconds = job.used_seconds();
    record_.compute = absl::Now() - decoded_;
    env_.costs.RecordCompute(WorkClassOf(), plan_->work, record_.used_seconds);
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
    record_.encode += absl::Now() - start;
    response_ = encoder_->Finish(record_.Timing());
    record_.response_bytes = static_cast<int64_t>(response_.Length());
    static_cast<void>(ticket_.Hold(MemoryKind::kTensors, 0));
    static_cast<void>(ticket_.Hold(MemoryKind::kScratch, 0));
    End(absl::OkStatus());
  }

  absl::Status Abandoned() const {
    if (absl::Now() >= Deadline()) {
      return absl::DeadlineExceededError(
          "the deadline passed; the work was abandoned");
    }
    return absl::CancelledError(
        "the call was cancelled; the work was abandoned");
  }

  // What fails for want of memory ends the call, and nothing else.
  template <typename Step>
  void Guarded(const Step& step) {
    try {
      step();
    } catch (const std::bad_alloc&) {
      End(OutOfMemory());
    }
  }

  // False if the call has been ended before. gRPC may delete the call from here
  // on, but for those who hold it.
  bool End(const absl::Status& status) {
    if (ended_.exchange(true)) return false;
    if (status.ok()) {
      env_.costs.RecordCall(
          record_.request_bytes,
          record_.predicted_seconds +
              env_.costs.TransferSeconds(record_.request_bytes +
                                         record_.response_bytes));
      ticket_.Sending(record_.response_bytes);
    } else {
      ticket_.Failing();
    }
    FinishWith(status, record_);
    return true;
  }

  void FinishWith(const absl::Status& status, const CallRecord& record) {
    const grpc::Status result = EndCall(status, record, env_, *context_);
    HandOver();
    if (!status.ok()) return Finish(result);
    if (record.response_bytes > kLargeAnswer) return StartWrite(&response_);
    StartWriteAndFinish(&response_, grpc::WriteOptions(), grpc::Status::OK);
  }

  // When clients have been told to leave, gRPC closes the connection with its
  // last call. If the client has not read all by then, its next frame finds the
  // connection closed, and TCP throws away what was still on its way. So the
  // call ends once everything is delivered and the client, which sends frames
  // while it reads, has been silent from one look to the next.
  void FinishOnceRead(std::optional<int64_t> bytes_before) {
    HandOver();
    if (env_.leaving && !cancelled_ && read_looks_ < kMostReadLooks) {
      const auto delivery = traffic_.Delivered();
      if (delivery && !(delivery->all_delivered &&
                        delivery->bytes_received == bytes_before)) {
        // A client that takes nothing is given up by Admission.
        read_looks_ += delivery->all_delivered;
        try {
          return LookAgain(delivery->bytes_received);
        } catch (const std::bad_alloc&) {  // NOLINT(bugprone-empty-catch)
          // Nothing throws once the alarm is there.
        }
      }
    }
    HandOver();
    Finish(grpc::Status::OK);
    Drop();
  }

  void LookAgain(int64_t bytes_before) {
    // A new one: the last may be what called.
    read_look_.emplace();
    HandOver();
    read_look_->Set(
        absl::ToChronoTime(absl::Now() + kReadLook),
        [this, bytes_before](bool) { FinishOnceRead(bytes_before); });
  }

  const ComputeEnvironment& env_;
  grpc::GenericCallbackServerContext* const context_;
  CallRecord record_{kMethod};
  const int64_t header_bytes_;
  CallTraffic traffic_;
  std::optional<int64_t> message_bytes_;  // once it is read
  grpc::ByteBuffer request_;
  bool has_message_ = false;
  grpc::ByteBuffer surplus_;
  grpc::ByteBuffer response_;

  // gRPC, until OnDone(); then each job and each function of Admission.
  std::atomic<int> holders_{1};
  std::atomic<int> handovers_{0};
  std::atomic<bool> ended_{false};
  // Held by those who are not gRPC while they use what it takes away once the
  // call is done. It may call back from within.
  std::recursive_mutex end_mutex_;
  bool done_ = false;  // guarded by end_mutex_
  std::atomic<bool> cancelled_{false};
  std::atomic<bool> given_up_{false};  // cancelled before its deadline
  Admission::Ticket ticket_;

  absl::Time received_, decoded_;
  int decode_stage_ = 0;
  absl::Status status_;
  std::vector<grpc::Slice> slices_;
  KernelRequest kernel_request_;
  std::optional<AttentionPlan> plan_;
  std::optional<wire::ResponseEncoder> encoder_;

  std::optional<grpc::Alarm> read_look_;
  int read_looks_ = 0;  // with everything delivered

  std::mutex job_mutex_;
  std::unique_ptr<Executor::Job> job_;  // guarded by job_mutex_
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
