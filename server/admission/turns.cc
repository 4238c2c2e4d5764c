// Tenants in admission: limits of their own, and whose call comes in next.
#include <algorithm>
#include <cstdint>
#include <mutex>

#include "server/admission/refusals.h"
#include "server/admission/state.h"

namespace attention::server {
namespace {

// Reads of messages of unknown size that are young, at once.
constexpr int64_t kMaxYoungReads = 16;

}  // namespace

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

int64_t Admission::tenant_bytes(int tenant) const {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = shares_.find(tenant);
  return found == shares_.end() ? 0 : found->second.bytes;
}

}  // namespace attention::server
