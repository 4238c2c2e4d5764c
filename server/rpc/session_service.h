// attention.v1.SessionService, and what is asked of sessions as a whole.
#ifndef ATTENTION_SERVER_RPC_SESSION_SERVICE_H_
#define ATTENTION_SERVER_RPC_SESSION_SERVICE_H_

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "attention/v1/session.pb.h"
#include "server/auth/tenant.h"
#include "server/rpc/call_environment.h"
#include "server/rpc/streamed_service.h"
#include "sessions/session.h"
#include "sessions/session_store.h"

namespace attention::server {

// Thread-safe. What `environment` refers to and `store` must outlive every
// call.
class SessionService {
 public:
  SessionService(const ComputeEnvironment& environment, SessionStore& store)
      : environment_(environment), store_(store) {}

  // Appends and computing calls too, which are their own.
  void AddTo(StreamedService& service);

 private:
  absl::StatusOr<v1::CreateSessionResponse> Create(
      const v1::CreateSessionRequest& request, const Tenant& tenant);
  absl::StatusOr<v1::GetSessionResponse> Get(
      const v1::GetSessionRequest& request, const Tenant& tenant);
  absl::StatusOr<v1::ListSessionsResponse> List(
      const v1::ListSessionsRequest& request, const Tenant& tenant);
  absl::StatusOr<v1::DeleteSessionResponse> Delete(
      const v1::DeleteSessionRequest& request, const Tenant& tenant);
  absl::StatusOr<v1::ForkSessionsResponse> Fork(
      const v1::ForkSessionsRequest& request, const Tenant& tenant);
  absl::StatusOr<v1::TruncateSessionResponse> Truncate(
      const v1::TruncateSessionRequest& request, const Tenant& tenant);

  const LeaseClock& clock() const { return *environment_.options.lease_clock; }
  LeaseTime Now() const { return clock().Now(); }
  absl::StatusOr<SessionConfig> ConfigOf(const v1::SessionConfig& config) const;

  const ComputeEnvironment environment_;
  SessionStore& store_;
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_RPC_SESSION_SERVICE_H_
