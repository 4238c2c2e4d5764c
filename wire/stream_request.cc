#include "wire/stream_request.h"

#include <optional>

#include "attention/v1/attention.pb.h"

namespace attention::wire {
namespace {

using v1::KeyValueChunk;
using v1::StreamAttentionRequest;

void DecodeChunk(MessageReader& reader, ChunkFields* chunk) {
  while (reader.Next()) {
    switch (reader.field()) {
      case KeyValueChunk::kKeyFieldNumber:
        DecodeTensor(reader, &chunk->key);
        break;
      case KeyValueChunk::kValueFieldNumber:
        DecodeTensor(reader, &chunk->value);
        break;
      case KeyValueChunk::kMaskFieldNumber:
        DecodeTensor(reader, &chunk->mask);
        break;
      default:
        reader.Skip();
    }
  }
}

// A member of the oneof: one that comes adds to what is there of it, and takes
// the place of the other.
template <typename Fields>
Fields& Member(StreamRequestFields& fields, Decoding& decoding,
               int64_t taken_before) {
  if (auto* present = std::get_if<Fields>(&fields)) return *present;
  Fields& added = fields.emplace<Fields>();
  decoding.Free(decoding.taken() - taken_before);
  return added;
}

}  // namespace

absl::StatusOr<StreamRequestFields> DecodeStreamRequest(
    absl::Span<const grpc::Slice> slices, BufferPool& pool, MemoryMeter& meter,
    size_t most_numbers) {
  Decoding decoding("message", "attention.v1.StreamAttentionRequest", pool,
                    meter);
  MessageReader reader(SliceReader(slices), decoding);
  RequestDecoder header("header", most_numbers);
  StreamRequestFields fields;
  const int64_t taken_before = decoding.taken();
  while (reader.Next()) {
    const int field = reader.field();
    if (field != StreamAttentionRequest::kHeaderFieldNumber &&
        field != StreamAttentionRequest::kChunkFieldNumber) {
      reader.Skip();
      continue;
    }
    std::optional<MessageReader> message = reader.Message();
    if (!message) continue;
    if (field == StreamAttentionRequest::kHeaderFieldNumber) {
      header.Decode(*message,
                    &Member<RequestFields>(fields, decoding, taken_before));
    } else {
      DecodeChunk(*message,
                  &Member<ChunkFields>(fields, decoding, taken_before));
    }
  }
  if (!decoding.ok()) return decoding.status();
  return fields;
}

}  // namespace attention::wire
