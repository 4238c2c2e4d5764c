// Decodes protobuf messages field by field, payloads left in the slices.
//
// A decoder is a switch over the numbers of the fields:
//
//   void DecodeTiming(MessageReader& reader, TimingFields* timing) {
//     while (reader.Next()) {
//       switch (reader.field()) {
//         case v1::Timing::kQueueUsFieldNumber:
//           reader.Integer(&timing->queue_us);
//           break;
//         default:
//           reader.Skip();
//       }
//     }
//   }
//
//   Decoding decoding("answer", "attention.v1.Timing", pool, meter);
//   MessageReader reader(SliceReader(slices), decoding);
//   DecodeTiming(reader, &timing);
//   if (!decoding.status().ok()) return decoding.status();
//
// What is accepted is what a proto3 parser accepts: fields in any order,
// unknown ones, numbers packed or not, a field of another wire type than its
// own, which counts as unknown. Errors need no checks on the way: after the
// first, Next() of every reader is false and nothing is read any more.
#ifndef ATTENTION_WIRE_MESSAGE_READER_H_
#define ATTENTION_WIRE_MESSAGE_READER_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "base/buffer_pool.h"
#include "google/protobuf/message_lite.h"
#include "wire/memory_meter.h"
#include "wire/slice_reader.h"

namespace attention::wire {

// The most fields of a message, nested ones and each number of a list that is
// not packed included. A message is looked through in one step, which this
// keeps to milliseconds; three lists of the largest batch fit in.
inline constexpr int64_t kMaxFields = int64_t{1} << 19;
// The most bytes of memory that a byte becomes in a generated message: an empty
// unknown field of two bytes is kept as a string in a list that doubles.
inline constexpr int64_t kMemoryPerMessageByte = 64;

// What decoding one message may take, and what went wrong: shared by its reader
// and those of the messages nested in it, which it must outlive.
// Thread-compatible.
class Decoding {
 public:
  // For errors, "the <noun> is not a valid <message> message": both must
  // outlive this object. Memory is taken from `meter` before it is allocated.
  Decoding(absl::string_view noun, absl::string_view message, BufferPool& pool,
           MemoryMeter& meter)
      : noun_(noun), message_(message), pool_(pool), meter_(meter) {}
  Decoding(const Decoding&) = delete;
  Decoding& operator=(const Decoding&) = delete;

  bool ok() const { return !failed_; }
  // Why the message is refused: what was given to Refuse(), or InvalidArgument.
  absl::Status status() const;

  // A well-formed message that is not wanted. The first error counts.
  void Refuse(absl::Status error);
  // The bytes are no message.
  void Malformed() { failed_ = true; }
  // Counts a field, or something that costs as much. False: there are too many.
  bool CountField();

  // Takes memory before it is allocated. False if it must not be.
  bool Take(size_t bytes);
  // So much of it was freed again.
  void Free(size_t bytes) { meter_.Free(static_cast<int64_t>(bytes)); }
  // What is taken now.
  int64_t taken() const { return meter_.taken(); }

  BufferPool& pool() { return pool_; }

 private:
  friend class MessageReader;

  const absl::string_view noun_;
  const absl::string_view message_;
  BufferPool& pool_;
  MemoryMeter& meter_;
  int64_t fields_left_ = kMaxFields;
  bool failed_ = false;
  absl::Status error_;
};

// `repeated float` or `repeated double` as it came, in memory that was taken
// from the meter.
struct FloatList {
  Buffer values;
  size_t count = 0;
  // What was taken for `values`.
  size_t bytes = 0;
};

// A position in one message. The functions below Next() read the value of the
// field that it stands at, one of them once for each field; where the field's
// wire type is another than the function's, they skip the field and leave
// their target as it is.
class MessageReader {
 public:
  // A message of all of `bytes`, whose slices must outlive what is read.
  MessageReader(SliceReader bytes, Decoding& decoding)
      : bytes_(bytes), decoding_(decoding) {}

  // Moves to the next field. False at the end and after an error.
  bool Next();
  int field() const { return static_cast<int>(tag_.field); }
  Decoding& decoding() const { return decoding_; }

  // An unknown field.
  void Skip();

  // int32, int64, uint64 and enums. The last of several counts.
  template <typename Number>
  void Integer(Number* number) {
    uint64_t value;
    if (Is(WireType::kVarint) && Check(bytes_.ReadVarint(&value))) {
      *number = static_cast<Number>(value);
    }
  }

  // `optional int64`.
  void Integer(std::optional<int64_t>* number) {
    uint64_t value;
    if (Is(WireType::kVarint) && Check(bytes_.ReadVarint(&value))) {
      *number = static_cast<int64_t>(value);
    }
  }

  // `repeated int64`: gives each number to `sink`, until it returns false.
  template <typename Sink>
  void Integers(Sink sink) {
    uint64_t value;
    if (tag_.type == WireType::kVarint) {
      if (Check(bytes_.ReadVarint(&value))) sink(static_cast<int64_t>(value));
      return;
    }
    SliceReader packed;
    if (!Bytes(&packed)) return;
    while (packed.remaining() > 0) {
      if (!Check(packed.ReadVarint(&value)) ||
          !sink(static_cast<int64_t>(value))) {
        return;
      }
    }
  }

  // The same, added to `list`, which the field `path` must not make longer than
  // `most`.
  void Integers(absl::string_view path, size_t most,
                std::vector<int64_t>* list);

  // Makes room in `list` for one more number, of `most` in all. False if its
  // memory was refused.
  bool Grow(std::vector<int64_t>* list, size_t most);

  // `repeated float` and `repeated double`, added to `list`.
  void Floats(FloatList* list) {
    Fixed(WireType::kFixed32, sizeof(float), list);
  }
  void Doubles(FloatList* list) {
    Fixed(WireType::kFixed64, sizeof(double), list);
  }

  // `double`, of a oneof.
  void Double(std::optional<double>* number);

  // `bytes`, in the slices. False if there are none.
  bool Bytes(SliceReader* bytes);

  // A nested message, for a switch of its own; nothing if there is none. It
  // adds to what earlier parts of the same field gave.
  std::optional<MessageReader> Message();

  // Merges `part`, which Bytes() gave, into a generated message.
  void Merge(SliceReader part, google::protobuf::MessageLite* message);

 private:
  MessageReader(SliceReader bytes, Decoding& decoding, int depth, size_t after)
      : bytes_(bytes), decoding_(decoding), depth_(depth), after_(after) {}

  // Whether the field is of this type; else skips it.
  bool Is(WireType type);
  // Whether bytes were well-formed; else that is the message's error.
  bool Check(bool well_formed);
  // A list of numbers of `size` bytes, packed or with a tag of `single` each.
  void Fixed(WireType single, size_t size, FloatList* list);
  // `bytes` of little-endian numbers of `size` bytes from `source`, which
  // `left` more bytes of this message follow.
  void AppendFixed(SliceReader& source, size_t size, size_t bytes, size_t left,
                   FloatList* list);

  SliceReader bytes_;
  Decoding& decoding_;
  Tag tag_;
  // How deep groups and messages may nest in this one.
  int depth_ = SliceReader::kMaxDepth;
  // Bytes of the enclosing messages after this one.
  size_t after_ = 0;
};

}  // namespace attention::wire

#endif  // ATTENTION_WIRE_MESSAGE_READER_H_
