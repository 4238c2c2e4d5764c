#include "attention/internal/session_state.h"

#include <algorithm>
#include <cstdint>
#include <random>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "attention/details/v1/details.pb.h"
#include "attention/status.h"

namespace attention::internal {
namespace {

std::string RandomNonce() {
  std::random_device random;
  const uint64_t high = random();
  return absl::StrCat(absl::Hex(high << 32 | random(), absl::kZeroPad16));
}

SessionState::Clock::duration LeaseOf(const v1::SessionConfig& config) {
  // A server tells it always.
  if (!config.has_lease()) return std::chrono::minutes(1);
  return std::chrono::seconds(config.lease().seconds()) +
         std::chrono::duration_cast<SessionState::Clock::duration>(
             std::chrono::nanoseconds(config.lease().nanos()));
}

// As the server would say it; `length` may be empty.
absl::Status WithReason(absl::Status status, const char* reason,
                        const std::string& length) {
  details::v1::ErrorInfo info;
  info.set_reason(reason);
  info.set_domain("attention");
  if (!length.empty()) (*info.mutable_metadata())["length"] = length;
  const std::string bytes = info.SerializeAsString();
  status.SetPayload("type.googleapis.com/google.rpc.ErrorInfo",
                    absl::Cord(absl::string_view(bytes)));
  return status;
}

absl::Status Conflict(int64_t layer, int64_t length) {
  return WithReason(absl::AbortedError(absl::StrCat(
                        "layer ", layer,
                        ": another append to it is under way in this client")),
                    "LENGTH_CONFLICT", absl::StrCat(length));
}

}  // namespace

SessionState::SessionState(const v1::Session& session)
    : id_(session.id()),
      incarnation_(session.incarnation()),
      config_(session.config()),
      lease_(LeaseOf(session.config())),
      nonce_(RandomNonce()),
      layers_(static_cast<size_t>(session.lengths_size())),
      last_used_(Clock::now()) {
  for (size_t i = 0; i < layers_.size(); ++i) {
    layers_[i].length = session.lengths(static_cast<int>(i));
  }
}

SessionState::Layer* SessionState::Find(int64_t layer) {
  if (layer < 0 || layer >= static_cast<int64_t>(layers_.size())) {
    return nullptr;
  }
  return &layers_[static_cast<size_t>(layer)];
}

int64_t SessionState::length(int64_t layer) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  const Layer* const found = const_cast<SessionState*>(this)->Find(layer);
  return found == nullptr ? -1 : found->length;
}

absl::Status SessionState::Check() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return gone_;
}

void SessionState::CallEnded(const absl::Status& status,
                             Clock::time_point begun) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (status.ok()) last_used_ = std::max(last_used_, begun);
  if (gone_.ok() && ErrorReason(status) == "SESSION_UNKNOWN") gone_ = status;
}

void SessionState::Deleted() {
  CallEnded(WithReason(absl::NotFoundError(
                           absl::StrCat("session '", id_, "': it was deleted")),
                       "SESSION_UNKNOWN", ""),
            Clock::now());
}

SessionState::Clock::time_point SessionState::last_used() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return last_used_;
}

void SessionState::SetLengths(const v1::Session& session) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const size_t count =
      std::min(layers_.size(), static_cast<size_t>(session.lengths_size()));
  for (size_t i = 0; i < count; ++i) {
    // What is under way will say itself how it ended.
    if (layers_[i].appending) continue;
    layers_[i].length = session.lengths(static_cast<int>(i));
    ++layers_[i].appends;
    layers_[i].unfinished.reset();
  }
}

absl::StatusOr<LayerClaim> LayerClaim::Of(SessionState& state, int64_t layer) {
  const std::lock_guard<std::mutex> lock(state.mutex_);
  if (!state.gone_.ok()) return state.gone_;
  SessionState::Layer* const found = state.Find(layer);
  if (found != nullptr) {
    if (found->appending) return Conflict(layer, found->length);
    found->appending = true;
  }
  return LayerClaim(state, found, layer);
}

LayerClaim::LayerClaim(LayerClaim&& other) noexcept
    : state_(other.state_),
      layer_(std::exchange(other.layer_, nullptr)),
      number_(other.number_) {}

LayerClaim::~LayerClaim() {
  if (layer_ == nullptr) return;
  const std::lock_guard<std::mutex> lock(state_.mutex_);
  layer_->appending = false;
}

std::optional<int64_t> LayerClaim::expected_length() const {
  if (layer_ == nullptr) return std::nullopt;
  const std::lock_guard<std::mutex> lock(state_.mutex_);
  return layer_->length;
}

std::string LayerClaim::request_id() const {
  if (layer_ == nullptr) return "";
  const std::lock_guard<std::mutex> lock(state_.mutex_);
  return absl::StrCat(state_.nonce_, "-", number_, "-", layer_->appends);
}

void LayerClaim::Appended(int64_t length) {
  if (layer_ == nullptr) return;
  const std::lock_guard<std::mutex> lock(state_.mutex_);
  layer_->length = length;
  ++layer_->appends;
  layer_->unfinished.reset();
}

std::optional<UnfinishedAppend> LayerClaim::unfinished() const {
  if (layer_ == nullptr) return std::nullopt;
  const std::lock_guard<std::mutex> lock(state_.mutex_);
  return layer_->unfinished;
}

void LayerClaim::LeaveUnfinished(const UnfinishedAppend& append) {
  if (layer_ == nullptr) return;
  const std::lock_guard<std::mutex> lock(state_.mutex_);
  layer_->unfinished = append;
}

}  // namespace attention::internal
