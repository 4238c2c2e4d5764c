#include "wire/session_request.h"

#include <algorithm>

#include "attention/v1/session.pb.h"
#include "wire/message_reader.h"
#include "wire/options_decoder.h"

namespace attention::wire {
namespace {

using v1::AppendKeyValuesRequest;
using v1::AttendRequest;

void DecodeId(MessageReader& reader, std::string* id) {
  SliceReader bytes;
  if (!reader.Bytes(&bytes)) return;
  id->resize(std::min(bytes.remaining(), kMaxIdBytes + 1));
  bytes.ReadBytes(id->data(), id->size());
}

}  // namespace

absl::StatusOr<AppendFields> DecodeAppendRequest(
    absl::Span<const grpc::Slice> slices, BufferPool& pool,
    MemoryMeter& meter) {
  Decoding decoding("request", "attention.v1.AppendKeyValuesRequest", pool,
                    meter);
  MessageReader reader(SliceReader(slices), decoding);
  AppendFields fields;
  while (reader.Next()) {
    switch (reader.field()) {
      case AppendKeyValuesRequest::kIdFieldNumber:
        DecodeId(reader, &fields.where.id);
        break;
      case AppendKeyValuesRequest::kLayerFieldNumber:
        reader.Integer(&fields.where.layer);
        break;
      case AppendKeyValuesRequest::kExpectedLengthFieldNumber:
        reader.Integer(&fields.where.expected_length);
        break;
      case AppendKeyValuesRequest::kRequestIdFieldNumber:
        DecodeId(reader, &fields.request_id);
        break;
      case AppendKeyValuesRequest::kKeyFieldNumber:
        DecodeTensor(reader, &fields.key);
        break;
      case AppendKeyValuesRequest::kValueFieldNumber:
        DecodeTensor(reader, &fields.value);
        break;
      default:
        reader.Skip();
    }
  }
  if (!decoding.ok()) return decoding.status();
  return fields;
}

absl::StatusOr<AttendFields> DecodeAttendRequest(
    absl::Span<const grpc::Slice> slices, BufferPool& pool,
    MemoryMeter& meter) {
  Decoding decoding("request", "attention.v1.AttendRequest", pool, meter);
  MessageReader reader(SliceReader(slices), decoding);
  OptionsDecoder options("options");
  AttendFields fields;
  while (reader.Next()) {
    switch (reader.field()) {
      case AttendRequest::kIdFieldNumber:
        DecodeId(reader, &fields.where.id);
        break;
      case AttendRequest::kLayerFieldNumber:
        reader.Integer(&fields.where.layer);
        break;
      case AttendRequest::kExpectedLengthFieldNumber:
        reader.Integer(&fields.where.expected_length);
        break;
      case AttendRequest::kQueryFieldNumber:
        DecodeTensor(reader, &fields.query);
        break;
      case AttendRequest::kMaskFieldNumber:
        DecodeTensor(reader, &fields.mask);
        break;
      case AttendRequest::kOptionsFieldNumber:
        options.Decode(reader, &fields.options);
        break;
      case AttendRequest::kNotCausalFieldNumber: {
        int64_t flag = fields.not_causal;
        reader.Integer(&flag);
        fields.not_causal = flag != 0;
        break;
      }
      default:
        reader.Skip();
    }
  }
  if (!decoding.ok()) return decoding.status();
  return fields;
}

}  // namespace attention::wire
