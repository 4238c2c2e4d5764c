#include "server/answer_rows.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/saturating.h"
#include "wire/in_place_tensor.h"
#include "wire/message_writer.h"

namespace attention::server {
namespace {

using v1::StreamAttentionResponse;

constexpr int64_t kMessageBytes = int64_t{1} << 20;
// What stands around the payloads of a message.
constexpr int64_t kAround = 1024;

}  // namespace

AnswerRows::Part AnswerRows::PartOf(const TensorSpec& spec, size_t axis) {
  Part part{.spec = spec, .axis = axis};
  // Their products are those of a tensor that was found small enough, but for
  // empty ones.
  if (spec.num_elements() == 0) return part;
  part.row_bytes = static_cast<int64_t>(SizeOf(spec.type));
  for (size_t i = 0; i < spec.shape.size(); ++i) {
    if (i < axis) part.outer *= spec.shape[i];
    if (i > axis) part.row_bytes *= spec.shape[i];
  }
  return part;
}

AnswerRows::AnswerRows(const AttentionPlan& plan, size_t length_axis,
                       bool float_values)
    : float_values_(float_values),
      output_(PartOf(plan.output, length_axis)),
      rows_(plan.output.shape[length_axis]) {
  int64_t row_bytes = output_.outer * output_.row_bytes;
  if (plan.log_sum_exp) {
    // (B, Hq, S), (S), or ragged (sum S, Hq).
    const bool ragged = plan.log_sum_exp->shape.size() == 2;
    log_sum_exp_ = PartOf(*plan.log_sum_exp,
                          ragged ? 0 : plan.log_sum_exp->shape.size() - 1);
    row_bytes =
        SaturatingAdd(row_bytes, log_sum_exp_->outer * log_sum_exp_->row_bytes);
  }
  rows_per_message_ =
      std::clamp<int64_t>(kMessageBytes / std::max<int64_t>(1, row_bytes), 1,
                          std::max<int64_t>(1, rows_));
}

int64_t AnswerRows::message_bytes() const {
  int64_t bytes = kAround;
  const auto add = [&](const Part& part) {
    bytes = SaturatingAdd(bytes, SaturatingMultiply(part.outer * part.row_bytes,
                                                    rows_per_message_));
  };
  add(output_);
  if (log_sum_exp_) add(*log_sum_exp_);
  return bytes;
}

int64_t AnswerRows::held_bytes() const {
  // One is put together while gRPC may still hold the one before; floats are
  // converted from other memory.
  const int64_t messages = SaturatingAdd(
      message_bytes(), SaturatingAdd(message_bytes(), message_bytes()));
  int64_t bytes = SaturatingAdd(messages, output_.spec.num_bytes());
  if (log_sum_exp_)
    bytes = SaturatingAdd(bytes, log_sum_exp_->spec.num_bytes());
  return bytes;
}

AttentionOutputs AnswerRows::Allocate(BufferPool& pool) {
  AttentionOutputs outputs;
  output_.memory = pool.Allocate(output_.spec.num_bytes());
  outputs.output = output_.memory.data();
  if (log_sum_exp_) {
    log_sum_exp_->memory = pool.Allocate(log_sum_exp_->spec.num_bytes());
    outputs.log_sum_exp = log_sum_exp_->memory.data();
  }
  return outputs;
}

grpc::ByteBuffer AnswerRows::Encode(int64_t begin, int64_t end,
                                    const std::optional<v1::Timing>& timing,
                                    BufferPool& pool) const {
  wire::MessageWriter message;
  const auto add = [&](int field, const Part& part) {
    TensorSpec spec = part.spec;
    spec.shape[part.axis] = end - begin;
    wire::InPlaceTensor tensor(field, spec, float_values_);
    auto* target = static_cast<std::byte*>(tensor.Allocate(pool));
    const int64_t bytes = (end - begin) * part.row_bytes;
    for (int64_t i = 0; i < part.outer && bytes > 0; ++i) {
      std::memcpy(target,
                  part.memory.data() + (i * rows_ + begin) * part.row_bytes,
                  bytes);
      target += bytes;
    }
    std::move(tensor).Write(message);
  };
  if (begin < end || rows_ == 0) {
    add(StreamAttentionResponse::kOutputFieldNumber, output_);
    if (log_sum_exp_) {
      add(StreamAttentionResponse::kLogSumExpFieldNumber, *log_sum_exp_);
    }
  }
  if (timing) {
    message.Message(StreamAttentionResponse::kTimingFieldNumber, *timing);
  }
  return std::move(message).Finish();
}

}  // namespace attention::server
