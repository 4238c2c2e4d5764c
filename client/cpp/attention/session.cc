#include "attention/session.h"

#include <utility>

#include "attention/internal/session_client.h"
#include "attention/internal/session_state.h"

namespace attention {

ClientSession::ClientSession(std::shared_ptr<internal::SessionClient> client,
                             std::shared_ptr<internal::SessionState> state)
    : client_(std::move(client)), state_(std::move(state)) {}

ClientSession::ClientSession(ClientSession&& other) noexcept = default;

ClientSession& ClientSession::operator=(ClientSession&& other) noexcept {
  if (this != &other) {
    Release();
    client_ = std::move(other.client_);
    state_ = std::move(other.state_);
  }
  return *this;
}

ClientSession::~ClientSession() { Release(); }

void ClientSession::Release() {
  if (state_ != nullptr) client_->Release(state_);
}

const std::string& ClientSession::id() const { return state_->id(); }

uint64_t ClientSession::incarnation() const { return state_->incarnation(); }

const v1::SessionConfig& ClientSession::config() const {
  return state_->config();
}

int64_t ClientSession::length(int64_t layer) const {
  return state_->length(layer);
}

absl::StatusOr<int64_t> ClientSession::Append(
    int64_t layer, const TensorSpan& key,
    const std::optional<TensorSpan>& value, const CallOptions& options) {
  return client_->Append(*state_, layer, key, value ? &*value : nullptr,
                         options);
}

absl::StatusOr<AttendResult> ClientSession::Attend(
    int64_t layer, const TensorSpan& query, const AttendOptions& attend,
    const CallOptions& options) const {
  return client_->Attend(*state_, layer, query, attend, options);
}

void ClientSession::AttendAsync(
    int64_t layer, const TensorSpan& query, const AttendOptions& attend,
    const CallOptions& options,
    std::function<void(absl::StatusOr<AttendResult>)> done) const {
  client_->AttendAsync(state_, layer, query, attend, options, std::move(done));
}

std::future<absl::StatusOr<AttendResult>> ClientSession::AttendAsync(
    int64_t layer, const TensorSpan& query, const AttendOptions& attend,
    const CallOptions& options) const {
  const auto promise =
      std::make_shared<std::promise<absl::StatusOr<AttendResult>>>();
  AttendAsync(layer, query, attend, options, [promise](auto result) {
    promise->set_value(std::move(result));
  });
  return promise->get_future();
}

absl::StatusOr<AttendResult> ClientSession::Step(
    int64_t layer, const TensorSpan& key,
    const std::optional<TensorSpan>& value, const TensorSpan& query,
    const AttendOptions& attend, const CallOptions& options) {
  const StepItem item{this, layer, key, value, query, attend};
  return client_->Step({&item, 1}, options).front();
}

absl::StatusOr<ClientSession> ClientSession::Fork(
    const std::string& id, const CallOptions& options) const {
  v1::ForkSessionsRequest request;
  v1::ForkSessionsRequest::Fork& fork = *request.add_forks();
  fork.set_source(state_->id());
  fork.set_source_incarnation(state_->incarnation());
  fork.set_target(id);
  absl::StatusOr<std::vector<ClientSession>> made =
      client_->Fork(*state_, request, options);
  if (!made.ok()) return made.status();
  return std::move(made->front());
}

absl::StatusOr<std::vector<ClientSession>> ClientSession::ForkMany(
    int count, const CallOptions& options) const {
  v1::ForkSessionsRequest request;
  for (int i = 0; i < count; ++i) {
    v1::ForkSessionsRequest::Fork& fork = *request.add_forks();
    fork.set_source(state_->id());
    fork.set_source_incarnation(state_->incarnation());
  }
  return client_->Fork(*state_, request, options);
}

absl::Status ClientSession::Truncate(int64_t length,
                                     const CallOptions& options) {
  return client_->Truncate(*state_, length, options);
}

absl::Status ClientSession::Refresh(const CallOptions& options) {
  return client_->Refresh(*state_, options);
}

absl::Status ClientSession::Delete(const CallOptions& options) {
  return client_->Delete(*state_, options);
}

}  // namespace attention
