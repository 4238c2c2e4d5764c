#include "server/wire/request_decoder.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "google/protobuf/io/coded_stream.h"
#include "kernel/attention.h"

namespace attention::server::wire {
namespace {

// Payloads are copied as they are.
static_assert(std::endian::native == std::endian::little);

using v1::ComputeAttentionRequest;
using v1::Tensor;

// Hands each number of a repeated integer field to `sink`, packed or not, until
// it returns false. Nothing if the type is neither: then it is an unknown
// field.
template <typename Sink>
std::optional<bool> ReadIntegers(WireType type, SliceReader& reader,
                                 Sink sink) {
  uint64_t value;
  if (type == WireType::kVarint) {
    if (!reader.ReadVarint(&value)) return false;
    return sink(static_cast<int64_t>(value));
  }
  if (type != WireType::kLength) return std::nullopt;
  SliceReader packed;
  if (!reader.ReadLengthDelimited(&packed)) return false;
  while (packed.remaining() > 0) {
    if (!packed.ReadVarint(&value) || !sink(static_cast<int64_t>(value))) {
      return false;
    }
  }
  return true;
}

class Decoder {
 public:
  Decoder(absl::Span<const grpc::Slice> slices, BufferPool& pool,
          MemoryMeter& meter, size_t most_numbers)
      : reader_(slices),
        pool_(pool),
        meter_(meter),
        most_numbers_(most_numbers) {}

  absl::StatusOr<RequestFields> Decode() {
    while (reader_.remaining() > 0) {
      Tag tag;
      if (!NextTag(reader_, &tag) || !DecodeField(tag)) {
        if (!error_.ok()) return error_;
        if (fields_left_ < 0) {
          return absl::InvalidArgumentError(
              absl::StrCat("the request has more than ", kMaxFields,
                           " fields, the most there may be"));
        }
        return absl::InvalidArgumentError(
            "the request is not a valid "
            "attention.v1.ComputeAttentionRequest message");
      }
    }
    return std::move(fields_);
  }

 private:
  bool NextTag(SliceReader& reader, Tag* tag) {
    return --fields_left_ >= 0 && reader.ReadTag(tag);
  }
  bool Skip(Tag tag) {
    return reader_.SkipField(tag, SliceReader::kMaxDepth, &fields_left_);
  }

  // False if so much memory must not be taken.
  bool Take(size_t bytes) {
    error_ = meter_.Take(static_cast<int64_t>(bytes));
    return error_.ok();
  }
  void Free(size_t bytes) { meter_.Free(static_cast<int64_t>(bytes)); }

  bool DecodeField(Tag tag) {
    switch (tag.field) {
      case ComputeAttentionRequest::kQueryFieldNumber:
        return DecodeTensor(tag, &fields_.query);
      case ComputeAttentionRequest::kKeyFieldNumber:
        return DecodeTensor(tag, &fields_.key);
      case ComputeAttentionRequest::kValueFieldNumber:
        return DecodeTensor(tag, &fields_.value);
      case ComputeAttentionRequest::kMaskFieldNumber:
        return DecodeTensor(tag, &fields_.mask);
      case ComputeAttentionRequest::kPastKeyFieldNumber:
        return DecodeTensor(tag, &fields_.past_key);
      case ComputeAttentionRequest::kPastValueFieldNumber:
        return DecodeTensor(tag, &fields_.past_value);
      case ComputeAttentionRequest::kValidLengthsFieldNumber:
        return DecodeList(tag, "valid_lengths", &fields_.valid_lengths);
      case ComputeAttentionRequest::kQueryStartsFieldNumber:
        return DecodeList(tag, "query_starts", &fields_.query_starts);
      case ComputeAttentionRequest::kKeyStartsFieldNumber:
        return DecodeList(tag, "key_starts", &fields_.key_starts);
      case ComputeAttentionRequest::kOptionsFieldNumber:
        return DecodeOptions(tag);
      default:
        return Skip(tag);
    }
  }

  bool DecodeTensor(Tag tag, TensorFields* tensor) {
    if (tag.type != WireType::kLength) {
      return Skip(tag);
    }
    SliceReader message;
    if (!reader_.ReadLengthDelimited(&message)) return false;
    tensor->present = true;
    while (message.remaining() > 0) {
      Tag inner;
      if (!NextTag(message, &inner)) return false;
      if (!DecodeTensorField(inner, message, tensor)) return false;
    }
    return true;
  }

