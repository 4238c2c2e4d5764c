#include "server/admission/admission.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/status.h"

namespace attention::server {
namespace {

// What a call that waits may have sent already: gRPC's flow control lets a
// stream send 64 KiB before it is read (server.cc), and buffers have slack.
constexpr int64_t kWaitingBytes = int64_t{128} << 10;
// Calls that wait may hold such a part of the budget.
constexpr int64_t kWaitingPart = 4;
// What a read is charged for at first, if nobody has said how large the message
// is, and how many such reads there are at once.
constexpr int64_t kYoungBytes = int64_t{1} << 20;
constexpr int64_t kMaxYoungReads = 16;
// Calls among which a small one is looked for when the first does not fit.
constexpr int kMostPassed = 64;
// Of the budget so much, or a part of it, is for small reads alone: however
// much others upload, a small call finds room.
constexpr int64_t kSmallReserve = int64_t{64} << 20;
constexpr int64_t kSmallPart = 8;
// After so long a read is charged by how its connection behaves.
constexpr absl::Duration kYoung = absl::Milliseconds(10);
// Between two looks at a read.
constexpr absl::Duration kLook = absl::Milliseconds(5);
// The same for a slow one, and for calls that wait: there may be thousands.
constexpr absl::Duration kSlowLook = absl::Milliseconds(100);
// A connection that received less between two looks is slow: what it may still
// send until the next look is small.
constexpr int64_t kSlowBytes = int64_t{256} << 10;
// A read without progress for so long has to go if others need its memory.
constexpr absl::Duration kStalled = absl::Seconds(1);
constexpr absl::Duration kIdleTick = absl::Milliseconds(100);

// A call is let in if twice the time it will probably wait is left: what is
// foretold may be wrong, and who ends just too late has cost time for nothing.
constexpr double kWaitMargin = 2;
// Of its own time only this part is sure.
constexpr double kSurePart = 0.5;

constexpr absl::Duration kLeastDelay = absl::Milliseconds(50);
constexpr absl::Duration kMostDelay = absl::Seconds(5);

absl::Duration RetryDelayFor(absl::Duration delay) {
  return std::clamp(delay, kLeastDelay, kMostDelay);
}

// Calls by the power of two of their seconds, from 1 us on.
size_t RankOf(double seconds, size_t ranks) {
  if (!(seconds > 1e-6)) return 0;
  return std::min(ranks - 1, static_cast<size_t>(std::log2(seconds * 1e6)));
}

bool Draining(absl::Status* status) {
  *status = WithReason(Reason::kDraining,
                       absl::UnavailableError("the server is shutting down"));
  return true;
}

}  // namespace

struct Admission::Entry {
  enum class Phase : uint8_t { kWaiting, kReading, kWorking, kSending };
  // How a read of unknown size is charged.
  enum class Pace : uint8_t { kYoung, kFast, kSlow };

  Entrant* entrant = nullptr;
  Request request;
  std::array<int64_t, kMemoryKinds> bytes{};
  double seconds = 0;
  Phase phase = Phase::kWaiting;
  absl::Time since;  // of this phase
  bool expelled = false;

  // While reading. Bytes of the connection when the read began and at the last
  // look, and when it last made progress.
  Pace pace = Pace::kYoung;
  std::optional<int64_t> received_first;
  int64_t received_last = 0;
  absl::Time progress;
  absl::Time next_look;
  // The pace of the whole upload is measured from here, over stall_grace.
  absl::Time window;
  int64_t window_received = 0;
  // While sending.
  int64_t sending_bytes = 0;

