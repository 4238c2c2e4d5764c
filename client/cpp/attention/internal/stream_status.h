// What a stream's errors are to the caller of Compute(), who knows of no
// stream.
#ifndef ATTENTION_INTERNAL_STREAM_STATUS_H_
#define ATTENTION_INTERNAL_STREAM_STATUS_H_

#include "absl/status/status.h"

namespace attention::internal {

// `status` with the fields of header and chunks named as in a
// ComputeAttentionRequest: "header.key.shape" is "key.shape", in its text and
// its details.
absl::Status NamedAsInRequest(const absl::Status& status);

}  // namespace attention::internal

#endif  // ATTENTION_INTERNAL_STREAM_STATUS_H_
