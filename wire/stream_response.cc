#include "wire/stream_response.h"

#include "wire/message_reader.h"
#include "wire/slice_reader.h"

namespace attention::wire {
namespace {

using v1::StreamAttentionResponse;

void DecodeFields(MessageReader& reader, StreamResponseFields* fields) {
  SliceReader timing;
  while (reader.Next()) {
    switch (reader.field()) {
      case StreamAttentionResponse::kOutputFieldNumber:
        DecodeTensor(reader, &fields->output);
        break;
      case StreamAttentionResponse::kLogSumExpFieldNumber:
        DecodeTensor(reader, &fields->log_sum_exp);
        break;
      case StreamAttentionResponse::kTimingFieldNumber:
        if (!fields->timing) fields->timing.emplace();
        if (reader.Bytes(&timing)) reader.Merge(timing, &*fields->timing);
        break;
      default:
        reader.Skip();
    }
  }
}

}  // namespace

absl::StatusOr<StreamResponseFields> DecodeStreamResponse(
    absl::Span<const grpc::Slice> slices, BufferPool& pool,
    MemoryMeter& meter) {
  Decoding decoding("answer", "attention.v1.StreamAttentionResponse", pool,
                    meter);
  MessageReader reader(SliceReader(slices), decoding);
  StreamResponseFields fields;
  DecodeFields(reader, &fields);
  if (!decoding.ok()) return decoding.status();
  return fields;
}

}  // namespace attention::wire
