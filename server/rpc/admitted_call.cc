#include "server/rpc/admitted_call.h"

#include <algorithm>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "grpc/support/time.h"
#include "server/admission/refusals.h"
#include "server/logging.h"
#include "server/rpc/call_end.h"
#include "server/rpc/call_headers.h"
#include "server/status.h"

namespace attention::server {
namespace {

// What gRPC and the call take for every call, beside its headers.
constexpr int64_t kCallBytes = int64_t{16} << 10;

// Between two looks at whether a client has read its answer.
constexpr absl::Duration kLook = absl::Milliseconds(50);
// Another call of the client may keep it from being silent.
constexpr int kMostLooks = 20;

}  // namespace

AdmittedCall::AdmittedCall(absl::string_view method,
                           const ComputeEnvironment& environment,
                           grpc::GenericCallbackServerContext* context)
    : env_(environment),
      context_(context),
      record_(method),
      header_bytes_(HeaderBytes(context->client_metadata())),
      traffic_(environment.connections, context->peer(), header_bytes_) {}

void AdmittedCall::Start() {
  Guarded([&] {
    const CallHeaders& headers = context_->client_metadata();
    record_.caller = CallerIds(headers);
    const absl::Status status =
        CheckHeaders(headers, env_.options.max_header_bytes);
    if (!status.ok()) return (void)End(status);
    Hold();  // Until Admitted() or Refused().
    try {
      tokens_version_ = env_.authenticator.version();
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

absl::Status AdmittedCall::CheckTokenAgain() {
  const int64_t version = env_.authenticator.version();
  if (version == tokens_version_) return absl::OkStatus();
  const auto tenant = env_.authenticator.Check(context_->client_metadata());
  if (!tenant.ok()) return tenant.status();
  if ((*tenant)->name != record_.tenant->name) {
    return WithReason(Reason::kTokenUnknown,
                      absl::UnauthenticatedError(
                          "authorization: the token is another tenant's since "
                          "the stream began, wanted a new stream"));
  }
  absl::Status allowed = MayCompute(**tenant);
  if (allowed.ok()) tokens_version_ = version;
  return allowed;
}

void AdmittedCall::Admitted(Admission::Ticket ticket) {
  {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    if (!ended_) {
      admitted_ = true;
      ticket_ = std::move(ticket);
      record_.wait = absl::Now() - record_.arrival;
      traffic_.Read(AnnouncedBytes().value_or(env_.options.max_request_bytes));
      ReadFirst();
    }
  }
  Drop();
}

void AdmittedCall::Refused(absl::Status status) {
  record_.wait = absl::Now() - record_.arrival;
  End(status);
  // Who calls this holds the call until here.
  Drop();  // NOLINT(clang-analyzer-cplusplus.NewDelete)
}

void AdmittedCall::Expel(absl::Status status) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  over_ = true;
  CancelJobs();
  if (ended_.exchange(true)) {
    if (!done_) context_->TryCancel();
    return;
  }
  const absl::Time now = absl::Now();
  if (!admitted_) record_.wait = now - record_.arrival;
  if (const auto since = ReadingSince()) record_.receive += now - *since;
  FinishWith(status);
  // A status does not overtake what the client does not take. Where it takes
  // what is on its way, the status follows; else Admission comes again.
  if (writing_ && ReasonOf(status) == Reason::kSlowReader) {
    context_->TryCancel();
  }
}

void AdmittedCall::OnCancel() {
  HandOver();
  given_up_.store(absl::Now() < Deadline(), std::memory_order_relaxed);
  cancelled_.store(true, std::memory_order_relaxed);
  over_ = true;
  if (env_.admission.Withdraw(this)) {
    End(Abandoned());
    Drop();
  }
  CancelJobs();
  HandOver();
}

void AdmittedCall::OnDone() {
  HandOver();
  {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    done_ = true;
    traffic_.End({.message_bytes = message_bytes_,
                  .response_bytes = record_.response_bytes,
                  .cancelled = given_up_});
  }
  // The answer has been sent, or nobody wants it any more.
  LetGo();
  Drop();
}

// What was charged for the call's memory is given back after the memory is, for
// others are let in with it: by ~Ticket(). From the last user on Admission must
// not hold the call any more, which may be destroyed at once.
void AdmittedCall::LetGo() {
  if (users_.fetch_sub(1, std::memory_order_acq_rel) == 1) ticket_.Leave();
}

WorkClass AdmittedCall::WorkClassOf(const AttentionPlan& plan) {
  if (plan.double_precision) return WorkClass::kDouble;
  return plan.fast_math ? WorkClass::kFast : WorkClass::kFloat;
}

void AdmittedCall::NoteShapes(const AttentionInputs& inputs,
                              std::optional<int64_t> tokens) {
  Note([&](CallRecord& record) {
    record.shapes = {inputs.query.shape, inputs.key.shape, inputs.value.shape,
                     tokens};
  });
}

std::optional<int64_t> AdmittedCall::BytesInHeader(const char* name) const {
  const auto& headers = context_->client_metadata();
  const auto found = headers.find(name);
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

std::optional<int64_t> AdmittedCall::AnnouncedBytes() const {
  return BytesInHeader(kRequestBytesHeader);
}

int64_t AdmittedCall::MaxAnswerBytes() const {
  const int64_t most = env_.options.max_response_bytes;
  return std::min(most, BytesInHeader(kMaxAnswerBytesHeader).value_or(most));
}

absl::Time AdmittedCall::Deadline() const {
  // Not deadline(), which overflows at those that are far away.
  const gpr_timespec raw =
      gpr_convert_clock_type(context_->raw_deadline(), GPR_CLOCK_REALTIME);
  const absl::Time none = record_.arrival + absl::Hours(24 * 365);
  const absl::Time given =
      absl::FromUnixSeconds(raw.tv_sec) + absl::Nanoseconds(raw.tv_nsec);
  return given < none ? given : record_.arrival + env_.options.default_deadline;
}

absl::Status AdmittedCall::Abandoned() const {
  if (absl::Now() >= Deadline()) {
    return absl::DeadlineExceededError(
        "the deadline passed; the work was abandoned");
  }
  return absl::CancelledError("the call was cancelled; the work was abandoned");
}

absl::Status AdmittedCall::OutOfMemory() {
  return RetryLater(Reason::kOutOfMemory,
                    "the server could not allocate memory for the call",
                    absl::Seconds(1));
}

bool AdmittedCall::ReadInto(grpc::ByteBuffer* message) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  if (ended_) return false;
  HandOver();
  StartRead(message);
  return true;
}

void AdmittedCall::Submit(JobSlot slot, std::unique_ptr<Executor::Job> job,
                          double seconds) {
  Hold();
  users_.fetch_add(1, std::memory_order_relaxed);
  std::lock_guard<std::mutex> lock(job_mutex_);
  auto& place = jobs_[static_cast<size_t>(slot)];
  place = std::move(job);
  try {
    env_.executor.Submit(place.get(), {.seconds = seconds,
                                       .tenant = record_.tenant->id,
                                       .weight = record_.tenant->weight,
                                       .deadline = Deadline(),
                                       .cancelled = &over_});
  } catch (...) {
    place.reset();
    users_.fetch_sub(1, std::memory_order_relaxed);
    holders_.fetch_sub(1, std::memory_order_relaxed);
    throw;
  }
}

std::unique_ptr<Executor::Job> AdmittedCall::TakeJob(JobSlot slot) {
  std::lock_guard<std::mutex> lock(job_mutex_);
  return std::move(jobs_[static_cast<size_t>(slot)]);
}

void AdmittedCall::JobEnded() {
  LetGo();
  Drop();
}

void AdmittedCall::CancelJobs() {
  std::lock_guard<std::mutex> lock(job_mutex_);
  for (const auto& job : jobs_) {
    if (job) env_.executor.Cancel(job.get());
  }
}

bool AdmittedCall::End(const absl::Status& status) {
  Hold();  // gRPC may let go of it while the lock is held.
  bool first;
  {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    first = !ended_.exchange(true);
    if (first) {
      if (status.ok()) {
        TellSuccess();
      } else {
        ticket_.Failing();
        over_ = true;
        CancelJobs();
      }
      FinishWith(status);
    }
  }
  Drop();
  return first;
}

void AdmittedCall::EndWithoutMemory() {
  try {
    End(OutOfMemory());
  } catch (const std::bad_alloc&) {
    Hold();
    {
      const std::lock_guard<std::recursive_mutex> lock(mutex_);
      over_ = true;
      CancelJobs();
      if (!ended_.exchange(true)) {
        Finish(grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, ""));
      }
    }
    Drop();
  }
}

void AdmittedCall::FinishWith(const absl::Status& status) {
  const grpc::Status result = EndCall(status, record_, env_, *context_);
  HandOver();
  if (!status.ok()) return SendError(result);
  SendAnswer();
}

void AdmittedCall::FinishOnceTaken(const grpc::Status& status) {
  status_once_taken_ = status;
  LookWhetherTaken(std::nullopt);
}

// When clients have been told to leave, gRPC closes the connection with its
// last call. If the client has not read all by then, its next frame finds the
// connection closed, and TCP throws away what was still on its way. So the
// call ends once everything is delivered and the client, which sends frames
// while it reads, has been silent from one look to the next.
void AdmittedCall::LookWhetherTaken(std::optional<int64_t> bytes_before) {
  HandOver();
  if (env_.leaving && !cancelled_ && looks_ < kMostLooks) {
    const auto delivery = traffic_.Delivered();
    if (delivery && !(delivery->all_delivered &&
                      delivery->bytes_received == bytes_before)) {
      // A client that takes nothing is given up by Admission.
      looks_ += delivery->all_delivered;
      try {
        return LookAgain(delivery->bytes_received);
      } catch (const std::bad_alloc&) {  // NOLINT(bugprone-empty-catch)
        // Nothing throws once the alarm is there.
      }
    }
  }
  HandOver();
  Finish(status_once_taken_);
  Drop();
}

void AdmittedCall::LookAgain(int64_t bytes_before) {
  // A new one: the last may be what called.
  look_.emplace();
  HandOver();
  look_->Set(absl::ToChronoTime(absl::Now() + kLook),
             [this, bytes_before](bool) { LookWhetherTaken(bytes_before); });
}

}  // namespace attention::server
