#include "sessions/session_store.h"

#include <algorithm>
#include <iterator>
#include <optional>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/ascii.h"
#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "base/field_error.h"

namespace attention {
namespace {

absl::Status CheckId(absl::string_view field, absl::string_view id) {
  if (id.empty()) return FieldError(field, "missing");
  if (id.size() > SessionStore::kMaxIdBytes) {
    return FieldError(field,
                      absl::StrCat("got ", id.size(), " bytes, wanted at most ",
                                   SessionStore::kMaxIdBytes));
  }
  if (!std::all_of(id.begin(), id.end(), absl::ascii_isgraph)) {
    return FieldError(field,
                      "got white space or a byte that is not printable ASCII");
  }
  return absl::OkStatus();
}

absl::Status CheckRange(absl::string_view field, int64_t value, int64_t least,
                        int64_t most) {
  if (value >= least && value <= most) return absl::OkStatus();
  return FieldError(
      field, absl::StrCat("got ", value, ", wanted ", least, " to ", most));
}

constexpr char kNumberPayload[] = "attention/number-of-sessions";

absl::Status TooMany(absl::string_view message) {
  absl::Status status = absl::ResourceExhaustedError(message);
  status.SetPayload(kNumberPayload, absl::Cord());
  return status;
}

constexpr char kSessionPayload[] = "attention/session";
constexpr char kAnotherPayload[] = "attention/another-session";

absl::Status NoSession(absl::string_view id) {
  absl::Status status =
      absl::NotFoundError(absl::StrCat("there is no session ", id));
  status.SetPayload(kSessionPayload, absl::Cord(id));
  return status;
}

absl::Status AnotherSession(absl::string_view id) {
  absl::Status status = NoSession(id);
  status.SetPayload(kAnotherPayload, absl::Cord());
  return status;
}

// Whether `session` is the one that `incarnation` means.
bool IsMeant(const Session& session, uint64_t incarnation) {
  return incarnation == 0 || incarnation == session.incarnation();
}

}  // namespace

std::string MissingSession(const absl::Status& status) {
  const absl::optional<absl::Cord> id = status.GetPayload(kSessionPayload);
  return id ? std::string(*id) : "";
}

absl::Status SessionStore::Check(const SessionConfig& config) {
  const PageFormat& format = config.format;
  constexpr int64_t kMost = int64_t{1} << 20;
  absl::Status status =
      CheckRange("num_layers", config.num_layers, 1, Session::kMaxLayers);
  if (status.ok()) status = CheckRange("kv_heads", format.kv_heads, 1, kMost);
  if (status.ok()) status = CheckRange("head_size", format.key_size, 1, kMost);
  if (status.ok()) {
    status = CheckRange("value_head_size", format.value_size, 1,
                        format.value_is_key_prefix ? format.key_size : kMost);
  }
  if (!status.ok()) return status;
  if (!IsFloat(format.type) && !format.scaled()) {
    return FieldError("data_type", absl::StrCat("got ", Name(format.type),
                                                ", wanted a float type"));
  }
  const auto windows = static_cast<int64_t>(config.retain_window.size());
  if (windows != 0 && windows != config.num_layers) {
    return FieldError("retain_window",
                      absl::StrCat("got ", windows,
                                   " numbers, wanted none, "
                                   "one, or one for each of ",
                                   config.num_layers, " layers"));
  }
  for (int64_t layer = 0; layer < windows; ++layer) {
    status = CheckRange(absl::StrCat("retain_window[", layer, "]"),
                        config.window(layer), 0, Session::kMaxLength);
    if (!status.ok()) return status;
  }
  status = CheckRange("rollback_tokens", config.rollback_tokens, 0,
                      Session::kMaxLength);
  if (!status.ok()) return status;
  if (config.lease <= absl::ZeroDuration()) {
    return FieldError("lease",
                      absl::StrCat("got ", absl::FormatDuration(config.lease),
                                   ", wanted more than none"));
  }
  return absl::OkStatus();
}

bool SessionStore::IsOfNumber(const absl::Status& status) {
  return status.GetPayload(kNumberPayload).has_value();
}

bool SessionStore::IsOfAnother(const absl::Status& status) {
  return status.GetPayload(kAnotherPayload).has_value();
}

SessionStore::SessionStore(const Limits& limits,
                           std::shared_ptr<BufferPool> pool)
    : limits_(limits),
      pool_(std::move(pool)),
      account_(std::make_shared<MemoryAccount>(limits.bytes)) {}

SessionStore::Owner& SessionStore::OwnerOf(absl::string_view name) {
  Owner& owner = owners_[std::string(name)];
  if (owner.account == nullptr) {
    owner.account = std::make_shared<MemoryAccount>(limits_.bytes, account_);
    owner.max_sessions = limits_.sessions;
  }
  return owner;
}

void SessionStore::SetLimits(absl::string_view owner,
                             const OwnerLimits& limits) {
  const std::lock_guard<std::mutex> lock(mutex_);
  Owner& found = OwnerOf(owner);
  found.account->SetLimit(limits.bytes);
  found.max_sessions = limits.sessions;
}

absl::Status SessionStore::CheckRoom(const Owner& owner, int64_t more) const {
  const auto of_owner = static_cast<int64_t>(owner.sessions.size());
  if (more > owner.max_sessions - of_owner) {
    return TooMany(absl::StrCat("the owner has ", of_owner,
                                " sessions, and may have ",
                                owner.max_sessions));
  }
  if (more > limits_.sessions - sessions_) {
    return TooMany("the server has as many sessions as it may");
  }
  return absl::OkStatus();
}

absl::StatusOr<SessionStore::SessionPtr> SessionStore::Create(
    absl::string_view owner, absl::string_view id, const SessionConfig& config,
    LeaseTime now) {
  if (absl::Status status = CheckId("id", id); !status.ok()) return status;
  if (absl::Status status = Check(config); !status.ok()) return status;
  SessionPtr expired;  // freed without the lock
  const std::lock_guard<std::mutex> lock(mutex_);
  Owner& of = OwnerOf(owner);
  const auto found = of.sessions.find(id);
  if (found != of.sessions.end()) {
    if (found->second->Renew(now)) {
      if (found->second->config() == config) return found->second;
      return absl::AlreadyExistsError(
          absl::StrCat("session ", id, " exists with another configuration"));
    }
    found->second->Delete();
    expired = std::move(found->second);
    of.sessions.erase(found);
    --sessions_;
  }
  if (absl::Status status = CheckRoom(of, 1); !status.ok()) return status;
  auto session = Session::Create(config, pool_, of.account, now);
  if (!session.ok()) return session.status();
  of.sessions.emplace(id, *session);
  ++sessions_;
  return session;
}

absl::StatusOr<SessionStore::SessionPtr> SessionStore::FindLocked(
    absl::string_view owner, absl::string_view id, LeaseTime now,
    uint64_t incarnation) const {
  const auto of = owners_.find(owner);
  if (of == owners_.end()) return NoSession(id);
  const auto found = of->second.sessions.find(id);
  if (found == of->second.sessions.end() || found->second->Expired(now)) {
    return NoSession(id);
  }
  if (!IsMeant(*found->second, incarnation)) return AnotherSession(id);
  return found->second;
}

absl::StatusOr<SessionStore::SessionPtr> SessionStore::Find(
    absl::string_view owner, absl::string_view id, LeaseTime now,
    uint64_t incarnation) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return FindLocked(owner, id, now, incarnation);
}

