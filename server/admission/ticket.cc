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
  // What came for this call is not progress of the others on its connection.
  const auto received = entry.peer->second.reading > 0
                            ? admission_->ReceivedOn(entry.request.peer)
                            : std::nullopt;
  if (received) {
    for (Entry& other : admission_->inside_) {
      if (other.peer == entry.peer && other.Reading()) {
        other.upload.NotMine(bytes, *received);
      }
    }
  }
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

absl::Status Admission::Ticket::Hold(MemoryKind kind, int64_t bytes) {
  if (!admission_) return absl::OkStatus();
  Lock lock(admission_->mutex_);
  const absl::Status status = admission_->Grow(*entry_, kind, bytes);
  if (status.ok()) admission_->AdmitWaiting(lock);
  return status;
}

absl::Status Admission::Ticket::Expect(double seconds, double work) {
  if (!admission_) return absl::OkStatus();
  Lock lock(admission_->mutex_);
  Entry& entry = *entry_;
  admission_->SetSeconds(entry, 0);
  const absl::Duration ahead =
      admission_->TimeFor(admission_->SecondsInside(entry, seconds, 0));
  const absl::Duration end = admission_->TimeFor(
      admission_->SecondsInside(entry, seconds, kSurePart * seconds));
  const absl::Time now = absl::Now();
  const absl::Duration left = entry.request.deadline - now;
  admission_->SetSeconds(entry, seconds);
  // It may be less than was thought.
  admission_->AdmitWaiting(lock);
  if (ahead > admission_->settings_.max_queue) {
    return WouldWaitTooLong(ahead, admission_->settings_.max_queue);
  }
  if (end > left) {
    return WouldTakeTooLong(ahead, admission_->TimeFor(seconds), left);
  }
  const Tenant& tenant = *entry.request.tenant;
  const absl::Duration wait = entry.share->work.Wait(now);
  if (wait > absl::ZeroDuration()) return TenantWorksTooMuch(tenant, wait);
  entry.share->work.Take(work, tenant.max_work, now);
  admission_->Charge(entry, seconds);
  return absl::OkStatus();
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

void Admission::Ticket::Release() {
  if (admission_) std::exchange(admission_, nullptr)->Release(entry_);
}

}  // namespace attention::server
