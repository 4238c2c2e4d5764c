// The bytes of a ComputeAttentionRequest as fields, payloads left where they
// arrived.
#ifndef ATTENTION_WIRE_COMPUTE_REQUEST_H_
#define ATTENTION_WIRE_COMPUTE_REQUEST_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "attention/v1/attention.pb.h"
#include "base/buffer_pool.h"
#include "grpcpp/support/slice.h"
#include "wire/memory_meter.h"
#include "wire/message_reader.h"
#include "wire/options_decoder.h"
#include "wire/tensor_fields.h"

namespace attention::wire {

struct OutputMemoryFields {
  bool present = false;
  SharedMemoryFields output;
  SharedMemoryFields log_sum_exp;
  SharedMemoryFields scores;
  SharedMemoryFields present_key;
  SharedMemoryFields present_value;
};

struct RequestFields {
  TensorFields query;
  TensorFields key;
  TensorFields value;
  TensorFields mask;
  TensorFields past_key;
  TensorFields past_value;
  TensorFields indices;
  TensorFields sinks;
  std::vector<int64_t> valid_lengths;
  std::vector<int64_t> query_starts;
  std::vector<int64_t> key_starts;
  v1::AttentionOptions options;
  OutputMemoryFields outputs;
};

// A request nested in another message, or one that comes in parts. It lives as
// long as its parts come: options are bounded over all of them.
class RequestDecoder {
 public:
  // Of a field whose errors name "<path>.FIELD"; "" for a message of its own.
  // valid_lengths, query_starts and key_starts have `most_numbers` each at the
  // most.
  RequestDecoder(absl::string_view path, size_t most_numbers)
      : prefix_(path.empty() ? std::string() : std::string(path) + "."),
        most_numbers_(most_numbers),
        options_(prefix_ + "options") {}

  // Reads `reader` to its end, adding to `fields`.
  void Decode(MessageReader& reader, RequestFields* fields);

 private:
  const std::string prefix_;
  const size_t most_numbers_;
  OptionsDecoder options_;
};

// Accepts what a proto3 parser accepts: fields in any order, unknown ones,
// repeated numbers packed or not, messages in several parts that merge, the
// last of several scalars. `data` is not copied: the result refers to `slices`.
// Whatever it allocates it takes from `meter` first, what the result holds
// stays taken: a byte on the wire becomes up to 8 in a list of numbers, 16 and
// more while the list grows. Lists are bounded as by RequestDecoder.
//
// Errors: InvalidArgument if the bytes are no such message, have more than
// kMaxFields fields, or a list, a shape or the options are too long; what the
// meter gives.
absl::StatusOr<RequestFields> DecodeRequest(
    absl::Span<const grpc::Slice> slices, BufferPool& pool, MemoryMeter& meter,
    size_t most_numbers);

}  // namespace attention::wire

#endif  // ATTENTION_WIRE_COMPUTE_REQUEST_H_