  bool DecodeTensorField(Tag tag, SliceReader& message, TensorFields* tensor) {
    switch (tag.field) {
      case Tensor::kDataTypeFieldNumber:
        if (tag.type == WireType::kVarint) {
          uint64_t number;
          if (!message.ReadVarint(&number)) return false;
          tensor->data_type = static_cast<int32_t>(number);
          return true;
        }
        break;
      case Tensor::kShapeFieldNumber: {
        const auto add = [&](int64_t dim) {
          if (tensor->rank++ < kMaxRank) tensor->shape.push_back(dim);
          return --fields_left_ >= 0;
        };
        if (auto read = ReadIntegers(tag.type, message, add)) return *read;
        break;
      }
      case Tensor::kDataFieldNumber:
        if (tag.type == WireType::kLength) {
          return message.ReadLengthDelimited(&tensor->data);
        }
        break;
      case Tensor::kFloatValuesFieldNumber:
        if (tag.type == WireType::kFixed32) {
          return AppendFloats(message, sizeof(float), 0, tensor);
        }
        if (tag.type == WireType::kLength) {
          SliceReader packed;
          if (!message.ReadLengthDelimited(&packed)) return false;
          return AppendFloats(packed, packed.remaining(), message.remaining(),
                              tensor);
        }
        break;
      default:
        break;
    }
    return message.SkipField(tag, SliceReader::kMaxDepth - 1, &fields_left_);
  }

  // Reads `bytes` of little-endian floats from `source`, which `left` more
  // bytes of the same tensor follow.
  bool AppendFloats(SliceReader& source, size_t bytes, size_t left,
                    TensorFields* tensor) {
    if (bytes % sizeof(float) != 0 || bytes > source.remaining()) return false;
    const size_t used = tensor->float_count * sizeof(float);
    if (used + bytes > tensor->float_values.capacity()) {
      // Doubles, but never beyond what the rest of the message could fill.
      const size_t most =
          used + source.remaining() + left + reader_.remaining();
      const size_t wanted = std::min(most, 2 * used + bytes);
      if (!Take(wanted)) return false;
      Buffer grown = pool_.Allocate(wanted);
      if (used > 0) {
        std::memcpy(grown.data(), tensor->float_values.data(), used);
      }
      Free(std::exchange(tensor->float_bytes, wanted));
      tensor->float_values = std::move(grown);
    }
    tensor->float_count += bytes / sizeof(float);
    return source.ReadBytes(tensor->float_values.data() + used, bytes);
  }

  bool DecodeList(Tag tag, absl::string_view field,
                  std::vector<int64_t>* list) {
    const auto add = [&](int64_t number) {
      if (list->size() == most_numbers_) {
        error_ =
            LimitError(field, absl::StrCat("got more than ", most_numbers_,
                                           " numbers, the most there are"));
        return false;
      }
      if (list->size() == list->capacity() && !Grow(list)) return false;
      list->push_back(number);
      return true;
    };
    const auto read = ReadIntegers(tag.type, reader_, add);
    return read ? *read : Skip(tag);
  }

  bool Grow(std::vector<int64_t>* list) {
    constexpr size_t kLeast = 16;
    const size_t before = list->capacity();
    const size_t wanted = std::min(most_numbers_, std::max(kLeast, 2 * before));
    if (!Take(wanted * sizeof(int64_t))) return false;
    list->reserve(wanted);
    Free(before * sizeof(int64_t));
    return true;
  }

  bool DecodeOptions(Tag tag) {
    if (tag.type != WireType::kLength) {
      return Skip(tag);
    }
    SliceReader message;
    if (!reader_.ReadLengthDelimited(&message)) return false;
    if (++options_parts_ > kMaxOptionsParts) {
      error_ =
          FieldError("options", absl::StrCat("got more than ", kMaxOptionsParts,
                                             " parts, the most there may be"));
      return false;
    }
    options_bytes_ += message.remaining();
    if (options_bytes_ > kMaxOptionsBytes) {
      error_ = LimitError(
          "options", absl::StrCat("got ", options_bytes_,
                                  " bytes, wanted at most ", kMaxOptionsBytes));
      return false;
    }
    if (!Take(message.remaining() * kMemoryPerOptionsByte)) return false;
    std::string bytes(message.remaining(), '\0');
    if (!message.ReadBytes(bytes.data(), bytes.size())) return false;
    google::protobuf::io::CodedInputStream stream(
        reinterpret_cast<const uint8_t*>(bytes.data()),
        static_cast<int>(bytes.size()));
    stream.SetRecursionLimit(SliceReader::kMaxDepth - 1);
    return fields_.options.MergeFromCodedStream(&stream) &&
           stream.ConsumedEntireMessage();
  }

  int64_t fields_left_ = kMaxFields;
  SliceReader reader_;
  BufferPool& pool_;
  MemoryMeter& meter_;
  const size_t most_numbers_;
  RequestFields fields_;
  size_t options_bytes_ = 0;
  int64_t options_parts_ = 0;
  // Why a well-formed message is refused.
  absl::Status error_;
};

}  // namespace

absl::StatusOr<RequestFields> DecodeRequest(
    absl::Span<const grpc::Slice> slices, BufferPool& pool, MemoryMeter& meter,
    size_t most_numbers) {
  return Decoder(slices, pool, meter, most_numbers).Decode();
}

}  // namespace attention::server::wire
