// The answers of several shards as one.
#ifndef ATTENTION_INTERNAL_SHARD_MERGE_H_
#define ATTENTION_INTERNAL_SHARD_MERGE_H_

#include <grpcpp/support/byte_buffer.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "attention/session.h"
#include "attention/tensor.h"
#include "attention/v1/attention.pb.h"
#include "attention/v1/session.pb.h"
#include "kernel/accumulator.h"
#include "kernel/attention.h"
#include "kernel/shard.h"

namespace attention::internal {

// Plan(), then Take() or Miss() for each shard, then Finish().
// Thread-compatible.
class ShardMerge {
 public:
  // Of `query` and `attend` over a sequence of `length` tokens, dealt out by
  // `layout`, in sessions of `config`. Refers to the query's bytes, and to
  // nothing else. INVALID_ARGUMENT
  // for what no server would take, or shards cannot answer.
  static absl::StatusOr<ShardMerge> Plan(const v1::SessionConfig& config,
                                         const ShardLayout& layout,
                                         int64_t length,
                                         const TensorSpan& query,
                                         const AttendOptions& attend);

  // The runs of a shard that have tokens.
  int64_t RunsOf(int64_t shard) const;

  // The answer of a shard, an AttendResponse. Nothing in it is trusted:
  // INTERNAL, and nothing is taken, unless it has the partials of the shard's
  // runs, one for each in their order, each of the right type and shapes.
  absl::Status Take(int64_t shard, const grpc::ByteBuffer& answer);

  // The shard's tokens are as if masked.
  void Miss(int64_t shard);

  // The answer of the whole. INVALID_ARGUMENT if it does not fit into
  // `outputs`.
  absl::StatusOr<AttendResult> Finish(const ComputeOutputs& outputs) const;

 private:
  ShardMerge() = default;
  // `bytes`, or where they are not aligned, `copy` of them.
  static const void* Aligned(std::span<const std::byte> bytes,
                             std::vector<double>& copy);
  // Of one run: [rows] max, [rows] sum, [rows, Dv] output.
  size_t PartialBytes() const;

  ShardLayout layout_;
  int64_t length_ = 0;
  std::vector<double> query_;  // copies, where they were not aligned
  std::vector<double> sinks_;
  AttentionPlan plan_;
  int64_t queries_ = 0, query_heads_ = 0, value_size_ = 0;  // S, Hq, Dv
  DataType type_ = DataType::kFloat32;                      // of partials
  // By run; a run that is missed has none.
  std::vector<Partial> partials_;
  v1::Timing timing_;  // the longest of all shards
};

}  // namespace attention::internal

#endif  // ATTENTION_INTERNAL_SHARD_MERGE_H_
