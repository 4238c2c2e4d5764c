#include "server/rpc/stream_call.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/saturating.h"
#include "kernel/accumulator.h"
#include "kernel/attention.h"
#include "server/admission/refusals.h"
#include "server/answer_rows.h"
#include "server/convert.h"
#include "server/rpc/admitted_call.h"
#include "server/rpc/stream_intake.h"
#include "server/status.h"
#include "server/stream_format.h"
#include "sessions/page_set.h"
#include "wire/compute_request.h"
#include "wire/memory_meter.h"
#include "wire/stream_request.h"

namespace attention::server {
namespace {

constexpr char kMethod[] = "StreamAttention";

// What stands around the tensors of a chunk.
constexpr int64_t kAroundTensors = 256;
// A message may have so many bytes, and so many for each byte of the whole
// stream's tensors: float_values that are not packed have more than a quarter
// more, and what is unknown is skipped.
constexpr int64_t kLeastMessage = int64_t{64} << 10;
constexpr int64_t kMessagePerStream = 2;
// One comes, one is copied.
constexpr int64_t kMessages = 2;
// One page set is filled while the kernel computes on the other.
constexpr size_t kPageSets = 2;

// The phases overlap: the client's messages are read and copied while the
// kernel computes and rows are sent. Whoever ends a step of one of them changes
// the state under mutex_ and lets Advance() begin what can begin.
//
// Invariants, with mutex_ held:
//   1. At most one of each is under way: a read (reading_), a copy (copying_),
//      a computation (computing_), a write (writing_).
//   2. A read is posted only while intake_ wants a message: nothing waits to be
//      decoded, and the chunk before has room in the page set that is filled.
class StreamCall final : public AdmittedCall {
 public:
  StreamCall(const ComputeEnvironment& environment,
             grpc::GenericCallbackServerContext* context)
      : AdmittedCall(kMethod, environment, context) {}

 private:
  // Decodes the header and makes everything ready, or copies a chunk's tokens.
  class StageJob final : public Executor::Job {
   public:
    using Stage = int64_t (StreamCall::*)();
    using Task = void (StreamCall::*)(int64_t);
    using End = void (StreamCall::*)(JobEnd);

    StageJob(StreamCall& call, Stage stage, Task task, End end)
        : call_(call), stage_(stage), task_(task), end_(end) {}
    int64_t NextStage() override { return (call_.*stage_)(); }
    bool RunTask(int64_t task, const Turn& /*turn*/) override {
      (call_.*task_)(task);
      return true;
    }
    void Done(JobEnd end) override { (call_.*end_)(end); }

   private:
    StreamCall& call_;
    const Stage stage_;
    const Task task_;
    const End end_;
  };

  // gRPC's side.

  void ReadFirst() override { PostRead(); }
  std::optional<absl::Time> ReadingSince() const override {
    return reading_ ? std::optional(read_since_) : std::nullopt;
  }

  void OnReadDone(bool ok) override {
    HandOver();
    Step([&] { return Came(ok); });
  }

  void OnWriteDone(bool ok) override {
    HandOver();
    if (last_write_) {
      Hold();
      return FinishOnceTaken();
    }
    Step(
        [&] {
          ticket_.Answering(0);
          outgoing_.Clear();
          return ok ? absl::OkStatus() : Abandoned();
        },
        &writing_);
  }

  // The call's own side.

  // Runs a step that changes the state, unless the call has ended, and lets the
  // phases that wait for it go on. An error ends the call. `under_way` is
  // over with the step, also where the call has ended.
  template <typename Change>
  void Step(const Change& change, bool* under_way = nullptr) {
    bool write = false;
    {
      // Until the call has ended, for want of memory too: nobody else may meet
      // the state that a step has left half way.
      const std::lock_guard<std::recursive_mutex> lock(mutex_);
      Guarded([&] {
        if (under_way != nullptr) *under_way = false;
        if (ended_) return;
        absl::Status status = change();
        if (status.ok()) status = Advance();
        if (!status.ok()) return (void)End(status);
        write = ClaimWrite();
      });
    }
    if (write) Guarded([&] { WriteNext(); });
  }

