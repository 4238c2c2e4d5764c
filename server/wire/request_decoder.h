// The bytes of a ComputeAttentionRequest as fields, payloads left where they
// arrived.
#ifndef ATTENTION_SERVER_WIRE_REQUEST_DECODER_H_
#define ATTENTION_SERVER_WIRE_REQUEST_DECODER_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "attention/v1/attention.pb.h"
#include "base/buffer_pool.h"
#include "grpcpp/support/slice.h"
#include "kernel/tensor_view.h"
#include "server/wire/memory_meter.h"
#include "server/wire/slice_reader.h"

namespace attention::server::wire {

// Dimensions kept of a shape; no tensor has as many.
inline constexpr size_t kMaxRank = 8;
// Largest options message.
inline constexpr size_t kMaxOptionsBytes = size_t{1} << 20;
// The most bytes of memory that one of them becomes: an empty unknown field of
// two bytes is kept as a string in a list that doubles.
inline constexpr int64_t kMemoryPerOptionsByte = 64;

// The most fields of a message, nested ones and each number of a list that is
// not packed included. A message is looked through in one step, which this
// keeps to milliseconds; three lists of the largest batch fit in.
inline constexpr int64_t kMaxFields = int64_t{1} << 19;
// The most parts that options may come in; each is merged in a tenth of a
// microsecond or more.
inline constexpr int64_t kMaxOptionsParts = 1024;

// A Tensor message as it came, nothing checked.
struct TensorFields {
  // Whether the message was there.
  bool present = false;
  // The number sent, known or not.
  int32_t data_type = 0;
  // The first kMaxRank dimensions, and how many were sent.
  Shape shape;
  size_t rank = 0;
  // `data`, in the slices of the message.
  SliceReader data;
  // `float_values`: float_count numbers in a buffer that was asked for with
  // float_bytes.
  Buffer float_values;
  size_t float_bytes = 0;
  size_t float_count = 0;
};

struct RequestFields {
  TensorFields query;
  TensorFields key;
  TensorFields value;
  TensorFields mask;
  TensorFields past_key;
  TensorFields past_value;
  std::vector<int64_t> valid_lengths;
  std::vector<int64_t> query_starts;
  std::vector<int64_t> key_starts;
  v1::AttentionOptions options;
};

// Accepts what a proto3 parser accepts: fields in any order, unknown ones,
// repeated numbers packed or not, messages in several parts that merge, the
// last of several scalars. `data` is not copied: the result refers to `slices`.
// Whatever it allocates it takes from `meter` first, what the result holds
// stays taken: a byte on the wire becomes up to 8 in a list of numbers, 16 and
// more while the list grows. valid_lengths, query_starts and key_starts have
// `most_numbers` each at the most.
//
// Errors: InvalidArgument if the bytes are no such message, have more than
// kMaxFields fields, or a list, a shape or the options are too long; what the
// meter gives.
absl::StatusOr<RequestFields> DecodeRequest(
    absl::Span<const grpc::Slice> slices, BufferPool& pool, MemoryMeter& meter,
    size_t most_numbers);

}  // namespace attention::server::wire

#endif  // ATTENTION_SERVER_WIRE_REQUEST_DECODER_H_
