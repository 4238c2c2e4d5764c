#include "server/admission/admission.h"

#include <algorithm>
#include <iterator>
#include <memory>
#include <new>
#include <utility>

#include "absl/time/clock.h"
#include "server/admission/refusals.h"
#include "server/admission/state.h"

namespace attention::server {
namespace {

// A message of unknown size is charged for so much at first, or for a part of
// the reserve.
constexpr int64_t kYoungBytes = int64_t{1} << 20;
constexpr int64_t kYoungPart = 32;
// So much of the budget, or a part of it, is a reserve that large calls may not
// take: however much they upload, small ones find room.
constexpr int64_t kReserve = int64_t{128} << 20;
constexpr int64_t kReservePart = 8;
// A call is small if it holds no more than this part of the reserve.
constexpr int64_t kSmallPart = 4;
// Between two looks at reads, and at calls that wait: there may be thousands.
constexpr absl::Duration kLook = absl::Milliseconds(5);
constexpr absl::Duration kWaitingLook = absl::Milliseconds(100);
constexpr absl::Duration kIdleTick = absl::Milliseconds(100);
// A call that has waited for so long may have the memory of a stalled upload.
constexpr absl::Duration kPatience = absl::Milliseconds(100);
// So many calls that await a message are sent away at a time.
constexpr int kMostAwaitingExpelled = 32;

// A call is let in if twice the time it will probably wait is left: what is
// foretold may be wrong, and who ends just too late has cost time for nothing.
constexpr double kWaitMargin = 2;

// So much work, by time and by number, is inside at once; what is more waits
// unread, where it costs nothing and does not slow down what is inside.
constexpr absl::Duration kMostInside = absl::Milliseconds(100);
constexpr int64_t kLeastInside = 4;
// The speed is measured over as many calls and as long, or not at all.
constexpr int64_t kSpeedCalls = 8;
constexpr absl::Duration kSpeedTime = absl::Milliseconds(100);
constexpr absl::Duration kMostSpeedTime = absl::Seconds(2);
constexpr double kSpeedWeight = 0.3;
// What is measured counts within these bounds, in threads.
constexpr double kLeastSpeed = 0.125;
constexpr double kMostSpeed = 2;

// Who pays for calls of which nobody said who does.
const TenantPtr& Everybody() {
  static const auto& everybody =
      *new TenantPtr(std::make_shared<const Tenant>());
  return everybody;
}

int64_t ReserveOf(int64_t max_bytes) {
  return std::min(kReserve, max_bytes / kReservePart);
}

}  // namespace

Admission::Admission(const Settings& settings, CostModel& costs)
    : settings_(settings),
      reserve_(ReserveOf(settings.max_bytes)),
      uploads_{.max_bytes = settings.max_request_bytes,
               .young_bytes = std::min(settings.max_request_bytes,
                                       std::clamp(reserve_ / kYoungPart,
                                                  kWaitingBytes, kYoungBytes)),
               .min_rate = settings.min_upload_rate,
               .grace = settings.stall_grace},
      streams_{.min_rate = settings.min_upload_rate,
               .grace = settings.stall_grace,
               .max_message_bytes = settings.max_chunk_bytes},
      costs_(costs),
      speed_(static_cast<double>(settings.threads)),
      speed_since_(absl::Now()) {}

Admission::~Admission() = default;

void Admission::Enter(Entrant* entrant, const Request& request) {
  Entries entry(1);
  Entry& added = entry.front();
  added.entrant = entrant;
  added.read_node.push_back(&added);
  added.request = request;
  if (!added.request.tenant) added.request.tenant = Everybody();
  added.since = absl::Now();
  absl::Status status;
  {
    Lock lock(mutex_);
    Share& share = shares_.try_emplace(added.request.tenant->id, added.since)
                       .first->second;
    share.tenant = added.request.tenant;
    turns_.reserve(shares_.size());
    added.share = &share;
    added.peer = peers_.try_emplace(request.peer).first;
    ++added.peer->second.waiting;
    ++share.entering;
    status = Check(added, lock);
    --share.entering;
    if (status.ok()) {
      SetBytes(added, MemoryKind::kHeaders, request.header_bytes);
      SetBytes(added, MemoryKind::kRequest,
               std::min(kWaitingBytes, settings_.max_request_bytes));
      SetSeconds(added, costs_.CallSeconds(request.bytes));
      // What a tenant did not ask for is not saved up.
      if (share.waiting.empty()) share.time = std::max(share.time, share_time_);
      // Small ones go first.
      const auto place =
          added.Small() ? std::next(share.waiting.begin(), share.small_waiting)
                        : share.waiting.end();
      added.self = entry.begin();
      share.waiting.splice(place, entry);
      share.small_waiting += added.Small();
      ++waiting_calls_;
      AdmitWaiting(lock);
      return;
    }
    --added.peer->second.waiting;
    Forget(added.peer);
  }
  entrant->Refused(std::move(status));
}

absl::Status Admission::Check(const Entry& entry, Lock& lock) {
  if (draining_) return Draining();
  const Request& request = entry.request;
  if (request.bytes && *request.bytes > settings_.max_request_bytes) {
    return RequestTooLarge(*request.bytes, settings_.max_request_bytes);
  }
  if (absl::Status status = CheckShare(entry); !status.ok()) return status;
  const absl::Duration ahead =
      TimeFor(SecondsAhead(entry, costs_.CallSeconds(request.bytes)));
  if (ahead > settings_.max_queue) {
    return WouldWaitTooLong(ahead, settings_.max_queue);
  }
  const absl::Duration left = request.deadline - absl::Now();
  if (kWaitMargin * ahead > left) return WouldWaitUntilTooLate(ahead, left);
  if (MayWait(entry)) return absl::OkStatus();
  Entry* const displaced = OneTooManyWaiting(entry);
  const absl::Status status = NoRoomToWait(waiting_calls_, settings_.max_bytes);
  if (displaced == nullptr) return status;
  Refuse(*displaced, status, lock);
  return draining_ ? Draining() : absl::OkStatus();
}

// The reserve: half of it is for calls that wait, a quarter for messages of
// unknown size while they are young, and the rest for calls that say that they
// are small and for what small calls need in the end.
bool Admission::MayWait(const Entry& entry) const {
  if (entry.Small()) {
    return total_bytes_ - unknown_bytes_ + kWaitingBytes +
               entry.request.header_bytes <=
           settings_.max_bytes;
  }
  return WaitingBytes() + kWaitingBytes <=
         std::max(kWaitingBytes, reserve_ / 2);
}

absl::Duration Admission::TimeFor(double seconds) const {
  return absl::Seconds(seconds / speed_);
}

bool Admission::MayStart(const Entry& entry) {
  if (busy_calls_ < std::max(kLeastInside, 2 * settings_.threads) ||
      TimeFor(SecondsInside(entry, entry.seconds, 0)) <= kMostInside) {
    return true;
  }
  held_back_ = true;
  return false;
}

// Whether the call would only come to be given up at its deadline.
bool Admission::TooLate(const Entry& entry) const {
  return TimeFor(SecondsInside(entry, entry.seconds, entry.seconds)) >
         entry.request.deadline - absl::Now();
}

bool Admission::Withdraw(Entrant* entrant) {
  Entries withdrawn;
  Lock lock(mutex_);
  for (auto& [id, share] : shares_) {
    const auto found = std::find_if(
        share.waiting.begin(), share.waiting.end(),
        [&](const Entry& entry) { return entry.entrant == entrant; });
    if (found == share.waiting.end()) continue;
    TakeOut(*found, withdrawn);
    AdmitWaiting(lock);
    return true;
  }
  return false;
}

// Ends the waiting of a call, which goes to `out`.
void Admission::TakeOut(Entry& entry, Entries& out) {
  SetBytes(entry, MemoryKind::kRequest, 0);
  SetBytes(entry, MemoryKind::kHeaders, 0);
  SetSeconds(entry, 0);
  entry.share->small_waiting -= entry.Small();
  --waiting_calls_;
  --entry.peer->second.waiting;
  Forget(entry.peer);
  out.splice(out.end(), entry.share->waiting, entry.self);
  // Under the lock: the waiter may destroy this as soon as it can run.
  changed_.notify_all();
}

void Admission::Forget(Peers::iterator peer) {
  if (peer->second.waiting == 0 && peer->second.inside == 0) peers_.erase(peer);
}

// Those that hold more than headers.
int64_t Admission::busy_inside() const {
  return static_cast<int64_t>(inside_.size()) - awaiting_calls_;
}

int64_t Admission::LargeLimit() const {
  // Alone any call may have all.
  return busy_inside() == 0 ? settings_.max_bytes
                            : settings_.max_bytes - reserve_;
}

int64_t Admission::WaitingBytes() const {
  return waiting_calls_ * kWaitingBytes;
}

// The message, and its tensors copied out of it.
int64_t Admission::BytesToRead(const Entry& entry) const {
  return 2 * std::max(entry.request.bytes.value_or(uploads_.young_bytes),
                      kWaitingBytes / 2);
}

bool Admission::HasRoom(const Entry& entry) const {
  if (!ShareHasRoom(entry)) return false;
  const int64_t bytes = entry.request.bytes.value_or(uploads_.young_bytes);
  // Calls that wait have a part of the reserve of their own.
  const int64_t more = BytesToRead(entry);
  // The largest message may take all that there is, but for its headers.
  const int64_t own = busy_inside() == 0 ? entry.request.header_bytes : 0;
  const int64_t held = total_bytes_ - WaitingBytes() - own;
  if (entry.Small()) return held - unknown_bytes_ + more <= settings_.max_bytes;
  int64_t limit = LargeLimit();
  if (bytes <= uploads_.young_bytes) {
    limit = std::max(limit, settings_.max_bytes - reserve_ * 3 / 4);
  }
  return held + excess_bytes_ + more <= limit;
}

void Admission::StartRead(Entry& entry) {
  const double seconds = entry.seconds;
  SetSeconds(entry, 0);
  Share& share = *entry.share;
  share.small_waiting -= entry.Small();
  --waiting_calls_;
  ++share.inside;
  inside_.splice(inside_.end(), share.waiting, entry.self);
  share_time_ = std::max(share_time_, share.time);
  Charge(entry, seconds);
  entry.phase = Entry::Phase::kReading;
  SetSeconds(entry, seconds);
  Peer& peer = entry.peer->second;
  --peer.waiting;
  ++peer.inside;
  BeginRead(entry);
  entry.upload = Upload(uploads_, entry.request.bytes,
                        ReceivedOn(entry.request.peer), entry.since);
  if (entry.upload.pace() == Upload::Pace::kYoung) ++young_reads_;
  ChargeUpload(entry, entry.upload.bytes());
}

void Admission::BeginRead(Entry& entry) {
  entry.phase = Entry::Phase::kReading;
  entry.since = absl::Now();
  ++arrivals_;
  Peer& peer = entry.peer->second;
  ++peer.reading;
  peer.reads.splice(peer.reads.end(), entry.read_node);
  if (ticker_idle_ && !tick_wanted_) {
    tick_wanted_ = true;
    tick_.notify_one();
  }
}

std::optional<int64_t> Admission::ReceivedOn(const std::string& peer) const {
  try {
    return settings_.received_bytes ? settings_.received_bytes(peer)
                                    : std::nullopt;
  } catch (const std::bad_alloc&) {
    return std::nullopt;
  }
}

// Of what its connection received, all but messages that came whole.
std::optional<int64_t> Admission::UnfinishedOn(const Entry& entry) const {
  auto received = ReceivedOn(entry.request.peer);
  if (received) *received -= entry.peer->second.done_bytes;
  return received;
}

// For the message, and for its tensors copied out of it; the least that a call
// is charged for while it waits, too.
void Admission::ChargeUpload(Entry& entry, int64_t bytes) {
  if (entry.upload.pace() != Upload::Pace::kAwaited) {
    bytes = std::max(bytes, kWaitingBytes / 2);
  }
  const int64_t before = entry.bytes[static_cast<size_t>(MemoryKind::kTensors)];
  entry.peer->second.reading_bytes += bytes - before;
  if (entry.upload.pace() != Upload::Pace::kAnnounced) {
    unknown_bytes_ += 2 * bytes - entry.unknown_bytes;
    entry.share->unknown_bytes += 2 * bytes - entry.unknown_bytes;
    entry.unknown_bytes = 2 * bytes;
  }
  SetBytes(entry, MemoryKind::kRequest, bytes);
  SetBytes(entry, MemoryKind::kTensors, bytes);
}

void Admission::AdmitWaiting(Lock& lock) {
  for (Entry* entry = NextToRead(); entry != nullptr; entry = NextToRead()) {
    if (TooLate(*entry)) {
      Refuse(*entry,
             WouldWaitUntilTooLate(
                 TimeFor(SecondsInside(*entry, entry->seconds, entry->seconds)),
                 entry->request.deadline - absl::Now()),
             lock);
      continue;
    }
    StartRead(*entry);
    Ticket ticket;
    ticket.admission_ = this;
    ticket.entry_ = entry->self;
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
  entry.share->bytes += bytes - held;
  if (kind == MemoryKind::kRequest && entry.pace) {
    entry.peer->second.stream_bytes += bytes - held;
  }
  held = bytes;
}

absl::Status Admission::Grow(Entry& entry, MemoryKind kind, int64_t bytes) {
  const int64_t held = entry.bytes[static_cast<size_t>(kind)];
  int64_t own = -held;
  for (int64_t kind_bytes : entry.bytes) own += kind_bytes;
  if (bytes > settings_.max_bytes - own) {
    return NeverFits(bytes, own, settings_.max_bytes);
  }
  const Tenant& tenant = *entry.request.tenant;
  if (bytes > tenant.max_bytes - own) {
    return TenantTooLarge(tenant, own + bytes);
  }
  if (bytes > held && !ShareHolds(entry, bytes - held)) {
    return TenantHoldsTooMuch(tenant, bytes - held);
  }
  // Small calls need not heed uploads of unknown size, nor what the network
  // layer holds too much: where there is no memory for both, those have to go.
  // Large ones leave them the reserve, unless they are alone.
  const int64_t more = bytes - held;
  const bool small = own + bytes <= reserve_ / kSmallPart;
  const int64_t others =
      small ? total_bytes_ - unknown_bytes_ : total_bytes_ + excess_bytes_;
  const int64_t limit = small || busy_inside() == 1
                            ? settings_.max_bytes
                            : settings_.max_bytes - reserve_;
  if (more > 0 && more > limit - others) {
    room_wanted_ = true;
    return DoesNotFitNow(more, settings_.max_bytes);
  }
  SetBytes(entry, kind, bytes);
  return absl::OkStatus();
}

bool Admission::HoldOutside(int tenant, int64_t tenant_max_bytes,
                            int64_t before, int64_t bytes) {
  Lock lock(mutex_);
  const int64_t more = bytes - before;
  int64_t& its = outside_of_[tenant];
  if (more > 0) {
    const int64_t its_most =
        tenant == 0 ? max_outside_bytes()
                    : std::min(max_outside_bytes() / 2, tenant_max_bytes);
    if (its + more > its_most) return false;
    // As Grow() does for calls.
    const int64_t outside = outside_bytes_ + more;
    const bool small = outside <= reserve_ / kSmallPart;
    const int64_t held =
        small ? total_bytes_ - unknown_bytes_ : total_bytes_ + excess_bytes_;
    const int64_t limit =
        small ? settings_.max_bytes : settings_.max_bytes - reserve_;
    if (outside > max_outside_bytes() || more > limit - held) {
      room_wanted_ |= outside <= max_outside_bytes();
      return false;
    }
  }
  its += more;
  outside_bytes_ += more;
  total_bytes_ += more;
  if (more < 0) AdmitWaiting(lock);
  return true;
}

void Admission::SetSeconds(Entry& entry, double seconds) {
  const bool waits = entry.phase == Entry::Phase::kWaiting;
  auto& ranks =
      waits ? entry.share->seconds_waiting : entry.share->seconds_inside;
  ranks[RankOf(entry.seconds, kRanks)] -= entry.seconds;
  ranks[RankOf(seconds, kRanks)] += seconds;
  (waits ? entry.share->all_waiting : entry.share->all_inside) +=
      seconds - entry.seconds;
  if (!waits) busy_calls_ += (seconds > 0) - (entry.seconds > 0);
  entry.seconds = seconds;
}

// What was charged stays, as that of any call that works.
void Admission::EndRead(Entry& entry) {
  if (entry.phase != Entry::Phase::kReading) return;
  entry.phase = Entry::Phase::kWorking;
  entry.since = absl::Now();
  if (entry.upload.pace() == Upload::Pace::kYoung) --young_reads_;
  awaiting_calls_ -= std::exchange(entry.awaiting, false);
  entry.share->unknown_bytes -= entry.unknown_bytes;
  unknown_bytes_ -= std::exchange(entry.unknown_bytes, 0);
  Peer& peer = entry.peer->second;
  --peer.reading;
  entry.read_node.splice(
      entry.read_node.end(), peer.reads,
      std::find(peer.reads.begin(), peer.reads.end(), &entry));
  peer.reading_bytes -= entry.bytes[static_cast<size_t>(MemoryKind::kTensors)];
}

void Admission::LookAtRead(Entry& entry, absl::Time now) {
  if (!entry.upload.Due(now)) return;
  const Peer& peer = entry.peer->second;
  const bool young = entry.upload.pace() == Upload::Pace::kYoung;
  entry.upload.Look(
      uploads_, ReceivedOn(entry.request.peer), peer.reading,
      peer.reading_bytes + peer.stream_bytes + peer.waiting * kWaitingBytes,
      now);
  if (young && entry.upload.pace() != Upload::Pace::kYoung) --young_reads_;
  ChargeUpload(entry, entry.upload.bytes());
  const bool idle =
      entry.upload.stalled() || entry.upload.pace() == Upload::Pace::kAwaited;
  if (idle != (entry.seconds == 0)) {
    SetSeconds(entry, idle ? 0 : costs_.CallSeconds(entry.request.bytes));
  }
}

// How fast work is done, from calls that were answered while others were held
// back. Other processes may take the cores, and what is foretold may be wrong.
// While nobody is held back the server is taken to be as fast as its threads.
void Admission::MeasureSpeed(absl::Time now) {
  const auto threads = static_cast<double>(settings_.threads);
  const absl::Duration elapsed = now - speed_since_;
  const bool begins = held_back_ && !measuring_speed_;
  const bool tells = held_back_ && measuring_speed_ && elapsed < kMostSpeedTime;
  if (!begins) {
    if (elapsed < kSpeedTime || (tells && done_calls_ < kSpeedCalls)) return;
    const double measured =
        tells ? std::clamp(done_seconds_ / absl::ToDoubleSeconds(elapsed),
                           kLeastSpeed * threads, kMostSpeed * threads)
              : threads;
    speed_ += kSpeedWeight * (measured - speed_);
  }
  measuring_speed_ = std::exchange(held_back_, false);
  speed_since_ = now;
  done_seconds_ = 0;
  done_calls_ = 0;
}

absl::Status Admission::Untaken(int64_t bytes, absl::Time since,
                                absl::Time now) const {
  const absl::Duration most =
      settings_.stall_grace +
      absl::Seconds(static_cast<double>(bytes) / settings_.min_answer_rate);
  if (now - since <= most) return absl::OkStatus();
  return AnswerNotTaken(bytes, most);
}

absl::Status Admission::Overdue(const Entry& entry, absl::Time now) const {
  if (entry.phase == Entry::Phase::kSending) {
    return Untaken(entry.sending_bytes, entry.since, now);
  }
  if (entry.Streaming()) {
    if (now > entry.request.deadline) return LateWhileRead();
    const auto most = entry.pace->TooSlow(streams_);
    if (most) return TooSlow(settings_.min_upload_rate, *most);
    return entry.answering_bytes > 0
               ? Untaken(entry.answering_bytes, entry.answering_since, now)
               : absl::OkStatus();
  }
  if (!entry.Reading()) return absl::OkStatus();
  if (now > entry.request.deadline) {
    return entry.awaiting ? IdleTooLong(now - entry.since) : LateWhileRead();
  }
  const auto most = entry.upload.TooSlow(uploads_, now);
  return most ? TooSlow(settings_.min_upload_rate, *most) : absl::OkStatus();
}

// Whether some call has waited for memory for a while.
bool Admission::HasWaitingWithoutRoom(absl::Time now) const {
  return std::any_of(shares_.begin(), shares_.end(), [&](const auto& item) {
    int looked_at = 0;
    for (const Entry& entry : item.second.waiting) {
      if (++looked_at > kMostPassed) break;
      if (now - entry.since > kPatience && ShareHasRoom(entry) &&
          !HasRoom(entry)) {
        return true;
      }
    }
    return false;
  });
}

// One that has waited for too long; null if none has.
Admission::Entry* Admission::LateToWait(absl::Time now) {
  for (auto& [id, share] : shares_) {
    for (Entry& entry : share.waiting) {
      if (now > entry.request.deadline ||
          now - entry.since > settings_.max_queue) {
        return &entry;
      }
    }
  }
  return nullptr;
}

// A stream that sends more in a message than it is charged for: of those whose
// connections brought more than all that comes on them may have, one where it
// is most. end() if there is none.
Admission::Entries::iterator Admission::StreamAboveItsLimit() {
  auto found = inside_.end();
  int64_t most = 0;
  for (auto it = inside_.begin(); it != inside_.end(); ++it) {
    if (!it->Streaming()) continue;
    const Peer& peer = it->peer->second;
    const int64_t above = it->pace->MostBytes(UnfinishedOn(*it)) -
                          peer.stream_bytes - peer.reading_bytes -
                          (1 + peer.waiting) * kWaitingBytes;
    if (above <= most) continue;
    most = above;
    found = it;
  }
  return found;
}

// What the network layer holds of a call that has to go will soon be free. Of
// streams, what came on their connection is taken to be of all alike.
void Admission::FreeSoon(const Entry& entry, int64_t* transport_bytes) {
  const int64_t charged =
      entry.bytes[static_cast<size_t>(MemoryKind::kRequest)];
  int64_t held = charged;
  if (entry.Streaming()) {
    held =
        entry.pace->MostBytes(UnfinishedOn(entry)) / entry.peer->second.streams;
    MessageDone(entry, held);
  }
  *transport_bytes = std::max<int64_t>(0, *transport_bytes - held);
  // A stream is charged until it is gone.
  const int64_t others = bytes_[static_cast<size_t>(MemoryKind::kRequest)] -
                         (entry.Streaming() ? 0 : charged);
  excess_bytes_ = std::max<int64_t>(0, *transport_bytes - others);
}

// A read that has to go because memory is short; end() if none has to.
Admission::Entries::iterator Admission::OneTooMany(absl::Time now,
                                                   int64_t transport_bytes) {
  const bool over =
      total_bytes_ - WaitingBytes() + excess_bytes_ > LargeLimit();
  if (!over && !HasWaitingWithoutRoom(now)) return inside_.end();
  if (excess_bytes_ > 0) {
    const auto above = StreamAboveItsLimit();
    if (above != inside_.end()) return above;
  }
  auto youngest = inside_.end(), stalled = inside_.end();
  int64_t count = 0;
  // What reads are charged for may exceed the budget, what is held may not.
  int64_t held = transport_bytes + total_bytes_ -
                 bytes_[static_cast<size_t>(MemoryKind::kRequest)];
  for (auto it = inside_.begin(); it != inside_.end(); ++it) {
    if (!it->Reading()) continue;
    held -= it->bytes[static_cast<size_t>(MemoryKind::kTensors)];
    const Upload& upload = it->upload;
    if (upload.pace() == Upload::Pace::kAwaited) continue;
    if (upload.stalled() && (stalled == inside_.end() ||
                             upload.bytes() > stalled->upload.bytes())) {
      stalled = it;
    }
    if (upload.pace() == Upload::Pace::kAnnounced ||
        upload.pace() == Upload::Pace::kYoung) {
      continue;
    }
    ++count;
    youngest = it;
  }
  if (stalled != inside_.end()) return stalled;
  if (!over) return inside_.end();
  return count > 1 || held > LargeLimit() ? youngest : inside_.end();
}

void Admission::LookAtStream(Entry& entry, absl::Time now) {
  if (!entry.pace->Due(now)) return;
  entry.pace->Look(streams_, UnfinishedOn(entry), now);
}

// A stream that has to go because its client sends nothing while others wait
// for memory: the one that holds most. Its memory becomes free a little later,
// so that the next one has time.
Admission::Entry* Admission::StalledStream(absl::Time now) {
  if (now < next_stream_expulsion_) return nullptr;
  Entry* most = nullptr;
  int64_t most_bytes = 0;
  for (Entry& entry : inside_) {
    if (!entry.Streaming() || !entry.pace->stalled()) continue;
    const int64_t bytes =
        std::accumulate(entry.bytes.begin(), entry.bytes.end(), int64_t{0});
    if (bytes <= most_bytes) continue;
    most = &entry;
    most_bytes = bytes;
  }
  if (most == nullptr || !HasWaitingWithoutRoom(now)) return nullptr;
  next_stream_expulsion_ = now + kPatience;
  return most;
}

absl::Duration Admission::Tick(absl::Time now, int64_t transport_bytes) {
  Lock lock(mutex_);
  // It holds headers too.
  transport_bytes = std::max<int64_t>(
      0, transport_bytes - bytes_[static_cast<size_t>(MemoryKind::kHeaders)]);
  excess_bytes_ = std::max<int64_t>(
      0, transport_bytes - bytes_[static_cast<size_t>(MemoryKind::kRequest)]);
  bool reading = false;
  for (Entry& entry : inside_) {
    if (entry.Streaming()) {
      LookAtStream(entry, now);
      reading |= excess_bytes_ > 0;
    }
    if (!entry.Reading()) continue;
    reading = true;
    LookAtRead(entry, now);
  }
  const auto overdue = [&] {
    return std::find_if(inside_.begin(), inside_.end(), [&](Entry& entry) {
      return !entry.cut && !Overdue(entry, now).ok();
    });
  };
  for (auto it = overdue(); it != inside_.end(); it = overdue()) {
    Expel(*it, Overdue(*it, now), now, lock);
  }
  for (auto it = OneTooMany(now, transport_bytes); it != inside_.end();
       it = OneTooMany(now, transport_bytes)) {
    FreeSoon(*it, &transport_bytes);
    Expel(*it, NoRoomForTheRest(settings_.max_bytes), now, lock);
  }
  ExpelAwaiting(now, lock);
  if (Entry* const stalled = StalledStream(now)) {
    Expel(*stalled, NoRoomForTheRest(settings_.max_bytes), now, lock);
  }
  const bool look = now >= next_waiting_look_;
  if (look) {
    next_waiting_look_ = now + kWaitingLook;
    ForgetShares(now);
  }
  for (Entry* late = look ? LateToWait(now) : nullptr; late != nullptr;
       late = LateToWait(now)) {
    Refuse(*late,
           now > late->request.deadline
               ? LateBeforeRead()
               : WouldWaitTooLong(now - late->since, settings_.max_queue),
           lock);
  }
  MeasureSpeed(now);
  AdmitWaiting(lock);
  // A call that came and went in between counts too: others may follow.
  const bool busy =
      reading || waiting_calls_ > 0 || arrivals_ != last_arrivals_;
  last_arrivals_ = arrivals_;
  return busy ? kLook : kIdleTick;
}

// Calls that hold little and are waiting for their clients go last where memory
// is short, those that have waited longest first; some at a time, since what
// they hold becomes free a little later.
void Admission::ExpelAwaiting(absl::Time now, Lock& lock) {
  const bool wanted = std::exchange(room_wanted_, false);
  if (awaiting_calls_ == 0 || !(wanted || HasWaitingWithoutRoom(now))) return;
  for (int i = 0; i < kMostAwaitingExpelled; ++i) {
    auto longest = inside_.end();
    for (auto it = inside_.begin(); it != inside_.end(); ++it) {
      if (it->Reading() && it->awaiting &&
          (longest == inside_.end() || it->since < longest->since)) {
        longest = it;
      }
    }
    if (longest == inside_.end()) return;
    Expel(*longest, NoRoomForTheRest(settings_.max_bytes), now, lock);
  }
}

bool Admission::WantsTransportBytes() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return excess_bytes_ > 0 || total_bytes_ > settings_.max_bytes / 4 ||
         bytes_[static_cast<size_t>(MemoryKind::kRequest)] >
             uploads_.young_bytes;
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

void Admission::Refuse(Entry& entry, absl::Status status, Lock& lock) {
  Entries refused;
  TakeOut(entry, refused);
  lock.unlock();
  refused.front().entrant->Refused(std::move(status));
  lock.lock();
}

void Admission::Expel(Entry& entry, absl::Status status, absl::Time now,
                      Lock& lock) {
  if (entry.Reading()) {
    EndRead(entry);
    SetBytes(entry, MemoryKind::kRequest, 0);
    SetBytes(entry, MemoryKind::kTensors, 0);
  }
  entry.expelled = status;
  entry.cut = entry.phase == Entry::Phase::kSending;
  if (!entry.cut) {
    // From here on the status is on its way.
    entry.phase = Entry::Phase::kSending;
    entry.since = now;
    entry.sending_bytes = 0;
  }
  SetSeconds(entry, 0);
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
  --entry.share->inside;
  --entry.peer->second.inside;
  entry.peer->second.streams -= entry.pace.has_value();
  Forget(entry.peer);
  released.splice(released.end(), inside_, position);
  AdmitWaiting(lock);
  // Under the lock: the waiter may destroy this as soon as it can run.
  changed_.notify_all();
}

void Admission::EndAwaiting() {
  Lock lock(mutex_);
  EndAwaiting(lock);
}

void Admission::EndAwaiting(Lock& lock) {
  const auto awaiting = [&] {
    return std::find_if(inside_.begin(), inside_.end(), [](const Entry& entry) {
      return entry.Reading() && entry.awaiting;
    });
  };
  for (auto it = awaiting(); it != inside_.end(); it = awaiting()) {
    Expel(*it, Draining(), absl::Now(), lock);
  }
}

void Admission::Drain() {
  Lock lock(mutex_);
  draining_ = true;
  while (waiting_calls_ > 0) {
    const auto share = std::find_if(
        shares_.begin(), shares_.end(),
        [](const auto& item) { return !item.second.waiting.empty(); });
    Refuse(share->second.waiting.front(), Draining(), lock);
  }
  EndAwaiting(lock);
  changed_.notify_all();
}

void Admission::SetDeadline(absl::Time deadline) {
  std::lock_guard<std::mutex> lock(mutex_);
  deadline_ = deadline;
  changed_.notify_all();
}

bool Admission::WaitUntilIdle() {
  Lock lock(mutex_);
  while (!draining_ || !inside_.empty() || waiting_calls_ > 0) {
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

void Admission::WaitUntilEmpty() {
  Lock lock(mutex_);
  changed_.wait(lock, [&] { return inside_.empty() && waiting_calls_ == 0; });
}

Admission::Snapshot Admission::snapshot() const {
  std::lock_guard<std::mutex> lock(mutex_);
  Snapshot result;
  result.bytes = bytes_;
  result.outside_bytes = outside_bytes_;
  for (const Entry& entry : inside_) {
    if (entry.Reading()) {
      result.reading_bytes +=
          entry.bytes[static_cast<size_t>(MemoryKind::kTensors)];
    }
  }
  result.waiting_calls = waiting_calls_;
  result.calls = static_cast<int64_t>(inside_.size());
  for (const auto& [id, share] : shares_) {
    result.queued_seconds += share.all_seconds();
  }
  // Sums of what came and went are not exactly 0 when nothing is left.
  result.queued_seconds = result.calls + result.waiting_calls == 0
                              ? 0
                              : std::max(0.0, result.queued_seconds);
  result.draining = draining_;
  return result;
}

int64_t Admission::calls() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return static_cast<int64_t>(inside_.size()) + waiting_calls_;
}

int64_t Admission::transferred_bytes() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return transferred_bytes_;
}

}  // namespace attention::server
