// Queries of a message over a shard of a sequence: partials, for the client to
// merge with those of other servers.
#ifndef ATTENTION_SERVER_SHARD_ATTEND_H_
#define ATTENTION_SERVER_SHARD_ATTEND_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/executor.h"
#include "kernel/attention.h"
#include "kernel/key_values.h"
#include "kernel/parts.h"
#include "kernel/shard.h"
#include "kernel/tensor_view.h"
#include "server/convert.h"
#include "sessions/page.h"
#include "wire/message_writer.h"
#include "wire/session_request.h"

namespace attention::server {

// A Shard that was checked.
struct ShardOfSequence {
  ShardLayout layout;
  int64_t index = 0;
  int64_t total_length = 0;  // T

  // The shard's tokens.
  int64_t tokens() const { return layout.TokensOf(index, total_length); }
};

// Errors: InvalidArgument with ErrorField().
absl::StatusOr<ShardOfSequence> ToShard(const wire::ShardFields& fields);

// What a request with a shard must leave out. Errors likewise.
absl::Status CheckShardOptions(const wire::AttendFields& fields);

// The partials of one request: Plan(), Begin(), MakeJob(), Write().
class ShardAttend {
 public:
  // The most partials of one answer.
  static constexpr int64_t kMostPartials = 4096;

  // `request` is that of ToLayerRequest() for shard.total_length tokens, with
  // the mask's columns of the shard's tokens alone; `keys` are these tokens, of
  // rows of `format`. Both must live until the job has ended. Takes memory that
  // does not grow with the runs. Errors as of PlanAttention(), or about the
  // number of runs. Throws std::bad_alloc.
  static absl::StatusOr<std::unique_ptr<ShardAttend>> Plan(
      const KernelRequest& request, const ShardOfSequence& shard,
      const PageFormat& format, const KeyValueView& keys,
      const AttentionLimits& limits, int threads);

  // Its cost is that of the shard; its outputs are nobody's.
  const AttentionPlan& plan() const { return plan_; }
  // An upper bound of what Write() adds to a message, and of the memory taken
  // from Begin() on; both saturate at the largest int64_t.
  int64_t answer_bytes() const;
  int64_t working_bytes() const;

  // Errors about the mask. Throws std::bad_alloc.
  absl::Status Begin();

  // This object must live until `done` is called. Throws std::bad_alloc.
  std::unique_ptr<Executor::Job> MakeJob(
      absl::AnyInvocable<void(absl::Status)> done) {
    return parts_->MakeJob(std::move(done));
  }

  // Adds the partials of a job that ended well to an AttendResponse, copying
  // none: their memory lives as long as the message.
  void Write(wire::MessageWriter& answer) const;

 private:
  ShardAttend() = default;

  ShardOfSequence shard_;
  KeyValueView keys_;
  std::optional<ConstTensorView> mask_;  // the columns of the shard's tokens
  AttentionPlan plan_;
  int threads_ = 1;
  int64_t runs_ = 0;
  int64_t queries_ = 0;      // S
  int64_t query_heads_ = 0;  // Hq
  std::unique_ptr<PartsOfKeys> parts_;
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_SHARD_ATTEND_H_
