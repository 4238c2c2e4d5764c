#include "sessions/session.h"

#include <algorithm>
#include <chrono>
#include <tuple>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/field_error.h"
#include "base/random_bytes.h"
#include "base/saturating.h"

namespace attention {
namespace {

constexpr char kLengthPayload[] = "attention/true-length";
constexpr char kLeastPayload[] = "attention/least-length";
constexpr char kFirstPayload[] = "attention/first-token";

// A sequence's last page begins small and grows by copying.
constexpr int64_t kPageRows[] = {16, 64, kKeyBlock};

int64_t PageRows(int64_t tokens) {
  return *std::find_if(std::begin(kPageRows), std::end(kPageRows),
                       [&](int64_t rows) { return rows >= tokens; });
}

int64_t Pages(int64_t tokens) { return (tokens + kKeyBlock - 1) / kKeyBlock; }

absl::Status WithNumber(absl::Status status, absl::string_view payload,
                        int64_t number) {
  const std::string text = absl::StrCat(number);
  // Not Cord's constructor from std::string: clang gives it another symbol than
  // the GCC that built Debian's Abseil.
  status.SetPayload(payload, absl::Cord(absl::string_view(text)));
  return status;
}

std::optional<int64_t> NumberOf(const absl::Status& status,
                                absl::string_view payload) {
  const absl::optional<absl::Cord> text = status.GetPayload(payload);
  int64_t number;
  if (!text || !absl::SimpleAtoi(std::string(*text), &number)) {
    return std::nullopt;
  }
  return number;
}

absl::Status Gone() { return absl::NotFoundError("the session is gone"); }

}  // namespace

absl::Status AppendConflict(int64_t length, absl::string_view what) {
  return WithNumber(absl::AbortedError(what), kLengthPayload, length);
}

absl::Status LengthConflict(int64_t length, int64_t expected) {
  return AppendConflict(
      length, absl::StrCat("expected_length: got ", expected,
                           ", but the layer has ", length, " tokens"));
}

std::optional<int64_t> TrueLength(const absl::Status& status) {
  return NumberOf(status, kLengthPayload);
}

std::optional<int64_t> LeastLength(const absl::Status& status) {
  return NumberOf(status, kLeastPayload);
}

absl::Status TokensReleased(int64_t first, absl::string_view what) {
  return WithNumber(
      absl::FailedPreconditionError(absl::StrCat(
          what, ", but the layer's tokens before ", first, " are released")),
      kFirstPayload, first);
}

std::optional<int64_t> FirstToken(const absl::Status& status) {
  return NumberOf(status, kFirstPayload);
}

KeyValueView LayerSnapshot::view() const {
  KeyValueView view;
  view.begin = first_token();
  view.length = length_ - view.begin;
  view.key_row_stride = format_.key_size;
  view.value_row_stride = format_.value_row_stride();
  if (view.length > 0) {
    view.blocks = absl::MakeConstSpan(table_->blocks)
                      .first(static_cast<size_t>(Pages(view.length)));
  }
  return view;
}

LayerSnapshot LayerSnapshot::First(int64_t length) const {
  LayerSnapshot first = *this;
  first.length_ = length;
  return first;
}

int64_t Session::Bytes(const SessionConfig& config) {
  // Request ids that a string does not hold in itself.
  constexpr int64_t kIdBytes =
      (kMaxRequestIdBytes + 1) * (std::tuple_size_v<decltype(Layer::done)> + 1);
  return static_cast<int64_t>(sizeof(Session)) +
         config.num_layers * (static_cast<int64_t>(sizeof(Layer)) + kIdBytes) +
         static_cast<int64_t>(config.retain_window.size() * sizeof(int64_t));
}

absl::StatusOr<std::shared_ptr<Session>> Session::Create(
    const SessionConfig& config, std::shared_ptr<BufferPool> pool,
    std::shared_ptr<MemoryAccount> account, LeaseTime now) {
  MemoryCharge charge(account, Bytes(config));
  if (!charge) {
    return absl::ResourceExhaustedError(
        absl::StrCat("no memory for a session: ", account->Holdings()));
  }
  uint64_t incarnation = 0;
  while (incarnation == 0) {
    if (!RandomBytes(&incarnation, sizeof(incarnation))) {
      return absl::InternalError("the system has no random numbers");
    }
  }
  return std::shared_ptr<Session>(
      new Session(config, incarnation, std::move(pool), std::move(account),
                  std::move(charge), now));
}

Session::Session(const SessionConfig& config, uint64_t incarnation,
                 std::shared_ptr<BufferPool> pool,
                 std::shared_ptr<MemoryAccount> account, MemoryCharge charge,
                 LeaseTime now)
    : config_(config),
      incarnation_(incarnation),
      pool_(std::move(pool)),
      account_(std::move(account)),
      charge_(std::move(charge)),
      expires_(now + config.lease),
      layers_(static_cast<size_t>(config.num_layers)) {}

absl::Status Session::Check(int64_t layer) const {
  if (gone_) return Gone();
  if (layer >= 0 && layer < config_.num_layers) return absl::OkStatus();
  return absl::OutOfRangeError(absl::StrCat(
      "layer: got ", layer, ", wanted 0 to ", config_.num_layers - 1));
}

absl::StatusOr<int64_t> Session::length(int64_t layer) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (absl::Status status = Check(layer); !status.ok()) return status;
  return layers_[layer].length;
}

