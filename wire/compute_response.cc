#include "wire/compute_response.h"

#include "wire/message_reader.h"
#include "wire/slice_reader.h"

namespace attention::wire {
namespace {

using v1::ComputeAttentionResponse;

void DecodeFields(MessageReader& reader, ResponseFields* fields) {
  SliceReader timing;
  while (reader.Next()) {
    switch (reader.field()) {
      case ComputeAttentionResponse::kOutputFieldNumber:
        DecodeTensor(reader, &fields->output);
        break;
      case ComputeAttentionResponse::kLogSumExpFieldNumber:
        DecodeTensor(reader, &fields->log_sum_exp);
        break;
      case ComputeAttentionResponse::kScoresFieldNumber:
        DecodeTensor(reader, &fields->scores);
        break;
      case ComputeAttentionResponse::kPresentKeyFieldNumber:
        DecodeTensor(reader, &fields->present_key);
        break;
      case ComputeAttentionResponse::kPresentValueFieldNumber:
        DecodeTensor(reader, &fields->present_value);
        break;
      case ComputeAttentionResponse::kTimingFieldNumber:
        if (reader.Bytes(&timing)) reader.Merge(timing, &fields->timing);
        break;
      default:
        reader.Skip();
    }
  }
}

}  // namespace

absl::StatusOr<ResponseFields> DecodeResponse(
    absl::Span<const grpc::Slice> slices, BufferPool& pool,
    MemoryMeter& meter) {
  Decoding decoding("answer", "attention.v1.ComputeAttentionResponse", pool,
                    meter);
  MessageReader reader(SliceReader(slices), decoding);
  ResponseFields fields;
  DecodeFields(reader, &fields);
  if (!decoding.ok()) return decoding.status();
  return fields;
}

}  // namespace attention::wire