  bool Announced() const { return request.bytes.has_value(); }
};

Admission::Admission(const Settings& settings, CostModel& costs)
    : settings_(settings), costs_(costs) {}

Admission::~Admission() = default;

void Admission::Enter(Entrant* entrant, const Request& request) {
  Entries entry(1);
  entry.front().entrant = entrant;
  entry.front().request = request;
  entry.front().since = absl::Now();
  absl::Status status;
  {
    Lock lock(mutex_);
    if (draining_) {
      Draining(&status);
    } else {
      status = Check(entry.front());
    }
    if (status.ok()) {
      Entry& added = entry.front();
      SetBytes(added, MemoryKind::kRequest,
               std::min(kWaitingBytes, settings_.max_request_bytes));
      SetSeconds(added, added.Announced()
                            ? costs_.TransferSeconds(*request.bytes)
                            : costs_.TypicalSeconds());
      waiting_.splice(waiting_.end(), entry);
      AdmitWaiting(lock);
      return;
    }
  }
  entrant->Refused(std::move(status));
}

absl::Status Admission::Check(const Entry& entry) const {
  const Request& request = entry.request;
  if (request.bytes && *request.bytes > settings_.max_request_bytes) {
    return WithReason(Reason::kRequestTooLarge,
                      absl::ResourceExhaustedError(absl::StrCat(
                          "the request has ", *request.bytes,
                          " bytes, more than the ", settings_.max_request_bytes,
                          " that this server takes (max_request_bytes)")));
  }
  // Those who wait hold memory too.
  if (static_cast<int64_t>(waiting_.size()) * kWaitingBytes >
      settings_.max_bytes / kWaitingPart) {
    return RetryLater(
        Reason::kMemoryBusy,
        absl::StrCat("the server is busy: ", waiting_.size(),
                     " calls wait for a part of the ", settings_.max_bytes,
                     " bytes that it works on at once (max_inflight_bytes)"),
        RetryDelayFor(absl::Milliseconds(100)));
  }
  const double own = request.bytes ? costs_.TransferSeconds(*request.bytes)
                                   : costs_.TypicalSeconds();
  const auto threads = static_cast<double>(settings_.threads);
  const absl::Duration ahead = absl::Seconds(SecondsAhead(own) / threads);
  if (ahead > settings_.max_queue) {
    return RetryLater(
        Reason::kQueueFull,
        absl::StrCat(
            "the server is busy: the call would wait for about ",
            absl::FormatDuration(absl::Trunc(ahead, absl::Milliseconds(1))),
            ", longer than the ", absl::FormatDuration(settings_.max_queue),
            " that it lets calls wait (max_queue)"),
        RetryDelayFor(ahead - settings_.max_queue / 2));
  }
  const absl::Duration left = request.deadline - absl::Now();
  if (kWaitMargin * ahead > left) {
    return RetryLater(
        Reason::kDeadlineTooClose,
        absl::StrCat(
            "the server is busy: the call would wait for about ",
            absl::FormatDuration(absl::Trunc(ahead, absl::Milliseconds(1))),
            " and has ",
            absl::FormatDuration(absl::Trunc(left, absl::Milliseconds(1))),
            " until its deadline"),
        RetryDelayFor(ahead / 2));
  }
  return absl::OkStatus();
}

double Admission::SecondsAhead(double seconds) const {
  // The executor lets the smaller of two calls go first, by powers of two.
  const size_t rank = RankOf(seconds, seconds_by_rank_.size());
  double ahead = 0;
  for (size_t r = 0; r <= std::min(rank + 1, seconds_by_rank_.size() - 1);
       ++r) {
    ahead += seconds_by_rank_[r];
  }
  return std::max(0.0, ahead);
}

bool Admission::Withdraw(Entrant* entrant) {
  Entries withdrawn;
  Lock lock(mutex_);
  const auto found = std::find_if(
      waiting_.begin(), waiting_.end(),
      [&](const Entry& entry) { return entry.entrant == entrant; });
  if (found == waiting_.end()) return false;
  SetBytes(*found, MemoryKind::kRequest, 0);
  SetSeconds(*found, 0);
  withdrawn.splice(withdrawn.end(), waiting_, found);
  AdmitWaiting(lock);
  changed_.notify_all();
  return true;
}

int64_t Admission::ReadReserve(const Entry& entry) const {
  return entry.Announced() ? *entry.request.bytes
                           : std::min(kYoungBytes, settings_.max_request_bytes);
}

int64_t Admission::LargeLimit() const {
  // Alone any call may have all.
  if (inside_.empty()) return settings_.max_bytes;
  return settings_.max_bytes -
         std::min(kSmallReserve, settings_.max_bytes / kSmallPart);
}

bool Admission::MayRead(const Entry& entry) const {
  if (!entry.Announced() && young_reads_ >= kMaxYoungReads) return false;
  const int64_t held = entry.bytes[static_cast<size_t>(MemoryKind::kRequest)];
  // The message, and its tensors copied out of it.
  const int64_t needed = 2 * ReadReserve(entry) - held;
  const int64_t limit =
      ReadReserve(entry) <= kYoungBytes ? settings_.max_bytes : LargeLimit();
  return total_bytes_ + excess_bytes_ + needed <= limit;
}

void Admission::StartRead(Entries::iterator position) {
  Entry& entry = *position;
  inside_.splice(inside_.end(), waiting_, position);
  ++arrivals_;
  entry.phase = Entry::Phase::kReading;
  entry.since = entry.progress = entry.window = absl::Now();
  if (!entry.Announced()) ++young_reads_;
  if (ticker_idle_ && !tick_wanted_) {
    tick_wanted_ = true;
    tick_.notify_one();
  }
  if (settings_.received_bytes) {
    entry.received_first = settings_.received_bytes(entry.request.peer);
    entry.received_last = entry.received_first.value_or(0);
    entry.window_received = entry.received_last;
  }
  SetBytes(entry, MemoryKind::kRequest, ReadReserve(entry));
  SetBytes(entry, MemoryKind::kTensors, ReadReserve(entry));
}

// In the order they came; but where the first does not fit, small ones pass it.
// They are few at a time and soon gone, so that it need not wait for long.
Admission::Entries::iterator Admission::NextToRead() {
  if (waiting_.empty() || MayRead(waiting_.front())) return waiting_.begin();
  int looked_at = 0;
  for (auto it = waiting_.begin(); it != waiting_.end(); ++it) {
    if (++looked_at > kMostPassed) break;
    if (ReadReserve(*it) <= kYoungBytes && MayRead(*it)) return it;
  }
  return waiting_.end();
}

void Admission::AdmitWaiting(Lock& lock) {
  for (auto entry = NextToRead(); entry != waiting_.end();
       entry = NextToRead()) {
    StartRead(entry);
    Ticket ticket;
    ticket.admission_ = this;
    ticket.entry_ = entry;
    Entrant* entrant = entry->entrant;
    lock.unlock();
    entrant->Admitted(std::move(ticket));
    lock.lock();
  }
}

void Admission::SetBytes(Entry& entry, MemoryKind kind, int64_t bytes) {
  int64_t& held = entry.bytes[static_cast<size_t>(kind)];
  bytes_[static_cast<size_t>(kind)] += bytes - held;
  total_bytes_ += bytes - held;
  held = bytes;
}

absl::Status Admission::Grow(Entry& entry, MemoryKind kind, int64_t bytes) {
  const int64_t held = entry.bytes[static_cast<size_t>(kind)];
  int64_t own = -held;
  for (int64_t kind_bytes : entry.bytes) own += kind_bytes;
  if (bytes > settings_.max_bytes - own) {
    return WithReason(
        Reason::kMemoryTooLarge,
        absl::ResourceExhaustedError(absl::StrCat(
            "the call needs ", bytes, " bytes beside ", own,
            ", together more than the ", settings_.max_bytes,
            " that this server works on at once (max_inflight_bytes)")));
  }
  if (bytes > held &&
      bytes - held > settings_.max_bytes - total_bytes_ - excess_bytes_) {
    return RetryLater(
        Reason::kMemoryBusy,
        absl::StrCat("the server is busy: ", bytes - held,
                     " bytes more would exceed the ", settings_.max_bytes,
                     " it works on at once (max_inflight_bytes)"),
        RetryDelayFor(absl::Milliseconds(100)));
  }
  SetBytes(entry, kind, bytes);
  return absl::OkStatus();
}

void Admission::SetSeconds(Entry& entry, double seconds) {
  const size_t ranks = seconds_by_rank_.size();
  seconds_by_rank_[RankOf(entry.seconds, ranks)] -= entry.seconds;
  seconds_by_rank_[RankOf(seconds, ranks)] += seconds;
  entry.seconds = seconds;
}

void Admission::EndRead(Entry& entry) {
  if (entry.phase != Entry::Phase::kReading) return;
  if (!entry.Announced() && entry.pace == Entry::Pace::kYoung) --young_reads_;
}

// Charges a read of unknown size by what its connection does.
void Admission::LookAtRead(Entry& entry, absl::Time now) {
  if (now < entry.next_look) return;
  std::optional<int64_t> received;
  if (settings_.received_bytes && entry.received_first) {
    received = settings_.received_bytes(entry.request.peer);
  }
  const bool progressed =
      received && *received - entry.received_last >= kSlowBytes;
  if (received && *received > entry.received_last) entry.progress = now;
  if (!entry.Announced() && now - entry.since >= kYoung) {
    if (entry.pace == Entry::Pace::kYoung) --young_reads_;
    const bool slow = received && !progressed;
    entry.pace = slow ? Entry::Pace::kSlow : Entry::Pace::kFast;
    if (slow) entry.next_look = now + kSlowLook;
    int64_t most = settings_.max_request_bytes;
    if (slow) {
      most = std::min(most, *received - *entry.received_first + 2 * kSlowBytes);
    }
    SetBytes(entry, MemoryKind::kRequest, most);
    SetBytes(entry, MemoryKind::kTensors, most);
  }
  if (received) entry.received_last = *received;
}

absl::Status Admission::Overdue(const Entry& entry, absl::Time now) const {
  const absl::Duration grace = settings_.stall_grace;
  if (entry.phase == Entry::Phase::kSending) {
    const absl::Duration most =
        grace + absl::Seconds(static_cast<double>(entry.sending_bytes) /
                              settings_.min_answer_rate);
    if (now - entry.since <= most) return absl::OkStatus();
    return WithReason(Reason::kSlowReader,
                      absl::DeadlineExceededError(absl::StrCat(
                          "the answer of ", entry.sending_bytes,
                          " bytes was not taken within ",
                          absl::FormatDuration(most), " (min_answer_rate)")));
  }
  if (entry.phase != Entry::Phase::kReading) return absl::OkStatus();
  if (now > entry.request.deadline) {
    return absl::DeadlineExceededError(
        "the deadline passed while the request was being received");
  }
  const auto slow = [&](absl::Duration most) {
    return WithReason(
        Reason::kSlowUpload,
        absl::DeadlineExceededError(absl::StrCat(
            "the request did not come within ", absl::FormatDuration(most),
            " at ", settings_.min_upload_rate,
            " bytes per second or more (min_upload_rate)")));
  };
  if (entry.received_first) {
    if (now - entry.window < grace) return absl::OkStatus();
    const auto bytes =
        static_cast<double>(entry.received_last - entry.window_received);
    return bytes < settings_.min_upload_rate * absl::ToDoubleSeconds(grace)
               ? slow(grace)
               : absl::OkStatus();
  }
  const absl::Duration most =
      grace + absl::Seconds(static_cast<double>(settings_.max_request_bytes) /
                            settings_.min_upload_rate);
  return now - entry.since > most ? slow(most) : absl::OkStatus();
}

// A read that has to go because memory is short; end() if none has to.
Admission::Entries::iterator Admission::OneTooMany(absl::Time now,
                                                   int64_t transport_bytes) {
  auto youngest = inside_.end(), last = inside_.end(), stalled = inside_.end();
  int64_t fast = 0;
  for (auto it = inside_.begin(); it != inside_.end(); ++it) {
    if (it->phase != Entry::Phase::kReading || it->expelled) continue;
    if (it->Announced()) continue;
    last = it;
    if (it->pace == Entry::Pace::kFast) {
      ++fast;
      youngest = it;
    }
    if (it->received_first && now - it->progress > kStalled) {
      const auto request = static_cast<size_t>(MemoryKind::kRequest);
      if (stalled == inside_.end() ||
          it->bytes[request] > stalled->bytes[request]) {
        stalled = it;
      }
    }
  }
  const bool over = total_bytes_ + excess_bytes_ > LargeLimit();
  const bool wanted = !waiting_.empty() && NextToRead() == waiting_.end() &&
                      now - waiting_.front().since > absl::Milliseconds(100);
  if ((over || wanted) && stalled != inside_.end()) return stalled;
  if (!over) return inside_.end();
  if (fast > 1) return youngest;
  // What reads are charged for may exceed the budget, what they hold may not.
  int64_t held =
      total_bytes_ - bytes_[static_cast<size_t>(MemoryKind::kRequest)];
  for (const Entry& entry : inside_) {
    if (entry.phase == Entry::Phase::kReading) {
      held -= entry.bytes[static_cast<size_t>(MemoryKind::kTensors)];
    }
  }
  return held + transport_bytes > LargeLimit() ? last : inside_.end();
}

absl::Duration Admission::Tick(absl::Time now, int64_t transport_bytes) {
  Lock lock(mutex_);
  excess_bytes_ = std::max<int64_t>(
      0, transport_bytes - bytes_[static_cast<size_t>(MemoryKind::kRequest)]);
  bool reading = false;
  for (Entry& entry : inside_) {
    if (entry.phase != Entry::Phase::kReading || entry.expelled) continue;
    reading = true;
    LookAtRead(entry, now);
  }
  const auto overdue = [&] {
    return std::find_if(inside_.begin(), inside_.end(), [&](Entry& entry) {
      return !entry.expelled && !Overdue(entry, now).ok();
    });
  };
  for (auto it = overdue(); it != inside_.end(); it = overdue()) {
    Expel(*it, Overdue(*it, now), lock);
  }
  for (Entry& entry : inside_) {
    if (now - entry.window < settings_.stall_grace) continue;
    entry.window = now;
    entry.window_received = entry.received_last;
  }
  for (auto it = OneTooMany(now, transport_bytes); it != inside_.end();
       it = OneTooMany(now, transport_bytes)) {
    // What gRPC holds of it will soon be free.
    const auto request = static_cast<size_t>(MemoryKind::kRequest);
    transport_bytes =
        std::max<int64_t>(0, transport_bytes - it->bytes[request]);
    excess_bytes_ = std::max<int64_t>(
        0, transport_bytes - bytes_[request] + it->bytes[request]);
    Expel(*it,
          RetryLater(Reason::kMemoryBusy,
                     absl::StrCat("the server is busy: it has no memory for "
                                  "the rest of the request within the ",
                                  settings_.max_bytes,
                                  " bytes it works on at once "
                                  "(max_inflight_bytes)"),
                     RetryDelayFor(absl::Milliseconds(500))),
          lock);
  }
  const auto late = [&] {
    return std::find_if(waiting_.begin(), waiting_.end(), [&](Entry& entry) {
      return now > entry.request.deadline;
    });
  };
  const bool look = now >= next_waiting_look_;
  if (look) next_waiting_look_ = now + kSlowLook;
  for (auto it = look ? late() : waiting_.end(); it != waiting_.end();
       it = late()) {
    Refuse(it,
           absl::DeadlineExceededError(
               "the deadline passed before the request was read"),
           lock);
  }
  AdmitWaiting(lock);
  // A call that came and went in between counts too: others may follow.
  const bool busy = reading || !waiting_.empty() || arrivals_ != last_arrivals_;
  last_arrivals_ = arrivals_;
  return busy ? kLook : kIdleTick;
}

bool Admission::WantsTransportBytes() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return excess_bytes_ > 0 || total_bytes_ > settings_.max_bytes / 4 ||
         bytes_[static_cast<size_t>(MemoryKind::kRequest)] > kYoungBytes;
}