absl::StatusOr<SessionStore::SessionPtr> SessionStore::Use(
    absl::string_view owner, absl::string_view id, LeaseTime now,
    uint64_t incarnation) {
  const absl::StatusOr<SessionPtr> session = Find(owner, id, now, incarnation);
  if (!session.ok()) return session.status();
  SessionPtr used = (*session)->Use(now);
  if (used == nullptr) return NoSession(id);
  return used;
}

std::vector<std::pair<std::string, SessionStore::SessionPtr>>
SessionStore::List(absl::string_view owner, absl::string_view after,
                   size_t most, LeaseTime now) const {
  std::vector<std::pair<std::string, SessionPtr>> sessions;
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto of = owners_.find(owner);
  if (of == owners_.end()) return sessions;
  for (auto i = of->second.sessions.upper_bound(after);
       i != of->second.sessions.end() && sessions.size() < most; ++i) {
    if (!i->second->Expired(now)) sessions.emplace_back(*i);
  }
  return sessions;
}

bool SessionStore::Delete(absl::string_view owner, absl::string_view id,
                          uint64_t incarnation) {
  SessionPtr deleted;  // freed without the lock
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto of = owners_.find(owner);
    if (of == owners_.end()) return false;
    const auto found = of->second.sessions.find(id);
    if (found == of->second.sessions.end() ||
        !IsMeant(*found->second, incarnation)) {
      return false;
    }
    deleted = std::move(found->second);
    of->second.sessions.erase(found);
    --sessions_;
  }
  return deleted->Delete();
}

