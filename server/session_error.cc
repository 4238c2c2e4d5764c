#include "server/session_error.h"

#include "absl/time/time.h"
#include "server/status.h"
#include "sessions/session_store.h"

namespace attention::server {
namespace {

// How long a client should leave an append that is under way alone: most take
// less.
constexpr absl::Duration kUnderWayDelay = absl::Milliseconds(20);

}  // namespace

absl::Status SessionError(absl::string_view id, const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kNotFound:
      return UnknownSession(id, SessionStore::IsOfAnother(status));
    case absl::StatusCode::kAlreadyExists:
      return WithReason(Reason::kSessionExists, status);
    case absl::StatusCode::kAborted:
      return WithReason(Reason::kLengthConflict, status);
    case absl::StatusCode::kUnavailable:
      return WithReason(Reason::kAppendUnderWay,
                        WithRetryDelay(kUnderWayDelay, status));
    case absl::StatusCode::kFailedPrecondition:
      return WithReason(Reason::kTokensReleased, status);
    case absl::StatusCode::kOutOfRange:
      return WithReason(Reason::kLayerUnknown, status);
    case absl::StatusCode::kResourceExhausted:
      return WithReason(SessionStore::IsOfNumber(status)
                            ? Reason::kSessionCount
                            : Reason::kSessionBytes,
                        status);
    default:
      return status;
  }
}

}  // namespace attention::server
