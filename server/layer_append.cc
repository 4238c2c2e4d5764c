#include "server/layer_append.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "base/field_error.h"
#include "server/convert.h"
#include "server/session_error.h"

namespace attention::server {
namespace {

// A task copies no more, which takes some tenths of a millisecond; but for one
// token of one head.
constexpr int64_t kTaskBytes = int64_t{1} << 20;

}  // namespace

LayerAppend::LayerAppend(wire::AppendFields fields)
    : fields_(std::move(fields)) {}

absl::Status LayerAppend::Check(const PageFormat& format) {
  if (fields_.request_id.size() > Session::kMaxRequestIdBytes) {
    return FieldError(
        "request_id",
        absl::StrCat("wanted at most ", Session::kMaxRequestIdBytes, " bytes"));
  }
  const absl::StatusOr<int64_t> tokens =
      Take("key", fields_.key, format.kv_heads, format.key_size, key_);
  if (!tokens.ok()) return tokens.status();
  tokens_ = *tokens;
  if (format.value_is_key_prefix) {
    if (!fields_.value.present) return absl::OkStatus();
    return FieldError("value",
                      "got it, wanted none: values are columns of keys");
  }
  const absl::StatusOr<int64_t> values =
      Take("value", fields_.value, format.kv_heads, format.value_size, value_);
  if (!values.ok()) return values.status();
  if (*values == *tokens) return absl::OkStatus();
  return FieldError(
      "value.shape",
      absl::StrCat("got ", *values, " tokens, wanted ", *tokens, " as in key"));
}

// Returns the number of tokens.
absl::StatusOr<int64_t> LayerAppend::Take(absl::string_view field,
                                          wire::TensorFields& tensor,
                                          int64_t heads, int64_t size,
                                          Arrived& arrived) {
  const absl::StatusOr<TensorSpec> spec = CheckTensor(field, tensor);
  if (!spec.ok()) return spec.status();
  if (!IsFloat(spec->type)) {
    return FieldError(
        absl::StrCat(field, ".data_type"),
        absl::StrCat("got ", Name(spec->type), ", wanted a float type"));
  }
  if (spec->shape.size() != 3 || spec->shape[0] != heads ||
      spec->shape[2] != size) {
    return FieldError(absl::StrCat(field, ".shape"),
                      absl::StrCat("got ", ToString(spec->shape), ", wanted (",
                                   heads, ", n, ", size, ")"));
  }
  arrived.rows.type = spec->type;
  arrived.bytes = tensor.data;
  if (tensor.float_values.count > 0) {
    arrived.floats = std::move(tensor.float_values.values);
    arrived.floats_slice = grpc::Slice(
        arrived.floats.data(), tensor.float_values.count * sizeof(float),
        grpc::Slice::STATIC_SLICE);
    arrived.bytes =
        wire::SliceReader(absl::MakeConstSpan(&arrived.floats_slice, 1));
  }
  return spec->shape[1];
}

absl::Status LayerAppend::Begin(const std::shared_ptr<Session>& session,
                                wire::MemoryMeter& meter) {
  const wire::LayerFields& where = fields_.where;
  auto append = session->BeginAppend(where.layer,
                                     {.tokens = tokens_,
                                      .expected_length = where.expected_length,
                                      .request_id = fields_.request_id});
  if (!append.ok()) return SessionError(where.id, append.status());
  append_.emplace(*std::move(append));
  if (append_->done()) {
    absl::StatusOr<LayerSnapshot> held = session->Read(where.layer);
    if (!held.ok()) return SessionError(where.id, held.status());
    held_ = *std::move(held);
  }
  absl::Status status = AddTasks(key_, meter);
  if (status.ok()) status = AddTasks(value_, meter);
  if (!status.ok()) GiveUp();
  return status;
}

absl::Status LayerAppend::AddTasks(const Arrived& arrived,
                                   wire::MemoryMeter& meter) {
  const PageFormat& format = append_->format();
  const bool key = arrived.rows.operand == KeyOrValue::kKey;
  if (!key && format.value_is_key_prefix) return absl::OkStatus();
  const int64_t row_bytes = (key ? format.key_size : format.value_size) *
                            static_cast<int64_t>(SizeOf(arrived.rows.type));
  const int64_t step = std::max<int64_t>(1, kTaskBytes / row_bytes);
  const int64_t more = format.kv_heads * ((tokens_ + step - 1) / step);
  absl::Status status = meter.Take(more * static_cast<int64_t>(sizeof(Task)));
  if (!status.ok()) return status;
  tasks_.reserve(tasks_.size() + static_cast<size_t>(more));
  for (int64_t head = 0; head < format.kv_heads; ++head) {
    for (int64_t begin = append_->begin(); begin < append_->end();
         begin += step) {
      tasks_.push_back(
          {&arrived, {head, begin, std::min(begin + step, append_->end())}});
    }
  }
  return absl::OkStatus();
}

void LayerAppend::Run(int64_t number) {
  const Task& task = tasks_[number];
  const Arrived& arrived = *task.arrived;
  if (!append_->done()) {
    return WriteRows(*append_, arrived.rows, task.range, arrived.bytes);
  }
  if (held_.length() < append_->end() ||
      !HoldsRows(held_, append_->begin(), append_->end(), arrived.rows,
                 task.range, arrived.bytes)) {
    differs_ = true;
  }
}

LayerSnapshot LayerAppend::Written() const {
  if (!append_->done()) return append_->Written();
  return held_.First(std::min(held_.length(), append_->end()));
}

absl::Status LayerAppend::Verify() const {
  if (!differs_) return absl::OkStatus();
  return SessionError(
      fields_.where.id,
      AppendConflict(held_.length(),
                     "request_id: used already for other tokens"));
}

absl::StatusOr<int64_t> LayerAppend::Publish() {
  const int64_t length = append_->end();
  absl::Status status = Verify();
  if (status.ok()) {
    status = SessionError(fields_.where.id, std::move(*append_).Publish());
  }
  GiveUp();
  if (!status.ok()) return status;
  return length;
}

}  // namespace attention::server
