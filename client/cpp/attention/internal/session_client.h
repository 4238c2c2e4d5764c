// What a client shares with all of its sessions.
#ifndef ATTENTION_INTERNAL_SESSION_CLIENT_H_
#define ATTENTION_INTERNAL_SESSION_CLIENT_H_

#include <grpcpp/support/byte_buffer.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "attention/client.h"
#include "attention/connection.h"
#include "attention/internal/lease_renewer.h"
#include "attention/internal/retries.h"
#include "attention/internal/session_messages.h"
#include "attention/internal/session_state.h"
#include "attention/internal/step_streams.h"
#include "attention/session.h"
#include "attention/v1/session.pb.h"

namespace attention::internal {

struct KeptAttend;

// Makes the calls of SessionService. Lives as long as its client or a session.
// Thread-safe.
class SessionClient : public std::enable_shared_from_this<SessionClient> {
 public:
  using Results = std::vector<absl::StatusOr<AttendResult>>;

  explicit SessionClient(const Connection& connection);

  absl::StatusOr<ClientSession> Create(const v1::SessionConfig& config,
                                       const std::string& id,
                                       const CallOptions& options);
  // An incarnation of 0: whichever session has the id.
  absl::StatusOr<v1::Session> Get(const std::string& id, uint64_t incarnation,
                                  const CallOptions& options);
  absl::StatusOr<ClientSession> Open(const std::string& id,
                                     const CallOptions& options);
  absl::StatusOr<std::vector<v1::Session>> List(const CallOptions& options);
  absl::StatusOr<std::vector<ClientSession>> Fork(
      const v1::ForkSessionsRequest& request, const CallOptions& options);
  absl::Status Delete(const std::string& id, uint64_t incarnation,
                      const CallOptions& options);

  // Of a session that this client made.
  absl::StatusOr<std::vector<ClientSession>> Fork(
      SessionState& session, const v1::ForkSessionsRequest& request,
      const CallOptions& options);
  absl::Status Delete(SessionState& session, const CallOptions& options);
  absl::StatusOr<int64_t> Append(SessionState& session, int64_t layer,
                                 const TensorSpan& key, const TensorSpan* value,
                                 const CallOptions& options);
  absl::StatusOr<AttendResult> Attend(SessionState& session, int64_t layer,
                                      const TensorSpan& query,
                                      const AttendOptions& attend,
                                      const CallOptions& options);
  void AttendAsync(const std::shared_ptr<SessionState>& session, int64_t layer,
                   const TensorSpan& query, const AttendOptions& attend,
                   const CallOptions& options,
                   std::function<void(absl::StatusOr<AttendResult>)> done);
  // Without blocking: partials of a shard, as an AttendResponse. The memory of
  // query and `attend` must stay until `done` is called.
  void AttendShardAsync(
      const std::shared_ptr<SessionState>& session, int64_t layer,
      const TensorSpan& query, const AttendOptions& attend,
      const v1::Shard& shard, Twice twice, const CallOptions& options,
      std::function<void(absl::StatusOr<grpc::ByteBuffer>)> done);
  // Tokens `range` of what RangesOf() can cut, in one call.
  absl::StatusOr<int64_t> AppendRange(SessionState& session, int64_t layer,
                                      const TensorSpan& key,
                                      const TensorSpan* value,
                                      const TokenRange& range,
                                      const CallOptions& options);
  Results Step(std::span<const StepItem> items, const CallOptions& options);
  absl::Status Truncate(SessionState& session, int64_t length,
                        const CallOptions& options);
  absl::Status Refresh(SessionState& session, const CallOptions& options);
  void Release(const std::shared_ptr<SessionState>& session);

 private:
  // Sends items as one message, and waits for the answer; and those that are
  // worth another try once more, until none is. One outcome for each item:
  // where the message as a whole failed, that is the outcome of all.
  std::vector<StepOutcome> Exchange(std::span<const LayerRequest> items,
                                    const CallOptions& options);
  std::vector<StepOutcome> ExchangeOnce(std::span<const LayerRequest> items,
                                        const CallOptions& options);
  absl::StatusOr<ClientSession> Handle(const v1::Session& session);
  void StartAttend(const std::shared_ptr<SessionState>& session, Twice twice,
                   const std::shared_ptr<const KeptAttend>& kept,
                   const CallOptions& options,
                   std::function<void(absl::StatusOr<grpc::ByteBuffer>)> done);
  const Connection connection_;
  StepStreams streams_;
  LeaseRenewer renewer_;
};

}  // namespace attention::internal

#endif  // ATTENTION_INTERNAL_SESSION_CLIENT_H_
