#include "server/layer_attend.h"

#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "attention/v1/attention.pb.h"
#include "base/field_error.h"
#include "server/session_error.h"
#include "server/status.h"
#include "wire/compute_request.h"
#include "wire/data_type.h"

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

absl::Status CheckQuery(const wire::TensorFields& query,
                        const PageFormat& format) {
  const absl::StatusOr<TensorSpec> spec = CheckTensor("query", query);
  if (!spec.ok()) return spec.status();
  if (spec->type != format.computed_type()) {
    return FieldError("query.data_type",
                      absl::StrCat("got ", Name(spec->type), ", wanted ",
                                   Name(format.computed_type()),
                                   ": the session stores ", Name(format.type)));
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
wire::TensorFields Kept(const PageFormat& format, int64_t length,
                        int64_t size) {
  wire::TensorFields tensor;
  tensor.present = true;
  tensor.data_type = wire::ToWire(format.computed_type());
  tensor.shape = {1, format.kv_heads, length, size};
  tensor.rank = tensor.shape.size();
  return tensor;
}

// What a layer with a window answers is asked for within it, also while it has
// all its tokens: a request that is valid stays so as the layer grows.
absl::Status CheckWindow(const AttentionOptions& options, int64_t window) {
  if (window == 0) return absl::OkStatus();
  const absl::string_view of_layer = ": the layer has a window (retain_window)";
  const bool in_chunk = options.chunk_size > 0 && options.chunk_size <= window;
  if (!in_chunk && (options.window_left < 0 || options.window_left >= window)) {
    return FieldError(
        "options.window.left",
        absl::StrCat("got ",
                     options.window_left < 0
                         ? "none"
                         : absl::StrCat(options.window_left),
                     ", wanted 0 to ", window - 1,
                     ", or a chunk_size of at most ", window, of_layer));
  }
  if (options.return_scores == Scores::kNone) return absl::OkStatus();
  return FieldError("options.return_scores",
                    absl::StrCat("got it, wanted none", of_layer));
}

absl::Status CheckKept(const AttentionPlan& plan, const LayerSnapshot& layer) {
  if (layer.first_token() == 0) return absl::OkStatus();
  const int64_t seen = FirstVisibleKey(plan);
  if (seen >= layer.first_token() && layer.length() >= layer.first_token()) {
    return absl::OkStatus();
  }
  return WithReason(Reason::kTokensReleased,
                    TokensReleased(layer.first_token(),
                                   absl::StrCat("query: the first one sees "
                                                "tokens from ",
                                                seen, " on")));
}

// Without the axis of a batch of one.
void RemoveBatch(TensorSpec& spec) { spec.shape.erase(spec.shape.begin()); }

}  // namespace

absl::StatusOr<LayerSnapshot> ReadLayer(const Session& session,
                                        const wire::LayerFields& where) {
  absl::StatusOr<LayerSnapshot> layer = session.Read(where.layer);
  if (!layer.ok()) return SessionError(where.id, layer.status());
  const int64_t length = layer->length();
  const int64_t expected = where.expected_length.value_or(length);
  if (expected == length) return layer;
  return SessionError(where.id, LengthConflict(length, expected));
}

absl::StatusOr<KernelRequest> ToLayerRequest(wire::AttendFields fields,
                                             const PageFormat& format,
                                             int64_t length, BufferPool& pool,
                                             wire::MemoryMeter& meter) {
  absl::Status status = CheckQuery(fields.query, format);
  if (status.ok()) status = CheckOptions(fields.options);
  if (!status.ok()) return status;
  wire::RequestFields request;
  request.query = std::move(fields.query);
  request.query.shape.insert(request.query.shape.begin(), 1);
  ++request.query.rank;
  request.key = Kept(format, length, format.key_size);
  request.value = Kept(format, length, format.value_size);
  request.mask = std::move(fields.mask);
  request.indices = std::move(fields.indices);
  request.sinks = std::move(fields.sinks);
  // The session's sequence is a batch of one.
  for (wire::TensorFields* rows : {&request.indices, &request.sinks}) {
    if (!rows->present) continue;
    rows->shape.insert(rows->shape.begin(), 1);
    ++rows->rank;
  }
  const int64_t mask_begin = fields.mask_begin;
  request.options = std::move(fields.options);
  request.options.set_layout(v1::LAYOUT_BHSD);
  if (fields.not_causal) {
    if (request.options.causal() != v1::CAUSAL_UNSPECIFIED) {
      return FieldError("not_causal",
                        "got true with options.causal, wanted one of them");
    }
  } else if (request.options.causal() == v1::CAUSAL_UNSPECIFIED) {
    request.options.set_causal(v1::CAUSAL_BOTTOM_RIGHT);
  }
  auto kernel_request = ToKernelWithoutKeys(std::move(request), pool, meter);
  if (kernel_request.ok()) kernel_request->inputs.mask_begin = mask_begin;
  return kernel_request;
}

absl::StatusOr<AttentionPlan> PlanLayerRequest(const KernelRequest& request,
                                               const LayerSnapshot& layer,
                                               KeyValueView& view,
                                               const AttentionLimits& limits) {
  absl::StatusOr<AttentionPlan> plan =
      PlanAttention(request.inputs, request.options, limits);
  if (!plan.ok()) return plan.status();
  absl::Status kept = CheckWindow(request.options, layer.window());
  if (kept.ok()) kept = CheckKept(*plan, layer);
  if (!kept.ok()) return kept;
  const PageFormat& format = layer.format();
  view = layer.view();
  RemoveBatch(plan->output);
  for (auto* spec : {&plan->log_sum_exp, &plan->scores}) {
    if (*spec) RemoveBatch(**spec);
  }
  return WithKeys(*std::move(plan), absl::MakeConstSpan(&view, 1),
                  format.scaled() ? std::optional(format.type) : std::nullopt);
}

}  // namespace attention::server