bool Admission::WaitForTick(absl::Duration pause) {
  Lock lock(mutex_);
  ticker_idle_ = pause > kLook;
  tick_.wait_for(lock, absl::ToChronoNanoseconds(pause),
                 [&] { return stop_ticking_ || tick_wanted_; });
  // The read that began is looked at when it is no longer young.
  if (tick_wanted_ && !stop_ticking_) {
    tick_.wait_for(lock, absl::ToChronoNanoseconds(kLook),
                   [&] { return stop_ticking_; });
  }
  tick_wanted_ = ticker_idle_ = false;
  return !stop_ticking_;
}

void Admission::StopTicking() {
  std::lock_guard<std::mutex> lock(mutex_);
  stop_ticking_ = true;
  tick_.notify_all();
}

void Admission::Refuse(Entries::iterator entry, absl::Status status,
                       Lock& lock) {
  Entries refused;
  SetBytes(*entry, MemoryKind::kRequest, 0);
  SetSeconds(*entry, 0);
  refused.splice(refused.end(), waiting_, entry);
  changed_.notify_all();
  lock.unlock();
  refused.front().entrant->Refused(std::move(status));
  lock.lock();
}

void Admission::Expel(Entry& entry, absl::Status status, Lock& lock) {
  EndRead(entry);
  entry.expelled = true;
  if (entry.phase == Entry::Phase::kReading) {
    SetBytes(entry, MemoryKind::kRequest, 0);
    SetBytes(entry, MemoryKind::kTensors, 0);
    entry.phase = Entry::Phase::kWorking;
  }
  Entrant* entrant = entry.entrant;
  entrant->Hold();
  lock.unlock();
  entrant->Expel(std::move(status));
  entrant->Drop();
  lock.lock();
}

