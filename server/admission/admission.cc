#include "server/admission/admission.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <memory>
#include <new>
#include <numeric>
#include <utility>

#include "absl/time/clock.h"
#include "server/admission/refusals.h"
#include "server/admission/work_budget.h"

namespace attention::server {
namespace {

// What a call that waits may have sent already: gRPC's flow control lets a
// stream send 16 KiB before it is read (server.cc), beside its headers; buffers
// have slack.
constexpr int64_t kWaitingBytes = int64_t{128} << 10;
// A message that is said to have no more is small: read, it takes little more
// than unread, and is soon gone.
constexpr int64_t kSmallBytes = kWaitingBytes;
// A message of unknown size is charged for so much at first, or for a part of
// the reserve; and there are so many such reads at once.
constexpr int64_t kYoungBytes = int64_t{1} << 20;
constexpr int64_t kYoungPart = 32;
constexpr int64_t kMaxYoungReads = 16;
// Calls among which a small one is looked for when the first does not fit.
constexpr int kMostPassed = 64;
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

// A call is let in if twice the time it will probably wait is left: what is
// foretold may be wrong, and who ends just too late has cost time for nothing.
constexpr double kWaitMargin = 2;
// Of its own time only this part is sure.
constexpr double kSurePart = 0.5;

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

// Calls by the power of two of their seconds, from 1 us on.
size_t RankOf(double seconds, size_t ranks) {
  if (!(seconds > 1e-6)) return 0;
  return std::min(ranks - 1, static_cast<size_t>(std::log2(seconds * 1e6)));
}

// What the executor does before a call of so many seconds of the same tenant,
// or in turn with it: the smaller of two calls goes first, by powers of two.
template <size_t kRanks>
double UpToRankOf(double seconds, const std::array<double, kRanks>& by_rank) {
  const size_t last = std::min(RankOf(seconds, kRanks) + 1, kRanks - 1);
  // Less than nothing can only be an error of rounding.
  return std::max(
      0.0, std::accumulate(by_rank.begin(), by_rank.begin() + last + 1, 0.0));
}

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

// The calls of one connection.
struct Admission::Peer {
  int64_t waiting = 0;
  int64_t reading = 0;
  int64_t inside = 0;         // those that are read, too
  int64_t reading_bytes = 0;  // charged for the messages
};

struct Admission::Entry {
  enum class Phase : uint8_t { kWaiting, kReading, kWorking, kSending };

  Entrant* entrant = nullptr;
  Request request;
  Peers::iterator peer;
  Share* share = nullptr;
  Entries::iterator self;  // its place in a list
  std::array<int64_t, kMemoryKinds> bytes{};
  double seconds = 0;
  double charged = 0;  // of its share's time, in seconds
  Phase phase = Phase::kWaiting;
  absl::Time since;           // of this phase
  absl::Status expelled;      // why it has to go; OK: it need not
  Upload upload;              // while reading
  int64_t unknown_bytes = 0;  // of unknown_bytes_
  int64_t sending_bytes = 0;  // while sending

  bool Reading() const { return phase == Phase::kReading && expelled.ok(); }
  bool Small() const { return request.bytes && *request.bytes <= kSmallBytes; }
};

// What a tenant has of the server.
struct Admission::Share {
  explicit Share(absl::Time now) : work(now) {}

  TenantPtr tenant;  // as its latest call had it
  Entries waiting;   // not read yet: small ones first, each kind in the order
                     // they came
  int64_t small_waiting = 0;  // so many, which stand first in `waiting`
  int64_t inside = 0;
  int64_t entering = 0;       // in Enter(), which may let go of the lock
  int64_t bytes = 0;          // all that its calls are charged for
  int64_t unknown_bytes = 0;  // of those, uploads of unknown size
  // Thread-seconds of the calls that wait and of those inside, by rank.
  std::array<double, kRanks> seconds_waiting{};
  std::array<double, kRanks> seconds_inside{};
  double all_waiting = 0, all_inside = 0;  // the sums of both
  double time = 0;  // thread-seconds that were let in, over weight
  WorkBudget work;

  bool Idle() const { return waiting.empty() && inside == 0 && entering == 0; }
  // What counts for its limit: how much of an upload of unknown size is there
  // can not be told.
  int64_t limited_bytes() const { return bytes - unknown_bytes; }
  // Less than nothing can only be an error of rounding.
  double inside_seconds() const { return std::max(0.0, all_inside); }
  double all_seconds() const { return std::max(0.0, all_inside + all_waiting); }

