// What a call that is inside tells admission, and asks of it.
#include <utility>

#include "absl/time/clock.h"
#include "server/admission/refusals.h"
#include "server/admission/state.h"

namespace attention::server {
namespace {

// Of its own time only this part is sure.
constexpr double kSurePart = 0.5;

}  // namespace

Admission::Ticket& Admission::Ticket::operator=(Ticket&& other) noexcept {
  if (this == &other) return *this;
  Release();
  admission_ = std::exchange(other.admission_, nullptr);
  entry_ = other.entry_;
  return *this;
}

absl::Status Admission::Ticket::ReadDone(int64_t bytes) {
  if (!admission_) return absl::OkStatus();
  Lock lock(admission_->mutex_);
  Entry& entry = *entry_;
  // What it held is given back.
  if (!entry.expelled.ok()) return entry.expelled;
  admission_->EndRead(entry);
  admission_->transferred_bytes_ += bytes;
  admission_->MessageDone(entry, bytes);
  const int64_t reserved =
      entry.bytes[static_cast<size_t>(MemoryKind::kRequest)];
  absl::Status status;
  if (bytes <= reserved) {
    admission_->SetBytes(entry, MemoryKind::kRequest, bytes);
    admission_->SetBytes(entry, MemoryKind::kTensors, bytes);
    // Only now is it known what a message of unknown size counts for.
    if (!ShareHolds(entry, 0)) {
      status = TenantHoldsTooMuch(*entry.request.tenant, 2 * bytes);
    }
  } else {
    status = admission_->Grow(entry, MemoryKind::kRequest, bytes);
    if (status.ok()) {
      status = admission_->Grow(entry, MemoryKind::kTensors, bytes);
    }
  }
  admission_->AdmitWaiting(lock);
  return status;
}

absl::Status Admission::Ticket::AwaitNext(absl::Time deadline) {
  if (!admission_) return absl::OkStatus();
  Lock lock(admission_->mutex_);
  Entry& entry = *entry_;
  if (!entry.expelled.ok()) return entry.expelled;
  if (admission_->draining_) return Draining();
  admission_->EndRead(entry);
  admission_->SetSeconds(entry, 0);
  entry.charged = 0;
  for (const MemoryKind kind : {MemoryKind::kRequest, MemoryKind::kTensors,
                                MemoryKind::kAnswer, MemoryKind::kScratch}) {
    admission_->SetBytes(entry, kind, 0);
  }
  entry.request.deadline = deadline;
  entry.request.bytes.reset();
  entry.awaiting = true;
  ++admission_->awaiting_calls_;
  admission_->BeginRead(entry);
  entry.upload =
      Upload::Awaited(admission_->ReceivedOn(entry.request.peer), entry.since);
  admission_->AdmitWaiting(lock);
  return absl::OkStatus();
}

absl::Status Admission::Ticket::Hold(MemoryKind kind, int64_t bytes) {
  if (!admission_) return absl::OkStatus();
  Lock lock(admission_->mutex_);
  const absl::Status status = admission_->Grow(*entry_, kind, bytes);
  if (status.ok()) admission_->AdmitWaiting(lock);
  return status;
}

// What came for this call is not progress of the others on its connection.
void Admission::MessageDone(const Entry& entry, int64_t bytes) {
  Peer& peer = entry.peer->second;
  peer.done_bytes += bytes;
  if (peer.reads.empty()) return;
  const auto received = ReceivedOn(entry.request.peer);
  if (!received) return;
  for (Entry* const other : peer.reads) other->upload.NotMine(bytes, *received);
}

// Whether a call that is about to take so many thread-seconds, at most
// `at_once` of them at a time, may do so.
absl::Status Admission::Foresee(Entry& entry, double seconds, double at_once,
                                double work) const {
  const absl::Duration ahead = TimeFor(SecondsInside(entry, at_once, 0));
  const absl::Duration end =
      TimeFor(SecondsInside(entry, at_once, kSurePart * seconds));
  const absl::Time now = absl::Now();
  const absl::Duration left = entry.request.deadline - now;
  if (ahead > settings_.max_queue) {
    return WouldWaitTooLong(ahead, settings_.max_queue);
  }
  if (end > left) return WouldTakeTooLong(ahead, TimeFor(seconds), left);
  const Tenant& tenant = *entry.request.tenant;
  const absl::Duration wait = entry.share->work.Wait(now);
  if (wait > absl::ZeroDuration()) return TenantWorksTooMuch(tenant, wait);
  entry.share->work.Take(work, tenant.max_work, now);
  return absl::OkStatus();
}

absl::Status Admission::Ticket::Expect(double seconds, double work) {
  if (!admission_) return absl::OkStatus();
  Lock lock(admission_->mutex_);
  Entry& entry = *entry_;
  admission_->SetSeconds(entry, 0);
  const absl::Status status =
      admission_->Foresee(entry, seconds, seconds, work);
  admission_->SetSeconds(entry, seconds);
  if (status.ok()) admission_->Charge(entry, seconds);
  // It may be less than was thought.
  admission_->AdmitWaiting(lock);
  return status;
}

absl::Status Admission::Ticket::ExpectStream(double seconds,
                                             double seconds_at_once,
                                             double work) {
  if (!admission_) return absl::OkStatus();
  Lock lock(admission_->mutex_);
  Entry& entry = *entry_;
  if (!entry.expelled.ok()) return entry.expelled;
  admission_->SetSeconds(entry, 0);
  const absl::Status status =
      admission_->Foresee(entry, seconds, seconds_at_once, work);
  if (status.ok()) {
    admission_->Charge(entry, seconds);
    entry.pace.emplace();
    Peer& peer = entry.peer->second;
    ++peer.streams;
    peer.stream_bytes += entry.bytes[static_cast<size_t>(MemoryKind::kRequest)];
  }
  admission_->AdmitWaiting(lock);
  return status;
}

void Admission::Ticket::AwaitMessage() {
  if (!admission_) return;
  Lock lock(admission_->mutex_);
  if (!entry_->Streaming()) return;
  entry_->pace->Await(admission_->UnfinishedOn(*entry_), absl::Now());
}

void Admission::Ticket::MessageCame(int64_t bytes) {
  if (!admission_) return;
  Lock lock(admission_->mutex_);
  admission_->transferred_bytes_ += bytes;
  if (!entry_->Streaming()) return;
  entry_->pace->Came(admission_->streams_, bytes,
                     admission_->UnfinishedOn(*entry_), absl::Now());
  admission_->MessageDone(*entry_, bytes);
}

void Admission::Ticket::Arrived(double seconds) {
  if (!admission_) return;
  Lock lock(admission_->mutex_);
  if (!entry_->Streaming()) return;
  admission_->SetSeconds(*entry_, entry_->seconds + seconds);
}

void Admission::Ticket::WorkedOff(double seconds) {
  if (!admission_) return;
  Lock lock(admission_->mutex_);
  if (!entry_->Streaming()) return;
  admission_->done_seconds_ += seconds;
  // Below nothing can only be an error of rounding.
  const double left = entry_->seconds - seconds;
  admission_->SetSeconds(*entry_, left > 1e-9 ? left : 0);
  admission_->AdmitWaiting(lock);
}

void Admission::Ticket::Answering(int64_t bytes) {
  if (!admission_) return;
  Lock lock(admission_->mutex_);
  admission_->transferred_bytes_ += bytes;
  entry_->answering_bytes = bytes;
  entry_->answering_since = absl::Now();
}

void Admission::Ticket::Sending(int64_t bytes) {
  if (!admission_) return;
  Lock lock(admission_->mutex_);
  admission_->done_seconds_ += entry_->seconds;
  ++admission_->done_calls_;
  admission_->SetSeconds(*entry_, 0);
  admission_->transferred_bytes_ += bytes;
  entry_->phase = Entry::Phase::kSending;
  entry_->since = absl::Now();
  entry_->sending_bytes = bytes;
  admission_->AdmitWaiting(lock);
}

void Admission::Ticket::Failing() {
  if (!admission_) return;
  Lock lock(admission_->mutex_);
  admission_->SetSeconds(*entry_, 0);
  if (entry_->Reading()) admission_->EndRead(*entry_);
  entry_->phase = Entry::Phase::kSending;
  entry_->since = absl::Now();
  entry_->sending_bytes = 0;
  admission_->AdmitWaiting(lock);
}

void Admission::Ticket::Leave() {
  if (!admission_) return;
  Lock lock(admission_->mutex_);
  admission_->SetSeconds(*entry_, 0);
  admission_->EndRead(*entry_);
  entry_->phase = Entry::Phase::kLeaving;
}

void Admission::Ticket::Release() {
  if (admission_) std::exchange(admission_, nullptr)->Release(entry_);
}

}  // namespace attention::server