void Admission::Release(Entries::iterator position) {
  Entries released;
  Lock lock(mutex_);
  Entry& entry = *position;
  EndRead(entry);
  for (size_t kind = 0; kind < kMemoryKinds; ++kind) {
    SetBytes(entry, static_cast<MemoryKind>(kind), 0);
  }
  SetSeconds(entry, 0);
  released.splice(released.end(), inside_, position);
  AdmitWaiting(lock);
  // Under the lock: the waiter may destroy this as soon as it can run.
  changed_.notify_all();
}

void Admission::Drain() {
  Lock lock(mutex_);
  draining_ = true;
  while (!waiting_.empty()) {
    absl::Status status;
    Draining(&status);
    Refuse(waiting_.begin(), std::move(status), lock);
  }
  changed_.notify_all();
}

void Admission::SetDeadline(absl::Time deadline) {
  std::lock_guard<std::mutex> lock(mutex_);
  deadline_ = deadline;
  changed_.notify_all();
}

bool Admission::WaitUntilIdle() {
  Lock lock(mutex_);
  while (!draining_ || !inside_.empty() || !waiting_.empty()) {
    if (!draining_ || deadline_ == absl::InfiniteFuture()) {
      changed_.wait(lock);
    } else if (absl::Now() >= deadline_) {
      return false;
    } else {
      changed_.wait_until(lock, absl::ToChronoTime(deadline_));
    }
  }
  return true;
}

