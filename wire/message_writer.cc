#include "wire/message_writer.h"

#include <cstring>
#include <utility>

#include "google/protobuf/io/coded_stream.h"
#include "wire/buffer_slice.h"
#include "wire/slice_reader.h"

namespace attention::wire {
namespace {

using google::protobuf::io::CodedOutputStream;

constexpr size_t kMaxVarintBytes = 10;

uint64_t TagOf(int field, WireType type) {
  return static_cast<uint64_t>(field) << 3 | static_cast<uint64_t>(type);
}

}  // namespace

void MessageWriter::Varint(uint64_t value) {
  uint8_t bytes[kMaxVarintBytes];
  const uint8_t* end = CodedOutputStream::WriteVarint64ToArray(value, bytes);
  small_.append(reinterpret_cast<const char*>(bytes), end - bytes);
  bytes_ += end - bytes;
}

void MessageWriter::Header(int field, size_t bytes) {
  Varint(TagOf(field, WireType::kLength));
  Varint(bytes);
}

void MessageWriter::Integer(int field, int64_t number) {
  if (number != 0) OptionalInteger(field, number);
}

void MessageWriter::OptionalInteger(int field, int64_t number) {
  Varint(TagOf(field, WireType::kVarint));
  Varint(static_cast<uint64_t>(number));
}

void MessageWriter::Integers(int field, absl::Span<const int64_t> numbers) {
  if (numbers.empty()) return;
  size_t bytes = 0;
  for (int64_t number : numbers) {
    bytes += CodedOutputStream::VarintSize64(static_cast<uint64_t>(number));
  }
  Header(field, bytes);
  for (int64_t number : numbers) Varint(static_cast<uint64_t>(number));
}

void MessageWriter::Message(int field,
                            const google::protobuf::MessageLite& message) {
  const size_t size = message.ByteSizeLong();
  Header(field, size);
  const size_t begin = small_.size();
  small_.resize(begin + size);
  // Unlike AppendToString() it cannot fail.
  auto* bytes = reinterpret_cast<uint8_t*>(small_.data() + begin);
  bytes_ += message.SerializeWithCachedSizesToArray(bytes) - bytes;
}

void MessageWriter::Message(int field, MessageWriter message) {
  Header(field, message.bytes_);
  bytes_ += message.bytes_;
  for (Piece& piece : message.pieces_) {
    piece.after += small_.size();
    pieces_.push_back(std::move(piece));
  }
  small_ += message.small_;
}

void MessageWriter::Copy(int field, absl::string_view bytes) {
  if (bytes.empty()) return;
  Header(field, bytes.size());
  small_.append(bytes.data(), bytes.size());
  bytes_ += bytes.size();
}

void MessageWriter::Borrow(int field, grpc::Slice bytes) {
  const size_t size = bytes.size();
  if (size == 0) return;
  Header(field, size);
  bytes_ += size;
  pieces_.push_back({small_.size(), std::move(bytes)});
}

void MessageWriter::Borrow(int field, std::vector<grpc::Slice> bytes) {
  size_t size = 0;
  for (const grpc::Slice& slice : bytes) size += slice.size();
  if (size == 0) return;
  Header(field, size);
  bytes_ += size;
  for (grpc::Slice& slice : bytes) {
    pieces_.push_back({small_.size(), std::move(slice)});
  }
}

void MessageWriter::Place(int field, Payload bytes) {
  if (bytes.begin < bytes.end) PlaceElement(field, std::move(bytes));
}

void MessageWriter::PlaceElement(int field, Payload bytes) {
  const size_t size = bytes.end - bytes.begin;
  Header(field, size);
  if (size == 0) return;  // It may have no memory.
  bytes_ += size;
  pieces_.push_back({small_.size(), std::move(bytes)});
}

grpc::ByteBuffer MessageWriter::Finish() && {
  std::vector<grpc::Slice> slices;
  slices.reserve(2 * pieces_.size() + 1);
  // The payload in place that small fields may still be added to.
  Payload* last = nullptr;
  const auto flush = [&] {
    if (last == nullptr) return;
    slices.push_back(ToSlice(std::move(last->memory), last->begin, last->end));
    last = nullptr;
  };
  // A slice costs more than the copy of some bytes: what lies before or after a
  // payload in place goes into its memory if that has room.
  absl::string_view rest = small_;
  const auto write_small = [&](size_t size, Payload* next) {
    const absl::string_view bytes = rest.substr(0, size);
    rest.remove_prefix(size);
    if (next != nullptr && size <= next->begin) {
      next->begin -= size;
      std::memcpy(next->memory.data() + next->begin, bytes.data(), size);
    } else if (last != nullptr && size <= last->memory.capacity() - last->end) {
      std::memcpy(last->memory.data() + last->end, bytes.data(), size);
      last->end += size;
    } else if (size > 0) {
      flush();
      slices.emplace_back(bytes.data(), size);
    }
    flush();
  };
  for (Piece& piece : pieces_) {
    auto* placed = std::get_if<Payload>(&piece.payload);
    write_small(piece.after - (small_.size() - rest.size()), placed);
    last = placed;
    if (placed == nullptr) {
      slices.push_back(std::get<grpc::Slice>(std::move(piece.payload)));
    }
  }
  write_small(rest.size(), nullptr);
  return grpc::ByteBuffer(slices.data(), slices.size());
}

}  // namespace attention::wire
