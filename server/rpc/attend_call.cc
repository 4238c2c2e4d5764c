#include "server/rpc/attend_call.h"

#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/types/span.h"
#include "attention/v1/session.pb.h"
#include "base/field_error.h"
#include "kernel/attention.h"
#include "kernel/key_values.h"
#include "server/convert.h"
#include "server/rpc/session_service.h"
#include "server/rpc/tensor_call.h"
#include "wire/compute_request.h"
#include "wire/data_type.h"
#include "wire/session_request.h"

namespace attention::server {
namespace {

// What a session settles, or cannot give.
absl::Status CheckOptions(const v1::AttentionOptions& options) {
  const auto unwanted = [](absl::string_view option) {
    return FieldError(absl::StrCat("options.", option),
                      "got it, wanted none: the session settles it");
  };
  if (options.layout() != v1::LAYOUT_UNSPECIFIED) return unwanted("layout");
  if (options.query_heads() != 0) return unwanted("query_heads");
  if (options.kv_heads() != 0) return unwanted("kv_heads");
  if (!options.return_present()) return absl::OkStatus();
  return FieldError("options.return_present",
                    "got true, wanted false: the keys stay in the session");
}

// Without the axis of a batch of one.
void RemoveBatch(TensorSpec& spec) { spec.shape.erase(spec.shape.begin()); }

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
    if (status.ok()) status = CheckQuery(fields->query);
    if (status.ok()) status = CheckOptions(fields->options);
    if (!status.ok()) return status;
    const PageFormat& format = keys_.format();
    wire::RequestFields request;
    request.query = std::move(fields->query);
    request.query.shape.insert(request.query.shape.begin(), 1);
    ++request.query.rank;
    request.key = Kept(format.key_size);
    request.value = Kept(format.value_size);
    request.mask = std::move(fields->mask);
    request.options = std::move(fields->options);
    request.options.set_layout(v1::LAYOUT_BHSD);
    if (fields->not_causal) {
      if (request.options.causal() != v1::CAUSAL_UNSPECIFIED) {
        return FieldError("not_causal",
                          "got true with options.causal, wanted one of them");
      }
    } else if (request.options.causal() == v1::CAUSAL_UNSPECIFIED) {
      request.options.set_causal(v1::CAUSAL_BOTTOM_RIGHT);
    }
    return ToKernelWithoutKeys(
        std::move(request), env_.buffers, meter,
        {.table = &env_.regions, .tenant = record_.tenant->id});
  }

  absl::Status Find(const wire::LayerFields& where) {
    const auto session =
        store_.Use(record_.tenant->name, where.id, absl::Now());
    if (!session.ok()) return SessionError(where.id, session.status());
    absl::StatusOr<LayerSnapshot> keys = (*session)->Read(where.layer);
    if (!keys.ok()) return SessionError(where.id, keys.status());
    keys_ = *std::move(keys);
    if (where.expected_length.value_or(keys_.length()) == keys_.length()) {
      return absl::OkStatus();
    }
    return SessionError(where.id,
                        LengthConflict(keys_.length(), *where.expected_length));
  }

  absl::Status CheckQuery(const wire::TensorFields& query) const {
    const absl::StatusOr<TensorSpec> spec = CheckTensor("query", query);
    if (!spec.ok()) return spec.status();
    const PageFormat& format = keys_.format();
    if (spec->type != format.type) {
      return FieldError(
          "query.data_type",
          absl::StrCat("got ", Name(spec->type), ", wanted ", Name(format.type),
                       ", which the session stores"));
    }
    if (spec->shape.size() != 3 || spec->shape[0] % format.kv_heads != 0 ||
        spec->shape[2] != format.key_size) {
      return FieldError("query.shape",
                        absl::StrCat("got ", ToString(spec->shape),
                                     ", wanted (Hq, S, D), Hq a multiple of ",
                                     format.kv_heads, ", D ", format.key_size));
    }
    return absl::OkStatus();
  }

  // The session's keys or values, as a tensor of the request.
  wire::TensorFields Kept(int64_t size) const {
    wire::TensorFields tensor;
    tensor.present = true;
    tensor.data_type = wire::ToWire(keys_.format().type);
    tensor.shape = {1, keys_.format().kv_heads, keys_.length(), size};
    tensor.rank = tensor.shape.size();
    return tensor;
  }

  absl::StatusOr<AttentionPlan> Plan(const KernelRequest& request) override {
    absl::StatusOr<AttentionPlan> plan = TensorCall::Plan(request);
    if (!plan.ok()) return plan.status();
    RemoveBatch(plan->output);
    for (auto* spec : {&plan->log_sum_exp, &plan->scores}) {
      if (*spec) RemoveBatch(**spec);
    }
    view_ = keys_.view();
    return WithKeys(*std::move(plan), absl::MakeConstSpan(&view_, 1));
  }

  void AddFields(wire::MessageWriter& answer) override {
    answer.Integer(v1::AttendResponse::kLengthFieldNumber, keys_.length());
    keys_ = {};  // Not for as long as the client takes the answer.
  }

  SessionStore& store_;
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
