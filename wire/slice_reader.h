// Reads protobuf's wire format from the slices of a received message, in place.
#ifndef ATTENTION_WIRE_SLICE_READER_H_
#define ATTENTION_WIRE_SLICE_READER_H_

#include <cstddef>
#include <cstdint>

#include "absl/types/span.h"
#include "grpcpp/support/slice.h"

namespace attention::wire {

// Low three bits of a tag.
enum class WireType : uint8_t {
  kVarint = 0,
  kFixed64 = 1,
  kLength = 2,
  kStartGroup = 3,
  kEndGroup = 4,
  kFixed32 = 5,
};

// Number and type of a field.
struct Tag {
  uint32_t field = 0;
  WireType type = WireType::kVarint;
};

// A forward position in a run of bytes scattered over slices, with an end.
// Copies are cheap and independent: a copy remembers a place to come back to.
// Does not own the slices, which must outlive it and every copy. Accepts
// exactly what protobuf's own parser accepts.
//
// Every Read and Skip returns whether the bytes were there and well formed;
// once one has failed the position is unspecified.
class SliceReader {
 public:
  // Groups may nest this deep, as in protobuf's parser.
  static constexpr int kMaxDepth = 100;

  // An empty run.
  SliceReader() = default;
  explicit SliceReader(absl::Span<const grpc::Slice> slices);

  // Bytes up to the end.
  size_t remaining() const { return remaining_; }

  // The next bytes, as far as they lie in one slice; empty at the end only.
  absl::Span<const uint8_t> FirstPiece() const;

  bool ReadVarint(uint64_t* value);
  bool ReadFixed32(uint32_t* value);
  // Field numbers of 0 and unknown wire types are malformed.
  bool ReadTag(Tag* tag);
  // A length and that many bytes, as a reader of their own.
  bool ReadLengthDelimited(SliceReader* bytes);
  // Copies the next `count` bytes.
  bool ReadBytes(void* target, size_t count);
  bool Skip(size_t count);
  // The value of a field whose tag was read; `depth` is how many groups deep it
  // may go. Reads at most `*tags` tags inside groups and counts them off.
  bool SkipField(Tag tag, int depth, int64_t* tags);

 private:
  bool ReadByte(uint8_t* byte);
  bool ReadLength(size_t* length);
  bool SkipGroup(uint32_t field, int depth, int64_t* tags);
  // Makes bytes available where any remain.
  void NextSlice();

  const grpc::Slice* next_ = nullptr;
  const uint8_t* position_ = nullptr;
  // Bytes at position_ in the same slice; may reach past the end of the run.
  size_t available_ = 0;
  size_t remaining_ = 0;
};

}  // namespace attention::wire

#endif  // ATTENTION_WIRE_SLICE_READER_H_
