#include "server/response_encoder.h"

#include <optional>
#include <utility>

#include "base/saturating.h"
#include "wire/message_writer.h"

namespace attention::server {
namespace {

using v1::ComputeAttentionResponse;

}  // namespace

ResponseEncoder::ResponseEncoder(const AttentionPlan& plan, bool float_values) {
  const auto add = [&](int field, const std::optional<TensorSpec>& spec,
                       void* AttentionOutputs::* target) {
    if (!spec) return;
    parts_.push_back({wire::InPlaceTensor(field, *spec, float_values), target});
    const wire::InPlaceTensor& tensor = parts_.back().tensor;
    bytes_ = SaturatingAdd(bytes_, tensor.bytes());
    held_bytes_ = SaturatingAdd(held_bytes_, tensor.held_bytes());
  };
  add(ComputeAttentionResponse::kOutputFieldNumber, plan.output,
      &AttentionOutputs::output);
  add(ComputeAttentionResponse::kLogSumExpFieldNumber, plan.log_sum_exp,
      &AttentionOutputs::log_sum_exp);
  add(ComputeAttentionResponse::kScoresFieldNumber, plan.scores,
      &AttentionOutputs::scores);
  add(ComputeAttentionResponse::kPresentKeyFieldNumber, plan.present_key,
      &AttentionOutputs::present_key);
  add(ComputeAttentionResponse::kPresentValueFieldNumber, plan.present_value,
      &AttentionOutputs::present_value);
}

AttentionOutputs ResponseEncoder::Allocate(BufferPool& pool) {
  AttentionOutputs outputs;
  for (Part& part : parts_) outputs.*part.target = part.tensor.Allocate(pool);
  return outputs;
}

grpc::ByteBuffer ResponseEncoder::Finish(const v1::Timing& timing) {
  wire::MessageWriter message;
  for (Part& part : parts_) std::move(part.tensor).Write(message);
  message.Message(ComputeAttentionResponse::kTimingFieldNumber, timing);
  return std::move(message).Finish();
}

}  // namespace attention::server