absl::StatusOr<LayerSnapshot> Session::Read(int64_t layer) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (absl::Status status = Check(layer); !status.ok()) return status;
  LayerSnapshot snapshot;
  snapshot.format_ = config_.format;
  snapshot.window_ = config_.window(layer);
  snapshot.length_ = layers_[layer].length;
  snapshot.table_ = layers_[layer].table;
  return snapshot;
}

absl::Status Session::CheckAppend(const Layer& layer,
                                  const AppendRequest& request,
                                  std::optional<Done>* done) const {
  if (!request.request_id.empty()) {
    for (const Done& before : layer.done) {
      if (before.request_id != request.request_id) continue;
      if (before.taken_back || before.end - before.begin != request.tokens ||
          request.expected_length.value_or(before.begin) != before.begin) {
        return AppendConflict(
            layer.length,
            absl::StrCat("request_id: used already for tokens ", before.begin,
                         " to ", before.end,
                         before.taken_back ? ", which were truncated" : ""));
      }
      *done = before;
      return absl::OkStatus();
    }
  }
  if (request.expected_length.value_or(layer.length) != layer.length) {
    return LengthConflict(layer.length, *request.expected_length);
  }
  if (layer.under_way) {
    if (!request.request_id.empty() &&
        layer.under_way->request_id == request.request_id &&
        layer.under_way->tokens == request.tokens) {
      return absl::UnavailableError(
          "request_id: an earlier try of the same append is under way");
    }
    return AppendConflict(layer.length,
                          "another append of this layer is under way");
  }
  if (request.tokens < 0 || request.tokens > kMaxLength - layer.length) {
    return absl::InvalidArgumentError(absl::StrCat("got ", request.tokens,
                                                   " tokens, wanted 0 to ",
                                                   kMaxLength - layer.length));
  }
  return absl::OkStatus();
}

absl::StatusOr<Append> Session::BeginAppend(int64_t layer,
                                            const AppendRequest& request) {
  // Copied without the lock.
  std::string request_id = request.request_id;
  Layer::UnderWay under_way = {request.request_id, request.tokens};
  std::shared_ptr<Session> self = shared_from_this();
  std::unique_lock<std::mutex> lock(mutex_);
  if (absl::Status status = Check(layer); !status.ok()) return status;
  Layer& state = layers_[layer];
  std::optional<Done> done;
  if (absl::Status status = CheckAppend(state, request, &done); !status.ok()) {
    return status;
  }
  if (done) {
    Append append(std::move(self), layer, done->begin, done->end);
    append.done_ = true;
    return append;
  }
  Append append(std::move(self), layer, state.length,
                state.length + request.tokens);
  append.request_id_ = std::move(request_id);
  append.before_ = state.table;
  // Until the append is published or given up.
  state.under_way = std::move(under_way);
  lock.unlock();
  if (absl::Status status = Prepare(append); !status.ok()) return status;
  return append;
}

