// What ShardedSession asks of the sessions that it is made of.
#ifndef ATTENTION_INTERNAL_SHARD_CALLS_H_
#define ATTENTION_INTERNAL_SHARD_CALLS_H_

#include <grpcpp/support/byte_buffer.h>

#include <cstdint>
#include <functional>
#include <utility>

#include "absl/status/statusor.h"
#include "attention/internal/retries.h"
#include "attention/internal/session_client.h"
#include "attention/session.h"
#include "attention/v1/session.pb.h"

namespace attention::internal {

class ShardCalls {
 public:
  // As SessionClient's.
  static void AttendAsync(
      const ClientSession& session, int64_t layer, const TensorSpan& query,
      const AttendOptions& attend, const v1::Shard& shard, Twice twice,
      const CallOptions& options,
      std::function<void(absl::StatusOr<grpc::ByteBuffer>)> done) {
    session.client_->AttendShardAsync(session.state_, layer, query, attend,
                                      shard, twice, options, std::move(done));
  }
  static absl::StatusOr<int64_t> AppendRange(ClientSession& session,
                                             int64_t layer,
                                             const TensorSpan& key,
                                             const TensorSpan* value,
                                             const TokenRange& range,
                                             const CallOptions& options) {
    return session.client_->AppendRange(*session.state_, layer, key, value,
                                        range, options);
  }
};

}  // namespace attention::internal

#endif  // ATTENTION_INTERNAL_SHARD_CALLS_H_
