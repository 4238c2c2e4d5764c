#include "attention/internal/compute_messages.h"

#include <utility>

#include "base/buffer_pool.h"
#include "wire/compute_response.h"
#include "wire/memory_meter.h"
#include "wire/message_writer.h"
#include "wire/tensor_fields.h"

namespace attention::internal {
namespace {

using v1::ComputeAttentionRequest;

void EncodeOutputs(const SharedPlaces& places, wire::MessageWriter& message) {
  wire::MessageWriter outputs;
  const auto add = [&](int field, const SharedPlaces::Output& place) {
    if (place.region.empty()) return;
    wire::WriteSharedMemory(field, place.region, place.offset, outputs);
  };
  add(v1::OutputMemory::kOutputFieldNumber, places.output);
  add(v1::OutputMemory::kLogSumExpFieldNumber, places.log_sum_exp);
  add(v1::OutputMemory::kScoresFieldNumber, places.scores);
  add(v1::OutputMemory::kPresentKeyFieldNumber, places.present_key);
  add(v1::OutputMemory::kPresentValueFieldNumber, places.present_value);
  if (outputs.bytes() == 0) return;
  message.Message(ComputeAttentionRequest::kOutputsFieldNumber,
                  std::move(outputs));
}

}  // namespace

wire::MessageWriter WriteRequest(const ComputeRequest& request, Lease& lease,
                                 const SharedPlaces& places) {
  wire::MessageWriter message;
  const auto add = [&](int field, const TensorSpan& tensor,
                       const SharedPlaces::Input& place) {
    WriteTensor(field, tensor, place, lease, message);
  };
  add(ComputeAttentionRequest::kQueryFieldNumber, request.query, places.query);
  add(ComputeAttentionRequest::kKeyFieldNumber, request.key, places.key);
  add(ComputeAttentionRequest::kValueFieldNumber, request.value, places.value);
  if (request.mask) {
    add(ComputeAttentionRequest::kMaskFieldNumber, *request.mask, places.mask);
  }
  if (request.past_key) {
    add(ComputeAttentionRequest::kPastKeyFieldNumber, *request.past_key,
        places.past_key);
  }
  if (request.past_value) {
    add(ComputeAttentionRequest::kPastValueFieldNumber, *request.past_value,
        places.past_value);
  }
  message.Integers(ComputeAttentionRequest::kValidLengthsFieldNumber,
                   request.valid_lengths);
  message.Integers(ComputeAttentionRequest::kQueryStartsFieldNumber,
                   request.query_starts);
  message.Integers(ComputeAttentionRequest::kKeyStartsFieldNumber,
                   request.key_starts);
  message.Message(ComputeAttentionRequest::kOptionsFieldNumber,
                  request.options);
  EncodeOutputs(places, message);
  if (request.indices) {
    add(ComputeAttentionRequest::kIndicesFieldNumber, *request.indices,
        places.indices);
  }
  if (request.sinks) {
    add(ComputeAttentionRequest::kSinksFieldNumber, *request.sinks,
        places.sinks);
  }
  return message;
}

grpc::ByteBuffer EncodeRequest(const ComputeRequest& request, Lease& lease,
                               const SharedPlaces& places) {
  return WriteRequest(request, lease, places).Finish();
}

absl::StatusOr<ComputeResult> DecodeResponse(const grpc::ByteBuffer& message,
                                             const ComputeOutputs& outputs,
                                             const SharedPlaces& places) {
  AnswerTensors tensors(message);
  wire::MemoryMeter meter;
  absl::StatusOr<wire::ResponseFields> fields =
      wire::DecodeResponse(tensors.slices(), *BufferPool::Create(0), meter);
  if (!fields.ok()) return MalformedAnswer(fields.status());
  ComputeResult result;
  tensors.Take("output", fields->output, places.output, outputs.output,
               &result.output);
  tensors.Take("log_sum_exp", fields->log_sum_exp, places.log_sum_exp,
               outputs.log_sum_exp, &result.log_sum_exp);
  tensors.Take("scores", fields->scores, places.scores, outputs.scores,
               &result.scores);
  tensors.Take("present_key", fields->present_key, places.present_key,
               outputs.present_key, &result.present_key);
  tensors.Take("present_value", fields->present_value, places.present_value,
               outputs.present_value, &result.present_value);
  if (!tensors.status().ok()) return tensors.status();
  result.timing = std::move(fields->timing);
  return result;
}

}  // namespace attention::internal