// Full pages stay. So does the last one, if its next rows can be claimed; else
// a larger copy takes its place.
absl::Status Session::Prepare(Append& append) const {
  const int64_t first = append.begin_ / kKeyBlock;
  const int64_t in_first = append.begin_ % kKeyBlock;
  const int64_t pages = Pages(append.end_);
  int64_t kept = first;
  if (in_first > 0) {
    const std::shared_ptr<Page>& page = append.before_->page(first);
    const int64_t rows = std::min(kKeyBlock, append.end_ - first * kKeyBlock);
    if (page->Claim(in_first, rows)) {
      append.claimed_ = page;
      kept = first + 1;
    }
  }
  if (append.begin_ == append.end_) {
    append.after_ = append.kept_ = append.before_;
    return absl::OkStatus();
  }
  const int64_t begin = append.before_ == nullptr ? 0 : append.before_->first;
  if (kept >= pages) {
    append.after_ = append.before_;
    Release(append);
    return absl::OkStatus();
  }
  const auto no_memory = [&] {
    return absl::ResourceExhaustedError(
        absl::StrCat("no memory for ", append.end_ - append.begin_,
                     " more tokens: ", account_->Holdings()));
  };
  const std::shared_ptr<PageTable> table = PageTable::Create(
      append.before_.get(), begin, kept, pages - kept, account_);
  if (table == nullptr) return no_memory();
  for (int64_t i = kept; i < pages; ++i) {
    const int64_t rows = std::min(kKeyBlock, append.end_ - i * kKeyBlock);
    std::shared_ptr<Page> page =
        Page::Create(config_.format, PageRows(rows), *pool_, account_);
    if (page == nullptr) return no_memory();
    const int64_t copied = i == first ? in_first : 0;
    if (copied > 0) page->CopyRows(*append.before_->page(i), copied);
    page->Claim(copied, rows);
    table->Add(std::move(page));
  }
  append.after_ = table;
  Release(append);
  return absl::OkStatus();
}

// Invariant 7.
void Session::Release(Append& append) const {
  append.kept_ = append.after_;
  const int64_t window = config_.window(append.layer_);
  if (window == 0) return;
  const int64_t seen = SaturatingAdd(window, config_.rollback_tokens);
  const int64_t first = std::max<int64_t>(0, append.end_ - seen) / kKeyBlock;
  if (first <= append.after_->first) return;
  if (auto kept = PageTable::Create(append.after_.get(), first,
                                    Pages(append.end_), 0, account_)) {
    append.kept_ = std::move(kept);
  }  // Else a later append releases them.
}

absl::Status Session::Publish(Append& append) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (gone_) return Gone();
  Layer& layer = layers_[append.layer_];
  if (layer.length != append.begin_) {
    return LengthConflict(layer.length, append.begin_);
  }
  layer.length = append.end_;
  // What it replaces is freed with the append, without the lock.
  append.before_ = std::exchange(layer.table, append.kept_);
  append.claimed_ = nullptr;
  if (!append.request_id_.empty()) {
    layer.done[layer.next_done] = {std::move(append.request_id_), append.begin_,
                                   append.end_};
    layer.next_done = (layer.next_done + 1) % layer.done.size();
  }
  layer.under_way.reset();
  return absl::OkStatus();
}

void Session::GiveUp(Append& append) noexcept {
  if (append.claimed_ != nullptr) {
    append.claimed_->Unclaim(
        append.begin_ % kKeyBlock,
        std::min(kKeyBlock,
                 append.end_ - append.begin_ / kKeyBlock * kKeyBlock));
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!gone_) layers_[append.layer_].under_way.reset();
}

LayerExtent Session::ExtentOf(size_t layer) const {
  const Layer& state = layers_[layer];
  LayerExtent extent{.length = state.length};
  if (state.table == nullptr || state.table->first == 0) return extent;
  extent.first_token = state.table->first * kKeyBlock;
  extent.least_length =
      extent.first_token + config_.window(static_cast<int64_t>(layer));
  return extent;
}

absl::Status Session::CheckTruncate(int64_t length) const {
  int64_t least = 0;
  for (size_t i = 0; i < layers_.size(); ++i) {
    if (length < 0 || length > layers_[i].length) {
      return FieldError("length", absl::StrCat("got ", length, ", wanted 0 to ",
                                               layers_[i].length,
                                               ", the length of layer ", i));
    }
    least = std::max(least, ExtentOf(i).least_length);
  }
  if (length == 0 || length >= least) return absl::OkStatus();
  return WithNumber(
      absl::FailedPreconditionError(
          absl::StrCat("length: got ", length, ", wanted 0 or at least ", least,
                       ": tokens that a window would cover then are released")),
      kLeastPayload, least);
}