  // A message, or the end of the stream.
  absl::Status Came(bool ok) {
    const absl::Time now = absl::Now();
    reading_ = false;
    record_.receive += now - read_since_;
    // A read that fails since the stream broke may come before OnCancel().
    if (!ok && (cancelled_ || context_->IsCancelled())) return Abandoned();
    const int64_t bytes = ok ? static_cast<int64_t>(incoming_.Length()) : 0;
    record_.request_bytes += bytes;
    message_bytes_ = bytes;
    if (!header_came_) return HeaderCame(ok, bytes, now);
    ticket_.MessageCame(bytes);
    traffic_.Next(bytes, std::exchange(answered_bytes_, 0),
                  ok ? message_limit_ : 0);
    message_bytes_ = 0;  // All is told.
    if (!ok) {
      end_came_ = true;
      return absl::OkStatus();
    }
    if (bytes > chunk_limit()) return ChunkTooLarge(bytes, chunk_limit());
    if (bytes > message_limit_) {
      return MessageOfStreamTooLarge(bytes, message_limit_, StreamBytes());
    }
    intake_->Add(incoming_);
    incoming_ = grpc::ByteBuffer();
    return absl::OkStatus();
  }

  absl::Status HeaderCame(bool ok, int64_t bytes, absl::Time now) {
    if (!ok) {
      return absl::InvalidArgumentError(
          "got no message, wanted a header and chunks");
    }
    header_came_ = true;
    received_ = now;
    if (bytes > env_.options.max_request_bytes) {
      return RequestTooLarge(bytes, env_.options.max_request_bytes);
    }
    // No more may come until it is accepted.
    traffic_.Next(bytes, 0, 0);
    message_bytes_.reset();
    const absl::Status status = ticket_.ReadDone(bytes);
    if (!status.ok()) return status;
    computing_ = true;
    Submit(JobSlot::kCompute,
           std::make_unique<StageJob>(*this, &StreamCall::NextHeaderStage,
                                      &StreamCall::CopyQuery,
                                      &StreamCall::HeaderDone),
           env_.costs.TransferSeconds(bytes));
    return absl::OkStatus();
  }

  int64_t chunk_limit() const { return env_.options.max_chunk_bytes; }

  void PostRead() {
    if (ended_) return;
    reading_ = true;
    read_since_ = absl::Now();
    message_bytes_.reset();
    ticket_.AwaitMessage();
    ReadInto(&incoming_);
  }

  // The header, as a job of the executor: nothing else is under way.

  int64_t NextHeaderStage() {
    const absl::Time start = absl::Now();
    try {
      if (header_stage_++ == 0) {
        started_ = start;
        Note([&](CallRecord& record) { record.queue = start - received_; });
        status_ = DecodeHeader();
        if (status_.ok() && !request_.copies.empty()) {
          return static_cast<int64_t>(request_.copies.size());
        }
      }
      if (status_.ok() && !accumulator_) status_ = Prepare();
    } catch (const std::bad_alloc&) {
      status_ = OutOfMemory();
    }
    Note([&](CallRecord& record) { record.decode = absl::Now() - started_; });
    return 0;
  }

  void CopyQuery(int64_t task) { request_.copies[task].Run(); }

  void HeaderDone(JobEnd end) {
    {
      TakeJob(JobSlot::kCompute).reset();
      Step(
          [&] {
            header_done_ = true;
            if (end != JobEnd::kDone) return Abandoned();
            if (status_.ok()) traffic_.Read(message_limit_);
            return status_;
          },
          &computing_);
    }
    JobEnded();
  }

  absl::Status DecodeHeader() {
    if (over_ || !incoming_.Dump(&slices_).ok()) return Abandoned();
    // As many bytes as the message has were taken with it.
    wire::MemoryMeter meter(record_.request_bytes, [this](int64_t bytes) {
      return ticket_.Hold(MemoryKind::kTensors, bytes);
    });
    auto fields =
        wire::DecodeStreamRequest(slices_, env_.buffers, meter, MostNumbers());
    if (!fields.ok()) return fields.status();
    if (std::holds_alternative<wire::ChunkFields>(*fields)) {
      return FieldError("chunk", "came first, wanted the header before it");
    }
    if (std::holds_alternative<std::monostate>(*fields)) {
      return absl::InvalidArgumentError(
          "got an empty message, wanted the header");
    }
    auto request = ToStreamedKernel(
        std::get<wire::RequestFields>(*std::move(fields)), env_.buffers, meter);
    if (!request.ok()) return InField("header", request.status());
    request_ = *std::move(request);
    return CheckOptions();
  }

  size_t MostNumbers() const {
    // A batch of B sequences has B + 1 starts.
    return static_cast<size_t>(env_.options.max_batch) + 1;
  }

