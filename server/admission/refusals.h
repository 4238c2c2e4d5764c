// What callers are told who are not let in, or have to go. Nothing is thrown:
// without memory for the words, a status has none.
#ifndef ATTENTION_SERVER_ADMISSION_REFUSALS_H_
#define ATTENTION_SERVER_ADMISSION_REFUSALS_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/auth/tenant.h"

namespace attention::server {

absl::Status Draining();
absl::Status HeadersTooLarge(int64_t count, int64_t bytes, int64_t max_count,
                             int64_t max_bytes);
absl::Status RequestTooLarge(int64_t bytes, int64_t max_request_bytes);
// The same of a stream's message, and of one token of all sequences, which does
// not fit in one.
absl::Status ChunkTooLarge(int64_t bytes, int64_t max_chunk_bytes);
absl::Status TokenTooLarge(int64_t bytes, int64_t max_chunk_bytes);
// Of a stream of so many bytes in all, which may have `limit` in one message;
// and where so many are needed to put float_values of several parts together.
absl::Status MessageOfStreamTooLarge(int64_t bytes, int64_t limit,
                                     int64_t stream_bytes);
absl::Status FloatsTooLarge(int64_t bytes, int64_t limit);
absl::Status AnswerTooLarge(int64_t bytes, int64_t max_response_bytes);
// Too many calls wait already, or hold what there is.
absl::Status NoRoomToWait(int64_t waiting, int64_t max_bytes);
absl::Status WouldWaitTooLong(absl::Duration wait, absl::Duration max_queue);
absl::Status WouldWaitUntilTooLate(absl::Duration wait, absl::Duration left);
absl::Status WouldTakeTooLong(absl::Duration wait, absl::Duration own,
                              absl::Duration left);
// The call holds `held` bytes and wants so many beside them.
absl::Status NeverFits(int64_t bytes, int64_t held, int64_t max_bytes);
absl::Status DoesNotFitNow(int64_t more_bytes, int64_t max_bytes);
absl::Status NoRoomForTheRest(int64_t max_bytes);
// Limits of the tenant alone. The call would hold so many bytes in all, or more
// beside what other calls of the tenant hold; or there is nothing of its work
// per second left until `wait` has passed.
absl::Status TenantTooLarge(const Tenant& tenant, int64_t bytes);
absl::Status TenantHoldsTooMuch(const Tenant& tenant, int64_t more_bytes);
absl::Status TenantWorksTooMuch(const Tenant& tenant, absl::Duration wait);
absl::Status OutOfMemory();
absl::Status LateBeforeRead();
absl::Status LateWhileRead();
// Nothing has come on a stream for so long.
absl::Status IdleTooLong(absl::Duration idle);
absl::Status TooSlow(double min_upload_rate, absl::Duration most);
absl::Status AnswerNotTaken(int64_t bytes, absl::Duration most);

}  // namespace attention::server

#endif  // ATTENTION_SERVER_ADMISSION_REFUSALS_H_
