#include "wire/message_reader.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "base/field_error.h"
#include "google/protobuf/io/coded_stream.h"

namespace attention::wire {

// Floats are copied as they are.
static_assert(std::endian::native == std::endian::little);

absl::Status Decoding::status() const {
  if (!failed_) return absl::OkStatus();
  if (!error_.ok()) return error_;
  if (fields_left_ < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("the ", noun_, " has more than ", kMaxFields,
                     " fields, the most there may be"));
  }
  return absl::InvalidArgumentError(
      absl::StrCat("the ", noun_, " is not a valid ", message_, " message"));
}

void Decoding::Refuse(absl::Status error) {
  if (!failed_) error_ = std::move(error);
  failed_ = true;
}

bool Decoding::CountField() {
  if (--fields_left_ >= 0) return true;
  failed_ = true;
  return false;
}

bool Decoding::Take(size_t bytes) {
  absl::Status status = meter_.Take(static_cast<int64_t>(bytes));
  if (!status.ok()) Refuse(std::move(status));
  return ok();
}

bool MessageReader::Next() {
  return decoding_.ok() && bytes_.remaining() > 0 && decoding_.CountField() &&
         Check(bytes_.ReadTag(&tag_));
}

bool MessageReader::Check(bool well_formed) {
  if (!well_formed) decoding_.Malformed();
  return well_formed;
}

bool MessageReader::Is(WireType type) {
  if (tag_.type == type) return true;
  Skip();
  return false;
}

void MessageReader::Skip() {
  Check(bytes_.SkipField(tag_, depth_, &decoding_.fields_left_));
}

bool MessageReader::Bytes(SliceReader* bytes) {
  return Is(WireType::kLength) && Check(bytes_.ReadLengthDelimited(bytes));
}

std::optional<MessageReader> MessageReader::Message() {
  SliceReader message;
  if (!Bytes(&message)) return std::nullopt;
  return MessageReader(message, decoding_, depth_ - 1,
                       after_ + bytes_.remaining());
}

void MessageReader::Merge(SliceReader part,
                          google::protobuf::MessageLite* message) {
  if (!decoding_.Take(part.remaining() * kMemoryPerMessageByte)) return;
  // protobuf takes as much memory for a text as its length promises, up to
  // 50 MB, before it finds that the bytes end earlier.
  SliceReader fields = part;
  int64_t tags = static_cast<int64_t>(part.remaining());
  while (fields.remaining() > 0) {
    Tag tag;
    if (!Check(fields.ReadTag(&tag) &&
               fields.SkipField(tag, depth_ - 1, &tags))) {
      return;
    }
  }
  std::string bytes(part.remaining(), '\0');
  if (!Check(part.ReadBytes(bytes.data(), bytes.size()))) return;
  google::protobuf::io::CodedInputStream stream(
      reinterpret_cast<const uint8_t*>(bytes.data()),
      static_cast<int>(bytes.size()));
  stream.SetRecursionLimit(depth_ - 1);
  Check(message->MergeFromCodedStream(&stream) &&
        stream.ConsumedEntireMessage());
}

void MessageReader::Integers(absl::string_view path, size_t most,
                             std::vector<int64_t>* list) {
  Integers([&](int64_t number) {
    if (list->size() == most) {
      decoding_.Refuse(
          LimitError(path, absl::StrCat("got more than ", most,
                                        " numbers, the most there are")));
      return false;
    }
    if (list->size() == list->capacity() && !Grow(list, most)) return false;
    list->push_back(number);
    return true;
  });
}

bool MessageReader::Grow(std::vector<int64_t>* list, size_t most) {
  constexpr size_t kLeast = 16;
  const size_t before = list->capacity();
  const size_t wanted = std::min(most, std::max(kLeast, 2 * before));
  if (!decoding_.Take(wanted * sizeof(int64_t))) return false;
  list->reserve(wanted);
  decoding_.Free(before * sizeof(int64_t));
  return true;
}

void MessageReader::Double(std::optional<double>* number) {
  double value;
  if (Is(WireType::kFixed64) &&
      Check(bytes_.ReadBytes(&value, sizeof(value)))) {
    *number = value;
  }
}

void MessageReader::Fixed(WireType single, size_t size, FloatList* list) {
  if (tag_.type == single) return AppendFixed(bytes_, size, size, 0, list);
  SliceReader packed;
  if (!Bytes(&packed)) return;
  AppendFixed(packed, size, packed.remaining(), bytes_.remaining(), list);
}

void MessageReader::AppendFixed(SliceReader& source, size_t size, size_t bytes,
                                size_t left, FloatList* list) {
  if (!Check(bytes % size == 0 && bytes <= source.remaining())) return;
  const size_t used = list->count * size;
  if (used + bytes > list->values.capacity()) {
    // Doubles, but never beyond what the rest of the message could fill.
    const size_t most = used + source.remaining() + left + after_;
    const size_t wanted = std::min(most, 2 * used + bytes);
    if (!decoding_.Take(wanted)) return;
    Buffer grown = decoding_.pool().Allocate(wanted);
    if (used > 0) std::memcpy(grown.data(), list->values.data(), used);
    decoding_.Free(std::exchange(list->bytes, wanted));
    list->values = std::move(grown);
  }
  list->count += bytes / size;
  Check(source.ReadBytes(list->values.data() + used, bytes));
}

}  // namespace attention::wire