  absl::Status CheckOptions() const {
    const auto refuse = [](absl::string_view option) {
      return absl::UnimplementedError(
          absl::StrCat("header.options.", option,
                       ": not with StreamAttention, which never has all keys"));
    };
    if (request_.options.return_scores != Scores::kNone) {
      return refuse("return_scores");
    }
    if (request_.options.return_present) return refuse("return_present");
    return absl::OkStatus();
  }

  // Everything that can be wrong with a header, or is too much, is found here,
  // and everything the stream will need is allocated.
  absl::Status Prepare() {
    request_.copies.clear();
    slices_ = {};
    incoming_.Clear();
    auto plan = PlanAttention(request_.inputs, request_.options,
                              env_.options.kernel_limits());
    if (!plan.ok()) return InField("header", plan.status());
    plan_ = *std::move(plan);
    format_.emplace(request_.inputs, request_.options);
    answer_.emplace(*plan_, format_->length_axis(), request_.float_values);
    rows_ = answer_->rows();
    NoteShapes(request_.inputs, format_->tokens());
    absl::Status status = HoldMemory();
    if (status.ok()) status = Expect();
    if (!status.ok()) return status;
    intake_.emplace(*format_, env_.buffers, page_sets(), message_limit_,
                    MostNumbers());
    auto accumulator =
        Accumulator::Create(*plan_, answer_->Allocate(env_.buffers));
    if (!accumulator.ok()) return InField("header", accumulator.status());
    accumulator_ = *std::move(accumulator);
    return absl::OkStatus();
  }

  const KeyValueGeometry& geometry() const { return format_->geometry(); }
  int64_t page_sets() const {
    if (format_->tokens() == 0) return 0;
    return PageSet::HoldsAll(geometry()) ? 1 : kPageSets;
  }

  // Bytes of keys, values and mask in all; saturates.
  int64_t StreamBytes() const {
    return SaturatingMultiply(format_->tokens(), geometry().TokenBytes());
  }

  // Bytes of the largest message after the header.
  int64_t MessageLimit() const {
    return std::min(
        chunk_limit(),
        SaturatingAdd(SaturatingMultiply(StreamBytes(), kMessagePerStream),
                      kLeastMessage));
  }

  absl::Status HoldMemory() {
    const int64_t token_bytes = geometry().TokenBytes();
    if (format_->tokens() > 0 && token_bytes > chunk_limit() - kAroundTensors) {
      return TokenTooLarge(token_bytes, chunk_limit());
    }
    if (answer_->message_bytes() > env_.options.max_response_bytes) {
      return AnswerTooLarge(answer_->message_bytes(),
                            env_.options.max_response_bytes);
    }
    message_limit_ = MessageLimit();
    const int64_t set_bytes = SaturatingAdd(PageSet::Bytes(geometry()),
                                            PageSet::TableBytes(geometry()));
    const int64_t tensor_bytes =
        SaturatingAdd(SaturatingAdd(request_.bytes, message_limit_),
                      SaturatingMultiply(page_sets(), set_bytes));
    absl::Status status =
        ticket_.Hold(MemoryKind::kRequest, kMessages * message_limit_);
    if (status.ok()) status = ticket_.Hold(MemoryKind::kTensors, tensor_bytes);
    if (status.ok()) {
      status = ticket_.Hold(MemoryKind::kAnswer, answer_->held_bytes());
    }
    if (status.ok()) {
      const int threads = env_.executor.threads();
      // Each thread is at one, and one may go on in the next page set.
      status = ticket_.Hold(MemoryKind::kScratch,
                            Accumulator::Bytes(*plan_, threads, threads + 1));
    }
    return status;
  }

  absl::Status Expect() {
    compute_seconds_ =
        env_.costs.ComputeSeconds(WorkClassOf(*plan_), plan_->work);
    Note([&](CallRecord& record) {
      record.predicted_seconds = compute_seconds_;
    });
    const double seconds =
        compute_seconds_ + env_.costs.TransferSeconds(StreamBytes());
    seconds_per_token_ =
        seconds / static_cast<double>(std::max<int64_t>(1, format_->tokens()));
    const double in_sets =
        static_cast<double>(page_sets()) *
        static_cast<double>(PageSet::Bytes(geometry())) /
        static_cast<double>(std::max<int64_t>(1, geometry().TokenBytes()));
    return ticket_.ExpectStream(
        seconds, std::min(seconds, in_sets * seconds_per_token_), plan_->work);
  }

