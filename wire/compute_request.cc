#include "wire/compute_request.h"

#include <optional>

#include "absl/strings/str_cat.h"
#include "base/field_error.h"

namespace attention::wire {

using v1::ComputeAttentionRequest;

namespace {

void DecodeOutputs(MessageReader& reader, OutputMemoryFields* outputs) {
  std::optional<MessageReader> message = reader.Message();
  if (!message) return;
  outputs->present = true;
  while (message->Next()) {
    switch (message->field()) {
      case v1::OutputMemory::kOutputFieldNumber:
        DecodeSharedMemory(*message, &outputs->output);
        break;
      case v1::OutputMemory::kLogSumExpFieldNumber:
        DecodeSharedMemory(*message, &outputs->log_sum_exp);
        break;
      case v1::OutputMemory::kScoresFieldNumber:
        DecodeSharedMemory(*message, &outputs->scores);
        break;
      case v1::OutputMemory::kPresentKeyFieldNumber:
        DecodeSharedMemory(*message, &outputs->present_key);
        break;
      case v1::OutputMemory::kPresentValueFieldNumber:
        DecodeSharedMemory(*message, &outputs->present_value);
        break;
      default:
        message->Skip();
    }
  }
}

}  // namespace

void RequestDecoder::Decode(MessageReader& reader, RequestFields* fields) {
  const auto list = [&](absl::string_view field, std::vector<int64_t>* list) {
    reader.Integers(absl::StrCat(prefix_, field), most_numbers_, list);
  };
  while (reader.Next()) {
    switch (reader.field()) {
      case ComputeAttentionRequest::kQueryFieldNumber:
        DecodeTensor(reader, &fields->query);
        break;
      case ComputeAttentionRequest::kKeyFieldNumber:
        DecodeTensor(reader, &fields->key);
        break;
      case ComputeAttentionRequest::kValueFieldNumber:
        DecodeTensor(reader, &fields->value);
        break;
      case ComputeAttentionRequest::kMaskFieldNumber:
        DecodeTensor(reader, &fields->mask);
        break;
      case ComputeAttentionRequest::kPastKeyFieldNumber:
        DecodeTensor(reader, &fields->past_key);
        break;
      case ComputeAttentionRequest::kPastValueFieldNumber:
        DecodeTensor(reader, &fields->past_value);
        break;
      case ComputeAttentionRequest::kIndicesFieldNumber:
        DecodeTensor(reader, &fields->indices);
        break;
      case ComputeAttentionRequest::kSinksFieldNumber:
        DecodeTensor(reader, &fields->sinks);
        break;
      case ComputeAttentionRequest::kValidLengthsFieldNumber:
        list("valid_lengths", &fields->valid_lengths);
        break;
      case ComputeAttentionRequest::kQueryStartsFieldNumber:
        list("query_starts", &fields->query_starts);
        break;
      case ComputeAttentionRequest::kKeyStartsFieldNumber:
        list("key_starts", &fields->key_starts);
        break;
      case ComputeAttentionRequest::kOptionsFieldNumber:
        options_.Decode(reader, &fields->options);
        break;
      case ComputeAttentionRequest::kOutputsFieldNumber:
        DecodeOutputs(reader, &fields->outputs);
        break;
      default:
        reader.Skip();
    }
  }
}

absl::StatusOr<RequestFields> DecodeRequest(
    absl::Span<const grpc::Slice> slices, BufferPool& pool, MemoryMeter& meter,
    size_t most_numbers) {
  Decoding decoding("request", "attention.v1.ComputeAttentionRequest", pool,
                    meter);
  MessageReader reader(SliceReader(slices), decoding);
  RequestFields fields;
  RequestDecoder("", most_numbers).Decode(reader, &fields);
  if (!decoding.ok()) return decoding.status();
  return fields;
}

}  // namespace attention::wire
