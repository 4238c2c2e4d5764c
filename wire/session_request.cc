#include "wire/session_request.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "attention/v1/session.pb.h"
#include "base/field_error.h"
#include "wire/message_reader.h"
#include "wire/options_decoder.h"

namespace attention::wire {
namespace {

using v1::AppendKeyValuesRequest;
using v1::AttendRequest;
using v1::Shard;
using v1::StepItem;

void DecodeId(MessageReader& reader, std::string* id) {
  SliceReader bytes;
  if (!reader.Bytes(&bytes)) return;
  id->resize(std::min(bytes.remaining(), kMaxIdBytes + 1));
  bytes.ReadBytes(id->data(), id->size());
}

void DecodeFlag(MessageReader& reader, bool* flag) {
  int64_t number = *flag;
  reader.Integer(&number);
  *flag = number != 0;
}

void DecodeShard(MessageReader& reader, std::optional<ShardFields>* shard) {
  std::optional<MessageReader> message = reader.Message();
  if (!message) return;
  if (!*shard) shard->emplace();
  while (message->Next()) {
    switch (message->field()) {
      case Shard::kIndexFieldNumber:
        message->Integer(&(*shard)->index);
        break;
      case Shard::kCountFieldNumber:
        message->Integer(&(*shard)->count);
        break;
      case Shard::kBlocksPerRunFieldNumber:
        message->Integer(&(*shard)->blocks_per_run);
        break;
      case Shard::kTotalLengthFieldNumber:
        message->Integer(&(*shard)->total_length);
        break;
      default:
        message->Skip();
    }
  }
}

void DecodeItem(MessageReader& reader, absl::string_view path,
                StepFields* item) {
  OptionsDecoder options(absl::StrCat(path, ".options"));
  while (reader.Next()) {
    switch (reader.field()) {
      case StepItem::kIdFieldNumber:
        DecodeId(reader, &item->append.where.id);
        break;
      case StepItem::kIncarnationFieldNumber:
        reader.Integer(&item->append.where.incarnation);
        break;
      case StepItem::kLayerFieldNumber:
        reader.Integer(&item->append.where.layer);
        break;
      case StepItem::kExpectedLengthFieldNumber:
        reader.Integer(&item->append.where.expected_length);
        break;
      case StepItem::kRequestIdFieldNumber:
        DecodeId(reader, &item->append.request_id);
        break;
      case StepItem::kKeyFieldNumber:
        DecodeTensor(reader, &item->append.key);
        break;
      case StepItem::kValueFieldNumber:
        DecodeTensor(reader, &item->append.value);
        break;
      case StepItem::kQueryFieldNumber:
        DecodeTensor(reader, &item->attend.query);
        break;
      case StepItem::kMaskFieldNumber:
        DecodeTensor(reader, &item->attend.mask);
        break;
      case StepItem::kIndicesFieldNumber:
        DecodeTensor(reader, &item->attend.indices);
        break;
      case StepItem::kSinksFieldNumber:
        DecodeTensor(reader, &item->attend.sinks);
        break;
      case StepItem::kOptionsFieldNumber:
        options.Decode(reader, &item->attend.options);
        break;
      case StepItem::kNotCausalFieldNumber:
        DecodeFlag(reader, &item->attend.not_causal);
        break;
      case StepItem::kMaskBeginFieldNumber:
        reader.Integer(&item->attend.mask_begin);
        break;
      default:
        reader.Skip();
    }
  }
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
      case AppendKeyValuesRequest::kIncarnationFieldNumber:
        reader.Integer(&fields.where.incarnation);
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
      case AttendRequest::kIncarnationFieldNumber:
        reader.Integer(&fields.where.incarnation);
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
      case AttendRequest::kIndicesFieldNumber:
        DecodeTensor(reader, &fields.indices);
        break;
      case AttendRequest::kSinksFieldNumber:
        DecodeTensor(reader, &fields.sinks);
        break;
      case AttendRequest::kOptionsFieldNumber:
        options.Decode(reader, &fields.options);
        break;
      case AttendRequest::kNotCausalFieldNumber:
        DecodeFlag(reader, &fields.not_causal);
        break;
      case AttendRequest::kMaskBeginFieldNumber:
        reader.Integer(&fields.mask_begin);
        break;
      case AttendRequest::kShardFieldNumber:
        DecodeShard(reader, &fields.shard);
        break;
      default:
        reader.Skip();
    }
  }
  if (!decoding.ok()) return decoding.status();
  return fields;
}

absl::StatusOr<std::vector<StepFields>> DecodeStepRequest(
    absl::Span<const grpc::Slice> slices, BufferPool& pool, MemoryMeter& meter,
    size_t most) {
  Decoding decoding("message", "attention.v1.StepRequest", pool, meter);
  MessageReader reader(SliceReader(slices), decoding);
  std::vector<StepFields> items;
  const auto wrong_number = [&](absl::string_view got) {
    return FieldError("items",
                      absl::StrCat("got ", got, ", wanted 1 to ", most));
  };
  while (reader.Next()) {
    if (reader.field() != v1::StepRequest::kItemsFieldNumber) {
      reader.Skip();
      continue;
    }
    std::optional<MessageReader> message = reader.Message();
    if (!message) continue;
    if (items.size() == most) {
      decoding.Refuse(wrong_number("more"));
      break;
    }
    // Twice, while the list grows.
    if (!decoding.Take(2 * sizeof(StepFields))) break;
    const std::string path = absl::StrCat("items[", items.size(), "]");
    DecodeItem(*message, path, &items.emplace_back());
  }
  if (!decoding.ok()) return decoding.status();
  if (items.empty()) return wrong_number("none");
  return items;
}

}  // namespace attention::wire