  // Begins whatever can begin. With mutex_ held.
  absl::Status Advance() {
    if (!header_done_) return absl::OkStatus();
    absl::Status status = TakeChunks();
    if (!status.ok()) return status;
    if (end_came_ && intake_->empty() &&
        intake_->position() < format_->tokens()) {
      return absl::InvalidArgumentError(
          absl::StrCat("the stream ended after ", intake_->position(),
                       " tokens, wanted ", format_->tokens()));
    }
    status = Compute();
    if (!status.ok()) return status;
    MaybeRead();
    return absl::OkStatus();
  }

  void MaybeRead() {
    if (!reading_ && !end_came_ && intake_->WantsMessage()) PostRead();
  }

  // Chunks.

  absl::Status TakeChunks() {
    while (!copying_ && intake_->BeginRound()) {
      if (intake_->bytes() > kInlineBytes) {
        copying_ = true;
        Submit(JobSlot::kCopy,
               std::make_unique<StageJob>(*this, &StreamCall::NextCopyStage,
                                          &StreamCall::CopyTokens,
                                          &StreamCall::CopyDone),
               env_.costs.TransferSeconds(intake_->bytes()));
        return absl::OkStatus();
      }
      while (const int64_t tasks = NextCopyStage()) {
        for (int64_t i = 0; i < tasks; ++i) CopyTokens(i);
      }
      const absl::Status status = Copied();
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }

  // A job, or on gRPC's thread with mutex_ held.
  int64_t NextCopyStage() {
    if (!copy_started_) copy_started_ = absl::Now();
    try {
      const int64_t tasks = intake_->NextStage();
      if (tasks > 0 && intake_->EndsChunk()) {
        // There is room for all of it: the next one may come meanwhile.
        const std::lock_guard<std::recursive_mutex> lock(mutex_);
        intake_->SetChunkFits();
        if (copying_ && !ended_) MaybeRead();
      }
      return tasks;
    } catch (const std::bad_alloc&) {
      copy_failed_ = true;
    }
    return 0;
  }

  void CopyTokens(int64_t task) { intake_->Copy(task); }

  void CopyDone(JobEnd end) {
    {
      TakeJob(JobSlot::kCopy).reset();
      Step([&] { return end == JobEnd::kDone ? Copied() : Abandoned(); },
           &copying_);
    }
    JobEnded();
  }

  absl::Status Copied() {
    record_.decode += absl::Now() - *std::exchange(copy_started_, std::nullopt);
    if (copy_failed_) return OutOfMemory();
    const auto full = intake_->EndRound();
    if (!full.ok()) return full.status();
    if (*full != nullptr) ticket_.Arrived(SecondsOf(**full));
    return absl::OkStatus();
  }

  // Computing.

  double SecondsOf(const PageSet& pages) const {
    return seconds_per_token_ *
           static_cast<double>(pages.end() - pages.begin());
  }

  // What is added was checked as it came: no client is to blame.
  static absl::Status Broken(const absl::Status& status) {
    return absl::InternalError(
        absl::StrCat("the kernel refused a stream's keys: ", status.message()));
  }

  absl::Status Compute() {
    if (computing_ || computed_) return absl::OkStatus();
    const int threads = env_.executor.threads();
    const auto done = [this](const absl::Status& status) {
      ComputeDone(status);
    };
    absl::StatusOr<std::unique_ptr<Executor::Job>> job;
    double seconds = 0;
    if (intake_->has_full_set()) {
      pages_ = intake_->TakeFullSet();
      seconds = SecondsOf(*pages_);
      job =
          accumulator_->MakeAddJob({.views = pages_->views(),
                                    .first_sequence = pages_->first_sequence(),
                                    .mask = format_->MaskOf(*pages_),
                                    // Byte for byte as it was copied.
                                    .mask_is_checked = true},
                                   threads, done);
    } else if (added_ == format_->tokens()) {
      job = accumulator_->MakeFinishJob(threads, done);
    } else {
      return absl::OkStatus();
    }
    if (!job.ok()) return Broken(job.status());
    computing_ = true;
    compute_started_ = absl::Now();
    Submit(JobSlot::kCompute, *std::move(job), seconds);
    return absl::OkStatus();
  }

  void ComputeDone(const absl::Status& status) {
    {
      auto job = TakeJob(JobSlot::kCompute);
      const double seconds = job->used_seconds();
      job.reset();
      Step([&] { return Computed(status, seconds); }, &computing_);
    }
    JobEnded();
  }

  absl::Status Computed(const absl::Status& status, double used_seconds) {
    record_.used_seconds += used_seconds;
    record_.compute += absl::Now() - compute_started_;
    if (absl::IsCancelled(status) || absl::IsDeadlineExceeded(status)) {
      return Abandoned();
    }
    if (absl::IsResourceExhausted(status)) return OutOfMemory();
    if (!status.ok()) return Broken(status);
    if (pages_) {
      ticket_.WorkedOff(SecondsOf(*pages_));
      added_ = pages_->end();
      finished_rows_ = accumulator_->finished_queries();
      intake_->GiveBack(std::move(pages_));
      return absl::OkStatus();
    }
    finished_rows_ = rows_;
    computed_ = true;
    env_.costs.RecordCompute(WorkClassOf(*plan_), plan_->work,
                             record_.used_seconds);
    return absl::OkStatus();
  }

  // Answering.

  // Whether all that is left is to answer: nothing more comes.
  bool complete() const { return computed_ && end_came_ && intake_->empty(); }

  bool ClaimWrite() {
    if (writing_ || !(sent_rows_ < finished_rows_ || complete())) return false;
    return writing_ = true;
  }

  // The next rows, by the one who claimed it: nobody else touches them.
  void WriteNext() {
    const absl::Time start = absl::Now();
    int64_t end = 0;
    std::optional<v1::Timing> timing;
    {
      const std::lock_guard<std::recursive_mutex> lock(mutex_);
      end = std::min(finished_rows_, sent_rows_ + answer_->rows_per_message());
      if (complete() && end == rows_) timing = Timing();
    }
    grpc::ByteBuffer message =
        answer_->Encode(sent_rows_, end, timing, env_.buffers);
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    if (ended_) return;
    sent_rows_ = end;
    outgoing_ = message;
    const auto bytes = static_cast<int64_t>(outgoing_.Length());
    record_.response_bytes += bytes;
    answered_bytes_ += bytes;
    record_.encode += absl::Now() - start;
    if (timing) return (void)End(absl::OkStatus());
    ticket_.Answering(bytes);
    HandOver();
    StartWrite(&outgoing_);
  }

  v1::Timing Timing() const {
    v1::Timing timing;
    timing.set_queue_us(absl::ToInt64Microseconds(started_ - record_.arrival));
    timing.set_decode_us(absl::ToInt64Microseconds(record_.decode));
    timing.set_compute_us(absl::ToInt64Microseconds(record_.compute));
    timing.set_encode_us(absl::ToInt64Microseconds(record_.encode));
    return timing;
  }

  void TellSuccess() override {
    ticket_.Sending(static_cast<int64_t>(outgoing_.Length()));
    last_write_ = record_.response_bytes > kLargeAnswer;
  }

  void SendAnswer() override {
    if (last_write_) return StartWrite(&outgoing_);
    StartWriteAndFinish(&outgoing_, grpc::WriteOptions(), grpc::Status::OK);
  }

  // The header, and what it asks for; unchanged once its job has ended.
  bool header_came_ = false;
  bool header_done_ = false;
  absl::Time received_, started_;
  int header_stage_ = 0;
  absl::Status status_;
  std::vector<grpc::Slice> slices_;
  KernelRequest request_;
  std::optional<AttentionPlan> plan_;
  std::optional<StreamFormat> format_;
  std::optional<AnswerRows> answer_;
  int64_t rows_ = 0;
  int64_t message_limit_ = 0;
  double compute_seconds_ = 0, seconds_per_token_ = 0;

  // All below guarded by mutex_, but for what a step has to itself.

  // Messages.
  bool reading_ = false;
  absl::Time read_since_;
  grpc::ByteBuffer incoming_;  // of the read that is posted
  bool end_came_ = false;

  // Copying.
  bool copying_ = false;
  std::optional<StreamIntake> intake_;  // has the page sets
  std::optional<absl::Time> copy_started_;
  bool copy_failed_ = false;  // for want of memory

  // Computing.
  bool computing_ = false;
  absl::Time compute_started_;
  std::optional<Accumulator> accumulator_;
  std::unique_ptr<PageSet> pages_;  // computed on
  int64_t added_ = 0;               // tokens
  bool computed_ = false;           // all rows are finished

  // Answering.
  int64_t finished_rows_ = 0;
  int64_t sent_rows_ = 0;
  int64_t answered_bytes_ = 0;  // since a message came
  grpc::ByteBuffer outgoing_;
  bool last_write_ = false;
};

}  // namespace

grpc::ServerGenericBidiReactor* StartStreamCall(
    const ComputeEnvironment& environment,
    grpc::GenericCallbackServerContext* context) {
  auto* call = new StreamCall(environment, context);
  call->Start();
  return call;
}

}  // namespace attention::server
