#include "server/rpc/attend_call.h"

#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "attention/v1/session.pb.h"
#include "base/field_error.h"
#include "kernel/attention.h"
#include "kernel/key_values.h"
#include "server/convert.h"
#include "server/layer_attend.h"
#include "server/rpc/tensor_call.h"
#include "server/session_error.h"
#include "server/shard_attend.h"
#include "sessions/session.h"
#include "wire/session_request.h"

namespace attention::server {
namespace {

class AttendCall final : public TensorCall {
 public:
  AttendCall(const ComputeEnvironment& environment, SessionStore& store,
             grpc::GenericCallbackServerContext* context)
      : TensorCall("Attend", environment, context), store_(store) {}

 private:
  absl::StatusOr<KernelRequest> Decode(absl::Span<const grpc::Slice> slices,
                                       wire::MemoryMeter& meter) override {
    auto fields = wire::DecodeAttendRequest(slices, env_.buffers, meter);
    if (!fields.ok()) return fields.status();
    absl::Status status = Find(fields->where);
    if (status.ok() && fields->shard) status = TakeShard(*fields);
    if (!status.ok()) return status;
    length_ = of_shard_ ? of_shard_->total_length : keys_.length();
    return ToLayerRequest(*std::move(fields), keys_.format(), length_,
                          env_.buffers, meter);
  }

  absl::Status Find(const wire::LayerFields& where) {
    auto session =
        store_.Use(record_.tenant->name, where.id,
                   env_.options.lease_clock->Now(), where.incarnation);
    if (!session.ok()) return SessionError(where.id, session.status());
    session_ = *std::move(session);
    auto keys = ReadLayer(*session_, where);
    if (!keys.ok()) return keys.status();
    keys_ = *std::move(keys);
    return absl::OkStatus();
  }

  // The tokens that the request is about, and no more.
  absl::Status TakeShard(const wire::AttendFields& fields) {
    const auto shard = ToShard(*fields.shard);
    if (!shard.ok()) return shard.status();
    absl::Status status = CheckShardOptions(fields);
    if (!status.ok()) return status;
    if (keys_.window() > 0) {
      return FieldError("shard",
                        "got it, wanted none: the layer keeps a window of its "
                        "tokens only");
    }
    const int64_t tokens = shard->tokens();
    if (keys_.length() < tokens) {
      return SessionError(fields.where.id,
                          LengthConflict(keys_.length(), tokens));
    }
    keys_ = keys_.First(tokens);
    of_shard_ = *shard;
    return absl::OkStatus();
  }

  absl::StatusOr<AttentionPlan> Plan(const KernelRequest& request) override {
    if (of_shard_) {
      view_ = keys_.view();
      auto shard = ShardAttend::Plan(request, *of_shard_, keys_.format(), view_,
                                     env_.options.kernel_limits(),
                                     env_.executor.threads());
      if (!shard.ok()) return shard.status();
      shard_ = *std::move(shard);
      return shard_->plan();
    }
    return PlanLayerRequest(request, keys_, view_,
                            env_.options.kernel_limits());
  }

  void AddFields(wire::MessageWriter& answer) override {
    answer.Integer(v1::AttendResponse::kLengthFieldNumber, length_);
    // Not for as long as the client takes the answer.
    keys_ = {};
    session_ = nullptr;
  }

  SessionStore& store_;
  std::shared_ptr<Session> session_;
  std::optional<ShardOfSequence> of_shard_;
  LayerSnapshot keys_;
  int64_t length_ = 0;  // T
  KeyValueView view_;
};

}  // namespace

grpc::ServerGenericBidiReactor* StartAttendCall(
    const ComputeEnvironment& environment, SessionStore& store,
    grpc::GenericCallbackServerContext* context) {
  auto* call = new AttendCall(environment, store, context);
  call->Start();
  return call;
}

}  // namespace attention::server
