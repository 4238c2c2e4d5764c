// What a ShardedSession says went wrong.
#ifndef ATTENTION_INTERNAL_SHARD_STATUS_H_
#define ATTENTION_INTERNAL_SHARD_STATUS_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "attention/session.h"

namespace attention::internal {

// With the ErrorInfo that a server would send, and one entry of its metadata if
// `key` is not empty.
absl::Status WithReason(absl::Status status, const std::string& reason,
                        const std::string& key = "",
                        const std::string& value = "");

// An error of FieldError() with the details that a server would send; other
// statuses stay as they are.
absl::Status Detailed(absl::Status status);
absl::Status WrongField(absl::string_view field, absl::string_view what);

// LAYER_UNKNOWN, of a session with so many layers.
absl::Status UnknownLayer(int64_t layer, size_t layers);

// LENGTH_CONFLICT with the true length, ABORTED.
absl::Status LengthConflictOf(const std::string& what, int64_t length);

// `status` of one shard, with its details, said to be that shard's.
absl::Status OfShard(int64_t shard, const absl::Status& status,
                     absl::string_view then = "");

// SHARD_LOST, which MissingTokens() understands. `why` is one shard's status.
absl::Status ShardLost(int64_t layer, const std::vector<TokenRange>& missing,
                       const absl::Status& why);

}  // namespace attention::internal

#endif  // ATTENTION_INTERNAL_SHARD_STATUS_H_
