#include "server/rpc/attend_call.h"

#include <cstdint>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "absl/types/span.h"
#include "attention/v1/session.pb.h"
#include "kernel/attention.h"
#include "kernel/key_values.h"
#include "server/convert.h"
#include "server/layer_attend.h"
#include "server/rpc/tensor_call.h"
#include "server/session_error.h"
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
    const absl::Status status = Find(fields->where);
    if (!status.ok()) return status;
    return ToLayerRequest(
        *std::move(fields), keys_.format(), keys_.length(), env_.buffers, meter,
        {.table = &env_.regions, .tenant = record_.tenant->id});
  }

  absl::Status Find(const wire::LayerFields& where) {
    auto session = store_.Use(record_.tenant->name, where.id, absl::Now());
    if (!session.ok()) return SessionError(where.id, session.status());
    session_ = *std::move(session);
    auto keys = ReadLayer(*session_, where);
    if (!keys.ok()) return keys.status();
    keys_ = *std::move(keys);
    return absl::OkStatus();
  }

  absl::StatusOr<AttentionPlan> Plan(const KernelRequest& request) override {
    return PlanLayerRequest(request, keys_, view_,
                            env_.options.kernel_limits());
  }

  void AddFields(wire::MessageWriter& answer) override {
    answer.Integer(v1::AttendResponse::kLengthFieldNumber, keys_.length());
    // Not for as long as the client takes the answer.
    keys_ = {};
    session_ = nullptr;
  }

  SessionStore& store_;
  std::shared_ptr<Session> session_;
  LayerSnapshot keys_;
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