Admission::Snapshot Admission::snapshot() const {
  std::lock_guard<std::mutex> lock(mutex_);
  Snapshot result;
  result.bytes = bytes_;
  for (const Entry& entry : inside_) {
    if (entry.phase == Entry::Phase::kReading) {
      result.reading_bytes +=
          entry.bytes[static_cast<size_t>(MemoryKind::kTensors)];
    }
  }
  result.waiting_calls = static_cast<int64_t>(waiting_.size());
  result.calls = static_cast<int64_t>(inside_.size());
  for (double seconds : seconds_by_rank_) result.queued_seconds += seconds;
  result.queued_seconds = std::max(0.0, result.queued_seconds);
  result.draining = draining_;
  return result;
}

int64_t Admission::calls() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return static_cast<int64_t>(inside_.size() + waiting_.size());
}

int64_t Admission::transferred_bytes() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return transferred_bytes_;
}

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
  admission_->EndRead(entry);
  // Expelled already: what it held is given back.
  if (entry.phase != Entry::Phase::kReading) return absl::OkStatus();
  entry.phase = Entry::Phase::kWorking;
  entry.since = absl::Now();
  admission_->transferred_bytes_ += bytes;
  // What came for this call is not progress of the others on its connection.
  for (Entry& other : admission_->inside_) {
    if (&other != &entry && other.phase == Entry::Phase::kReading &&
        other.received_first && other.request.peer == entry.request.peer) {
      *other.received_first += bytes;
    }
  }
  const int64_t reserved =
      entry.bytes[static_cast<size_t>(MemoryKind::kRequest)];
  absl::Status status;
  if (bytes <= reserved) {
    admission_->SetBytes(entry, MemoryKind::kRequest, bytes);
    admission_->SetBytes(entry, MemoryKind::kTensors, bytes);
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

absl::Status Admission::Ticket::Expect(double seconds) {
  if (!admission_) return absl::OkStatus();
  Lock lock(admission_->mutex_);
  const Settings& settings = admission_->settings_;
  admission_->SetSeconds(*entry_, 0);
  const auto threads = static_cast<double>(settings.threads);
  const absl::Duration ahead =
      absl::Seconds(admission_->SecondsAhead(seconds) / threads);
  const absl::Duration own = absl::Seconds(kSurePart * seconds / threads);
  const absl::Duration left = entry_->request.deadline - absl::Now();
  admission_->SetSeconds(*entry_, seconds);
  if (ahead + own <= left) return absl::OkStatus();
  return RetryLater(
      Reason::kDeadlineTooClose,
      absl::StrCat(
          "the call would take about ",
          absl::FormatDuration(absl::Trunc(
              ahead + absl::Seconds(seconds / threads), absl::Milliseconds(1))),
          ", longer than the ",
          absl::FormatDuration(absl::Trunc(left, absl::Milliseconds(1))),
          " left until its deadline"),
      RetryDelayFor(ahead));
}

void Admission::Ticket::Sending(int64_t bytes) {
  if (!admission_) return;
  Lock lock(admission_->mutex_);
  admission_->SetSeconds(*entry_, 0);
  admission_->transferred_bytes_ += bytes;
  entry_->phase = Entry::Phase::kSending;
  entry_->since = absl::Now();
  entry_->sending_bytes = bytes;
}

void Admission::Ticket::Release() {
  if (admission_) std::exchange(admission_, nullptr)->Release(entry_);
}

}  // namespace attention::server
