// SessionService's messages with tensors, made and read without copies of what
// gRPC can take from the caller's memory or put there.
#ifndef ATTENTION_INTERNAL_SESSION_MESSAGES_H_
#define ATTENTION_INTERNAL_SESSION_MESSAGES_H_

#include <grpcpp/support/byte_buffer.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "attention/internal/lease.h"
#include "attention/session.h"
#include "attention/tensor.h"
#include "attention/v1/session.pb.h"

namespace attention::internal {

// What is done to one layer: an append where it has a key, an attend where it
// has a query. Null: absent. Refers to the caller's memory.
struct LayerRequest {
  std::string id;
  // 0: whichever session has the id.
  uint64_t incarnation = 0;
  int64_t layer = 0;
  std::optional<int64_t> expected_length = std::nullopt;
  std::string request_id = {};
  const TensorSpan* key = nullptr;
  const TensorSpan* value = nullptr;
  const TensorSpan* query = nullptr;
  const AttendOptions* attend = nullptr;
  // Of an attend alone, for its partials.
  const v1::Shard* shard = nullptr;
};

// The ranges that an append of `key` and `value` is sent in, each of at most
// `most_bytes` or one token. A single one, of all tokens, where they are fewer
// bytes, and where the tensors are not what an append takes, which the server
// will say. `value` may be null.
std::vector<TokenRange> RangesOf(const TensorSpan& key, const TensorSpan* value,
                                 size_t most_bytes);

// The bytes that protobuf would write for each message; large tensors are lent
// from `lease`. The second has the tokens of `range` alone, of tensors for
// which RangesOf() gave it as one of several.
grpc::ByteBuffer EncodeAppend(const LayerRequest& request, Lease& lease);
grpc::ByteBuffer EncodeAppend(const LayerRequest& request,
                              const TokenRange& range, Lease& lease);
grpc::ByteBuffer EncodeAttend(const LayerRequest& request, Lease& lease);
grpc::ByteBuffer EncodeStep(std::span<const LayerRequest> items, Lease& lease);

// Put elements into the memory of `outputs` where it is given. INTERNAL if the
// answer is malformed, INVALID_ARGUMENT if it does not fit into the memory.
absl::StatusOr<AttendResult> DecodeAttend(const grpc::ByteBuffer& message,
                                          const ComputeOutputs& outputs);

struct StepOutcome {
  // INVALID_ARGUMENT also if the item was done, but its answer does not fit
  // into the memory.
  absl::StatusOr<AttendResult> result;
  // Whether the server has done what was asked, and the layer's length then.
  bool done = false;
  int64_t length = 0;
};

// One for each item, which are those that were sent. INTERNAL if the answer as
// a whole is malformed.
absl::StatusOr<std::vector<StepOutcome>> DecodeStep(
    const grpc::ByteBuffer& message, std::span<const LayerRequest> items);

}  // namespace attention::internal

#endif  // ATTENTION_INTERNAL_SESSION_MESSAGES_H_