absl::Status Session::Truncate(int64_t length) {
  std::vector<std::shared_ptr<const PageTable>> tables(
      static_cast<size_t>(config_.num_layers));  // old ones: freed unlocked
  const std::lock_guard<std::mutex> lock(mutex_);
  if (gone_) return Gone();
  if (absl::Status status = CheckTruncate(length); !status.ok()) return status;
  // First what may fail.
  for (size_t i = 0; i < layers_.size(); ++i) {
    if (length == 0 || Pages(length) == Pages(layers_[i].length)) continue;
    const PageTable* const table = layers_[i].table.get();
    // Where there is no room for it the layer keeps its pages, until it has a
    // table anew.
    tables[i] =
        PageTable::Create(table, table->first, Pages(length), 0, account_);
  }
  for (size_t i = 0; i < layers_.size(); ++i) {
    Layer& layer = layers_[i];
    if (length == 0 || tables[i] != nullptr) layer.table.swap(tables[i]);
    layer.length = length;
    for (Done& done : layer.done) {
      if (done.end > length) done.taken_back = true;
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<LayerExtent>> Session::layers() const {
  std::vector<LayerExtent> layers(static_cast<size_t>(config_.num_layers));
  const std::lock_guard<std::mutex> lock(mutex_);
  if (gone_) return Gone();
  for (size_t i = 0; i < layers_.size(); ++i) layers[i] = ExtentOf(i);
  return layers;
}

absl::StatusOr<std::shared_ptr<Session>> Session::Fork(LeaseTime now) const {
  auto created = Create(config_, pool_, account_, now);
  if (!created.ok()) return created.status();
  const std::shared_ptr<Session> fork = *std::move(created);
  const std::lock_guard<std::mutex> lock(mutex_);
  if (gone_) return Gone();
  for (size_t i = 0; i < layers_.size(); ++i) {
    fork->layers_[i].length = layers_[i].length;
    fork->layers_[i].table = layers_[i].table;
  }
  return fork;
}

// A shared_ptr to it is what Use() returns.
class Session::CallUse {
 public:
  CallUse(std::shared_ptr<Session> session, LeaseTime now)
      : session_(std::move(session)), now_(now) {
    const std::lock_guard<std::mutex> lock(session_->lease_mutex_);
    ++session_->uses_;
  }
  ~CallUse() {
    const absl::Duration took =
        absl::FromChrono(std::chrono::steady_clock::now() - begun_);
    const std::lock_guard<std::mutex> lock(session_->lease_mutex_);
    --session_->uses_;
    // Of a short one the beginning will do.
    if (took > session_->config().lease / 16)
      session_->RenewLocked(now_ + took);
  }
  CallUse(const CallUse&) = delete;
  CallUse& operator=(const CallUse&) = delete;

 private:
  const std::shared_ptr<Session> session_;
  const LeaseTime now_;
  const std::chrono::steady_clock::time_point begun_ =
      std::chrono::steady_clock::now();
};

bool Session::ExpiredLocked(LeaseTime now) const {
  return lease_ended_ || (uses_ == 0 && expires_ <= now);
}

void Session::RenewLocked(LeaseTime now) {
  expires_ = std::max(expires_, now + config_.lease);
}

bool Session::Expired(LeaseTime now) const {
  const std::lock_guard<std::mutex> lock(lease_mutex_);
  return ExpiredLocked(now);
}

bool Session::Renew(LeaseTime now) {
  const std::lock_guard<std::mutex> lock(lease_mutex_);
  if (ExpiredLocked(now)) return false;
  RenewLocked(now);
  return true;
}

std::shared_ptr<Session> Session::Use(LeaseTime now) {
  if (!Renew(now)) return nullptr;
  return {std::make_shared<CallUse>(shared_from_this(), now), this};
}

LeaseTime Session::expires() const {
  const std::lock_guard<std::mutex> lock(lease_mutex_);
  return expires_;
}

bool Session::End(std::optional<LeaseTime> now) {
  {
    const std::lock_guard<std::mutex> lock(lease_mutex_);
    if (lease_ended_ || (now && !ExpiredLocked(*now))) return false;
    lease_ended_ = true;
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  gone_ = true;
  return true;
}

bool Session::DeleteIfExpired(LeaseTime now) { return End(now); }

bool Session::Delete() { return End(std::nullopt); }

Append::~Append() {
  if (session_ != nullptr && !done_) session_->GiveUp(*this);
}

Append::Rows Append::RowsAt(int64_t head, int64_t token) const {
  const Page& page = *after_->page(token / kKeyBlock);
  const int64_t row = token % kKeyBlock;
  Rows rows = {.key = page.key_row(head, row),
               .value = page.value_row(head, row),
               .tokens = std::min(kKeyBlock - row, end_ - token)};
  if (format().scaled()) {
    rows.key_scales = page.key_scale(head, row);
    rows.value_scales = page.value_scale(head, row);
  }
  return rows;
}

LayerSnapshot Append::Written() const {
  LayerSnapshot written;
  written.format_ = format();
  written.window_ = session_->config().window(layer_);
  written.length_ = end_;
  written.table_ = after_;
  return written;
}

absl::Status Append::Publish() && {
  if (done_) return absl::OkStatus();
  absl::Status status = session_->Publish(*this);
  if (status.ok()) session_ = nullptr;
  return status;
}

}  // namespace attention
