// A StreamAttention call: sends chunks and takes rows at the same time.
#ifndef ATTENTION_INTERNAL_STREAM_CALL_H_
#define ATTENTION_INTERNAL_STREAM_CALL_H_

#include <functional>

#include "absl/status/statusor.h"
#include "attention/client.h"
#include "attention/connection.h"
#include "attention/internal/key_chunks.h"

namespace attention::internal {

// One try to compute `request`, of which `chunks` were made. Returns when the
// call has ended and nothing refers to lent memory any more. UNIMPLEMENTED,
// without an ErrorInfo, where the server does not know streams.
absl::StatusOr<ComputeResult> RunStream(const Connection& connection,
                                        const CallOptions& options,
                                        const ComputeRequest& request,
                                        KeyChunks chunks);

// Calls `done` once, when RunStream() would return, on another thread.
void StartStream(const Connection& connection, const CallOptions& options,
                 const ComputeRequest& request, KeyChunks chunks,
                 std::function<void(absl::StatusOr<ComputeResult>)> done);

}  // namespace attention::internal

#endif  // ATTENTION_INTERNAL_STREAM_CALL_H_
