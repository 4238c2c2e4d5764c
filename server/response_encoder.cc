#include "server/response_encoder.h"

#include <optional>
#include <utility>

#include "base/saturating.h"
#include "wire/data_type.h"
#include "wire/message_writer.h"
#include "wire/tensor_fields.h"

namespace attention::server {
namespace {

using v1::ComputeAttentionResponse;

// An upper bound of a Tensor with a place instead of a payload.
constexpr int64_t kSharedTensorBytes = 200;

}  // namespace

ResponseEncoder::ResponseEncoder(const AttentionPlan& plan, bool float_values,
                                 const OutputPlaces& outputs) {
  const auto add = [&](int field, const std::optional<TensorSpec>& spec,
                       const SharedPlace& place,
                       void* AttentionOutputs::* target) {
    if (!spec) return;
    if (place.region != nullptr) {
      parts_.push_back({SharedTensor{field, *spec, place}, target});
      bytes_ = SaturatingAdd(bytes_, kSharedTensorBytes);
      written_bytes_ = SaturatingAdd(written_bytes_, spec->num_bytes());
      return;
    }
    wire::InPlaceTensor tensor(field, *spec, float_values);
    bytes_ = SaturatingAdd(bytes_, tensor.bytes());
    written_bytes_ = SaturatingAdd(written_bytes_, tensor.bytes());
    held_bytes_ = SaturatingAdd(held_bytes_, tensor.held_bytes());
    parts_.push_back({std::move(tensor), target});
  };
  add(ComputeAttentionResponse::kOutputFieldNumber, plan.output, outputs.output,
      &AttentionOutputs::output);
  add(ComputeAttentionResponse::kLogSumExpFieldNumber, plan.log_sum_exp,
      outputs.log_sum_exp, &AttentionOutputs::log_sum_exp);
  add(ComputeAttentionResponse::kScoresFieldNumber, plan.scores, outputs.scores,
      &AttentionOutputs::scores);
  add(ComputeAttentionResponse::kPresentKeyFieldNumber, plan.present_key,
      outputs.present_key, &AttentionOutputs::present_key);
  add(ComputeAttentionResponse::kPresentValueFieldNumber, plan.present_value,
      outputs.present_value, &AttentionOutputs::present_value);
}

void ResponseEncoder::SharedTensor::Write(wire::MessageWriter& message) const {
  wire::MessageWriter tensor =
      wire::StartTensor(wire::ToWire(spec.type), spec.shape);
  wire::WriteSharedMemory(v1::Tensor::kSharedMemoryFieldNumber, place.id,
                          place.offset, tensor);
  message.Message(field, std::move(tensor));
}

AttentionOutputs ResponseEncoder::Allocate(BufferPool& pool) {
  AttentionOutputs outputs;
  for (Part& part : parts_) {
    auto* const in_place = std::get_if<wire::InPlaceTensor>(&part.tensor);
    outputs.*part.target =
        in_place != nullptr ? in_place->Allocate(pool)
                            : std::get<SharedTensor>(part.tensor).place.data();
  }
  return outputs;
}

wire::MessageWriter ResponseEncoder::Finish(const v1::Timing& timing) {
  wire::MessageWriter message = Finish();
  message.Message(ComputeAttentionResponse::kTimingFieldNumber, timing);
  return message;
}

wire::MessageWriter ResponseEncoder::Finish() {
  wire::MessageWriter message;
  for (Part& part : parts_) {
    std::visit([&](auto& tensor) { std::move(tensor).Write(message); },
               part.tensor);
  }
  return message;
}

std::vector<wire::InPlaceTensor> ResponseEncoder::TakeTensors() {
  std::vector<wire::InPlaceTensor> tensors;
  tensors.reserve(parts_.size());
  for (Part& part : parts_) {
    tensors.push_back(std::move(std::get<wire::InPlaceTensor>(part.tensor)));
  }
  return tensors;
}

}  // namespace attention::server