absl::StatusOr<std::vector<SessionStore::SessionPtr>> SessionStore::Fork(
    absl::string_view owner, absl::Span<const ForkRequest> forks,
    LeaseTime now) {
  std::vector<SessionPtr> made;
  std::vector<SessionPtr> expired;  // freed without the lock
  expired.reserve(forks.size());
  const std::lock_guard<std::mutex> lock(mutex_);
  Owner& of = OwnerOf(owner);
  // Made first, shown only once nothing can go wrong any more.
  absl::btree_map<std::string, SessionPtr> added;
  for (size_t i = 0; i < forks.size(); ++i) {
    const std::string field = absl::StrCat("forks[", i, "].target");
    if (absl::Status status = CheckId(field, forks[i].target); !status.ok()) {
      return status;
    }
    const auto source =
        FindLocked(owner, forks[i].source, now, forks[i].source_incarnation);
    if (!source.ok()) return source.status();
    const auto existing = of.sessions.find(forks[i].target);
    if (existing != of.sessions.end() && !existing->second->Expired(now)) {
      return absl::AlreadyExistsError(
          absl::StrCat("session ", forks[i].target, " exists already"));
    }
    absl::StatusOr<SessionPtr> fork = (*source)->Fork(now);
    if (absl::IsNotFound(fork.status())) return NoSession(forks[i].source);
    if (!fork.ok()) return fork.status();
    if (!added.emplace(forks[i].target, *fork).second) {
      return FieldError(field, "got the same id twice");
    }
    made.push_back(*std::move(fork));
  }
  absl::Status status = CheckRoom(of, static_cast<int64_t>(forks.size()));
  if (!status.ok()) return status;
  for (const ForkRequest& fork : forks) {
    static_cast<void>(of.sessions.at(fork.source)->Renew(now));
  }
  auto undo = absl::Cleanup([&] {  // where there is no memory
    for (auto i = of.sessions.begin(); i != of.sessions.end();) {
      i = i->second == nullptr ? of.sessions.erase(i) : std::next(i);
    }
  });
  for (const auto& [id, session] : added) of.sessions.try_emplace(id);
  std::move(undo).Cancel();
  for (auto& [id, session] : added) {
    SessionPtr& place = of.sessions.find(id)->second;
    if (place == nullptr) {
      ++sessions_;
    } else {
      place->Delete();  // Its lease was over.
      expired.push_back(std::move(place));
    }
    place = std::move(session);
  }
  return made;
}

int64_t SessionStore::EvictExpired(LeaseTime now) {
  std::vector<SessionPtr> expired;  // freed without the lock
  const std::lock_guard<std::mutex> lock(mutex_);
  int64_t evicted = 0;
  for (auto& [name, owner] : owners_) {
    for (auto i = owner.sessions.begin(); i != owner.sessions.end();) {
      if (!i->second->DeleteIfExpired(now)) {
        ++i;
        continue;
      }
      SessionPtr gone = std::move(i->second);
      i = owner.sessions.erase(i);
      --sessions_;
      ++evicted;
      expired.push_back(std::move(gone));
    }
  }
  return evicted;
}

SessionStore::Totals SessionStore::totals() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return {.sessions = sessions_, .bytes = account_->used()};
}

SessionStore::Totals SessionStore::totals(absl::string_view owner) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto of = owners_.find(owner);
  if (of == owners_.end()) return {};
  return {.sessions = static_cast<int64_t>(of->second.sessions.size()),
          .bytes = of->second.account->used()};
}

}  // namespace attention
