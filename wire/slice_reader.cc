#include "wire/slice_reader.h"

#include <algorithm>
#include <cstring>
#include <limits>

namespace attention::wire {
namespace {

constexpr int kMaxVarintBytes = 10;
// Tags and lengths are 32 bits wide.
constexpr int kMaxVarint32Bytes = 5;
// protobuf's parser keeps a margin below 2^31.
constexpr uint64_t kMaxLength = std::numeric_limits<int32_t>::max() - 16;

}  // namespace

SliceReader::SliceReader(absl::Span<const grpc::Slice> slices)
    : next_(slices.data()) {
  for (const grpc::Slice& slice : slices) remaining_ += slice.size();
}

void SliceReader::NextSlice() {
  while (available_ == 0) {
    position_ = next_->begin();
    available_ = next_->size();
    ++next_;
  }
}

absl::Span<const uint8_t> SliceReader::FirstPiece() const {
  if (remaining_ == 0) return {};
  SliceReader reader = *this;
  reader.NextSlice();
  return {reader.position_, std::min(reader.available_, remaining_)};
}

bool SliceReader::ReadByte(uint8_t* byte) {
  if (remaining_ == 0) return false;
  NextSlice();
  *byte = *position_++;
  --available_;
  --remaining_;
  return true;
}

bool SliceReader::ReadVarint(uint64_t* value) {
  *value = 0;
  for (int i = 0; i < kMaxVarintBytes; ++i) {
    uint8_t byte;
    if (!ReadByte(&byte)) return false;
    *value |= static_cast<uint64_t>(byte & 0x7f) << (7 * i);
    if (byte < 0x80) return true;
  }
  return false;
}

bool SliceReader::ReadFixed32(uint32_t* value) {
  uint8_t bytes[4];
  if (!ReadBytes(bytes, sizeof(bytes))) return false;
  *value = 0;
  for (int i = 0; i < 4; ++i)
    *value |= static_cast<uint32_t>(bytes[i]) << 8 * i;
  return true;
}

bool SliceReader::ReadTag(Tag* tag) {
  uint32_t value = 0;
  for (int i = 0;; ++i) {
    uint8_t byte;
    if (i == kMaxVarint32Bytes || !ReadByte(&byte)) return false;
    // Bits past the 32nd are dropped, as protobuf's parser does.
    value |= static_cast<uint32_t>(static_cast<uint64_t>(byte & 0x7f) << 7 * i);
    if (byte < 0x80) break;
  }
  tag->field = value >> 3;
  tag->type = static_cast<WireType>(value & 7);
  return tag->field != 0 && (value & 7) <= 5;
}

bool SliceReader::ReadLength(size_t* length) {
  uint64_t value = 0;
  for (int i = 0;; ++i) {
    uint8_t byte;
    if (i == kMaxVarint32Bytes || !ReadByte(&byte)) return false;
    value |= static_cast<uint64_t>(byte & 0x7f) << 7 * i;
    if (byte < 0x80) break;
  }
  *length = value;
  return value <= kMaxLength && value <= remaining_;
}

bool SliceReader::ReadLengthDelimited(SliceReader* bytes) {
  size_t length;
  if (!ReadLength(&length)) return false;
  *bytes = *this;
  bytes->remaining_ = length;
  return Skip(length);
}

bool SliceReader::ReadBytes(void* target, size_t count) {
  if (count > remaining_) return false;
  auto* out = static_cast<uint8_t*>(target);
  while (count > 0) {
    NextSlice();
    const size_t step = std::min(count, available_);
    std::memcpy(out, position_, step);
    out += step;
    position_ += step;
    available_ -= step;
    remaining_ -= step;
    count -= step;
  }
  return true;
}

bool SliceReader::Skip(size_t count) {
  if (count > remaining_) return false;
  remaining_ -= count;
  while (count > 0) {
    NextSlice();
    const size_t step = std::min(count, available_);
    position_ += step;
    available_ -= step;
    count -= step;
  }
  return true;
}

bool SliceReader::SkipField(Tag tag, int depth, int64_t* tags) {
  uint64_t ignored;
  size_t length;
  switch (tag.type) {
    case WireType::kVarint:
      return ReadVarint(&ignored);
    case WireType::kFixed64:
      return Skip(8);
    case WireType::kFixed32:
      return Skip(4);
    case WireType::kLength:
      return ReadLength(&length) && Skip(length);
    case WireType::kStartGroup:
      return SkipGroup(tag.field, depth - 1, tags);
    case WireType::kEndGroup:
      return false;
  }
  return false;
}

bool SliceReader::SkipGroup(uint32_t field, int depth, int64_t* tags) {
  if (depth < 0) return false;
  Tag tag;
  while (--*tags >= 0 && ReadTag(&tag)) {
    if (tag.type == WireType::kEndGroup) return tag.field == field;
    if (!SkipField(tag, depth, tags)) return false;
  }
  return false;
}

}  // namespace attention::wire