  // What is worked off of all tenants until `own` seconds of this one are.
  // Others have their part by weight meanwhile, or all that they want,
  // (*wanted)(), if that is less.
  double Until(const Shares& shares, double own,
               double (Share::*wanted)() const) const {
    double seconds = own;
    for (const auto& [id, other] : shares) {
      if (&other == this) continue;
      seconds += std::min((other.*wanted)(),
                          own * other.tenant->weight / tenant->weight);
    }
    return seconds;
  }
};

Admission::Admission(const Settings& settings, CostModel& costs)
    : settings_(settings),
      reserve_(ReserveOf(settings.max_bytes)),
      uploads_{.max_bytes = settings.max_request_bytes,
               .young_bytes = std::min(settings.max_request_bytes,
                                       std::clamp(reserve_ / kYoungPart,
                                                  kWaitingBytes, kYoungBytes)),
               .min_rate = settings.min_upload_rate,
               .grace = settings.stall_grace},
      costs_(costs),
      speed_(static_cast<double>(settings.threads)),
      speed_since_(absl::Now()) {}

Admission::~Admission() = default;

void Admission::Enter(Entrant* entrant, const Request& request) {
  Entries entry(1);
  Entry& added = entry.front();
  added.entrant = entrant;
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
    return total_bytes_ - unknown_bytes_ + kWaitingBytes <= settings_.max_bytes;
  }
  return WaitingBytes() + kWaitingBytes <=
         std::max(kWaitingBytes, reserve_ / 2);
}

// What its tenant's own limits say of a call that comes in.
absl::Status Admission::CheckShare(const Entry& entry) const {
  const Share& share = *entry.share;
  const Tenant& tenant = *entry.request.tenant;
  const int64_t bytes =
      entry.request.bytes ? BytesToRead(entry) : kWaitingBytes;
  if (bytes > tenant.max_bytes) return TenantTooLarge(tenant, bytes);
  if (bytes > tenant.max_bytes - share.limited_bytes()) {
    return TenantHoldsTooMuch(tenant, bytes);
  }
  const absl::Duration wait = share.work.Wait(entry.since);
  return wait > absl::ZeroDuration() ? TenantWorksTooMuch(tenant, wait)
                                     : absl::OkStatus();
}

// Who waits of a tenant with many calls, for its weight, makes way for another
// tenant's first ones; and on a connection with many calls for another
// connection's.
Admission::Entry* Admission::OneTooManyWaiting(const Entry& entry) {
  const auto waiting = [](const Share& share, int64_t more) {
    return static_cast<double>(share.waiting.size() + more) /
           share.tenant->weight;
  };
  Share* most = entry.share;
  double most_waiting = waiting(*most, 1);
  for (auto& [id, share] : shares_) {
    if (share.waiting.empty() || waiting(share, 0) <= most_waiting) continue;
    most = &share;
    most_waiting = waiting(share, 0);
  }
  if (most != entry.share) return &most->waiting.back();
  const int64_t own = entry.peer->second.waiting;
  int looked_at = 0;
  for (auto it = most->waiting.end(); it != most->waiting.begin();) {
    if (++looked_at > kMostPassed) break;
    --it;
    if (!it->Small() && it->peer->second.waiting > own) return &*it;
  }
  return nullptr;
}

// Of the calls inside, what is worked off until those of the entry's tenant are
// that come before a call of so many seconds, and `own` seconds of that call.
double Admission::SecondsInside(const Entry& entry, double seconds,
                                double own) const {
  const Share& share = *entry.share;
  return share.Until(shares_, own + UpToRankOf(seconds, share.seconds_inside),
                     &Share::inside_seconds);
}

double Admission::SecondsAhead(const Entry& entry, double seconds) const {
  const Share& share = *entry.share;
  return share.Until(shares_,
                     UpToRankOf(seconds, share.seconds_inside) +
                         UpToRankOf(seconds, share.seconds_waiting),
                     &Share::all_seconds);
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

int64_t Admission::LargeLimit() const {
  // Alone any call may have all.
  return inside_.empty() ? settings_.max_bytes : settings_.max_bytes - reserve_;
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
  const int64_t held = total_bytes_ - WaitingBytes();
  if (entry.Small()) return held - unknown_bytes_ + more <= settings_.max_bytes;
  int64_t limit = LargeLimit();
  if (bytes <= uploads_.young_bytes) {
    limit = std::max(limit, settings_.max_bytes - reserve_ * 3 / 4);
  }
  return held + excess_bytes_ + more <= limit;
}

// Whether its tenant may hold so much more.
bool Admission::ShareHolds(const Entry& entry, int64_t more) {
  return more <= entry.request.tenant->max_bytes - entry.share->limited_bytes();
}

// Whether its tenant may hold it, which waits, once it is read.
bool Admission::ShareHasRoom(const Entry& entry) const {
  return !entry.request.bytes ||
         ShareHolds(entry, BytesToRead(entry) - kWaitingBytes);
}

// Charges its tenant for so many seconds in all.
void Admission::Charge(Entry& entry, double seconds) {
  entry.share->time += (seconds - entry.charged) / entry.request.tenant->weight;
  entry.charged = seconds;
}

// Those who would come back as if they were new.
void Admission::ForgetShares(absl::Time now) {
  std::erase_if(shares_, [&](const auto& item) {
    const Share& share = item.second;
    return share.Idle() && share.time <= share_time_ && share.work.Full(now);
  });
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
  ++arrivals_;
  entry.phase = Entry::Phase::kReading;
  SetSeconds(entry, seconds);
  entry.since = absl::Now();
  Peer& peer = entry.peer->second;
  --peer.waiting;
  ++peer.reading;
  ++peer.inside;
  if (ticker_idle_ && !tick_wanted_) {
    tick_wanted_ = true;
    tick_.notify_one();
  }
  entry.upload = Upload(uploads_, entry.request.bytes,
                        ReceivedOn(entry.request.peer), entry.since);
  if (entry.upload.pace() == Upload::Pace::kYoung) ++young_reads_;
  ChargeUpload(entry, entry.upload.bytes());
}

std::optional<int64_t> Admission::ReceivedOn(const std::string& peer) const {
  try {
    return settings_.received_bytes ? settings_.received_bytes(peer)
                                    : std::nullopt;
  } catch (const std::bad_alloc&) {
    return std::nullopt;
  }
}

// For the message, and for its tensors copied out of it; the least that a call
// is charged for while it waits, too.
void Admission::ChargeUpload(Entry& entry, int64_t bytes) {
  bytes = std::max(bytes, kWaitingBytes / 2);
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

// Of a tenant's calls that need not wait for work to be done: a small one; else
// the first whose connection has the fewest messages under way; else, where
// that one does not fit, one that is charged for little. Those are soon gone,
// so that it need not wait for long. `few`: so many are looked at; `blocked`:
// whether one of another tenant waits for memory, then those that are charged
// for much have to wait; set if one of this tenant does.
Admission::Entry* Admission::NextOf(Share& share, int64_t few, bool* blocked) {
  Entry *small = nullptr, *first = nullptr, *light = nullptr;
  const auto prefer = [](Entry& candidate, Entry*& chosen) {
    if (chosen == nullptr ||
        candidate.peer->second.reading < chosen->peer->second.reading) {
      chosen = &candidate;
    }
  };
  for (Entry& entry : share.waiting) {
    if (--few < 0) break;
    if (!MayStart(entry)) continue;
    const int64_t bytes = entry.request.bytes.value_or(uploads_.young_bytes);
    if (entry.Small()) {
      prefer(entry, small);
    } else {
      prefer(entry, first);
      if (bytes <= uploads_.young_bytes) prefer(entry, light);
    }
  }
  if (*blocked) first = nullptr;
  for (Entry* const chosen : {small, first, light}) {
    if (chosen == nullptr) continue;
    if (!HasRoom(*chosen)) {
      *blocked |= chosen == first && ShareHasRoom(*chosen);
      continue;
    }
    if (chosen->request.bytes || young_reads_ < kMaxYoungReads) return chosen;
  }
  return nullptr;
}

// Tenants come by turns. Where the one whose turn it is waits for memory,
// others only go before it with what is soon gone.
Admission::Entry* Admission::NextToRead() {
  turns_.clear();
  for (auto& [id, share] : shares_) {
    if (!share.waiting.empty()) turns_.push_back(&share);
  }
  if (turns_.size() > 1) {
    std::sort(turns_.begin(), turns_.end(),
              [](const Share* a, const Share* b) { return a->time < b->time; });
  }
  const int64_t few =
      kMostPassed /
      std::clamp<int64_t>(static_cast<int64_t>(turns_.size()), 1, kMostPassed);
  bool blocked = false;
  for (Share* const share : turns_) {
    Entry* const next = NextOf(*share, few, &blocked);
    if (next != nullptr) return next;
  }
  return nullptr;
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
  const int64_t limit = small || inside_.size() == 1
                            ? settings_.max_bytes
                            : settings_.max_bytes - reserve_;
  if (more > 0 && more > limit - others) {
    return DoesNotFitNow(more, settings_.max_bytes);
  }
  SetBytes(entry, kind, bytes);
  return absl::OkStatus();
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
  entry.share->unknown_bytes -= entry.unknown_bytes;
  unknown_bytes_ -= std::exchange(entry.unknown_bytes, 0);
  Peer& peer = entry.peer->second;
  --peer.reading;
  peer.reading_bytes -= entry.bytes[static_cast<size_t>(MemoryKind::kTensors)];
}

void Admission::LookAtRead(Entry& entry, absl::Time now) {
  if (!entry.upload.Due(now)) return;
  const Peer& peer = entry.peer->second;
  const bool young = entry.upload.pace() == Upload::Pace::kYoung;
  entry.upload.Look(uploads_, ReceivedOn(entry.request.peer), peer.reading,
                    peer.reading_bytes + peer.waiting * kWaitingBytes, now);
  if (young && entry.upload.pace() != Upload::Pace::kYoung) --young_reads_;
  ChargeUpload(entry, entry.upload.bytes());
  if (entry.upload.stalled() != (entry.seconds == 0)) {
    SetSeconds(entry, entry.upload.stalled()
                          ? 0
                          : costs_.CallSeconds(entry.request.bytes));
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

absl::Status Admission::Overdue(const Entry& entry, absl::Time now) const {
  if (entry.phase == Entry::Phase::kSending) {
    const absl::Duration most =
        settings_.stall_grace +
        absl::Seconds(static_cast<double>(entry.sending_bytes) /
                      settings_.min_answer_rate);
    if (now - entry.since <= most) return absl::OkStatus();
    return AnswerNotTaken(entry.sending_bytes, most);
  }
  if (!entry.Reading()) return absl::OkStatus();
  if (now > entry.request.deadline) return LateWhileRead();
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

// A read that has to go because memory is short; end() if none has to.
Admission::Entries::iterator Admission::OneTooMany(absl::Time now,
                                                   int64_t transport_bytes) {
  const bool over =
      total_bytes_ - WaitingBytes() + excess_bytes_ > LargeLimit();
  if (!over && !HasWaitingWithoutRoom(now)) return inside_.end();
  auto youngest = inside_.end(), stalled = inside_.end();
  int64_t count = 0;
  // What reads are charged for may exceed the budget, what is held may not.
  int64_t held = transport_bytes + total_bytes_ -
                 bytes_[static_cast<size_t>(MemoryKind::kRequest)];
  for (auto it = inside_.begin(); it != inside_.end(); ++it) {
    if (!it->Reading()) continue;
    held -= it->bytes[static_cast<size_t>(MemoryKind::kTensors)];
    const Upload& upload = it->upload;
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

absl::Duration Admission::Tick(absl::Time now, int64_t transport_bytes) {
  Lock lock(mutex_);
  excess_bytes_ = std::max<int64_t>(
      0, transport_bytes - bytes_[static_cast<size_t>(MemoryKind::kRequest)]);
  bool reading = false;
  for (Entry& entry : inside_) {
    if (!entry.Reading()) continue;
    reading = true;
    LookAtRead(entry, now);
  }
  const auto overdue = [&] {
    return std::find_if(inside_.begin(), inside_.end(), [&](Entry& entry) {
      return entry.expelled.ok() && !Overdue(entry, now).ok();
    });
  };
  for (auto it = overdue(); it != inside_.end(); it = overdue()) {
    Expel(*it, Overdue(*it, now), lock);
  }
  for (auto it = OneTooMany(now, transport_bytes); it != inside_.end();
       it = OneTooMany(now, transport_bytes)) {
    // What gRPC holds of it will soon be free.
    const auto request = static_cast<size_t>(MemoryKind::kRequest);
    transport_bytes =
        std::max<int64_t>(0, transport_bytes - it->bytes[request]);
    excess_bytes_ = std::max<int64_t>(
        0, transport_bytes - bytes_[request] + it->bytes[request]);
    Expel(*it, NoRoomForTheRest(settings_.max_bytes), lock);
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

void Admission::Expel(Entry& entry, absl::Status status, Lock& lock) {
  if (entry.Reading()) {
    EndRead(entry);
    SetBytes(entry, MemoryKind::kRequest, 0);
    SetBytes(entry, MemoryKind::kTensors, 0);
  }
  entry.expelled = status;
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
  Forget(entry.peer);
  released.splice(released.end(), inside_, position);
  AdmitWaiting(lock);
  // Under the lock: the waiter may destroy this as soon as it can run.
  changed_.notify_all();
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

Admission::Snapshot Admission::snapshot() const {
  std::lock_guard<std::mutex> lock(mutex_);
  Snapshot result;
  result.bytes = bytes_;
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
  result.queued_seconds = std::max(0.0, result.queued_seconds);
  result.draining = draining_;
  return result;
}

int64_t Admission::calls() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return static_cast<int64_t>(inside_.size()) + waiting_calls_;
}

int64_t Admission::tenant_bytes(int tenant) const {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = shares_.find(tenant);
  return found == shares_.end() ? 0 : found->second.bytes;
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
  admission_->Charge(entry, seconds);
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
