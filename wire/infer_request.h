// The bytes of an inference.ModelInferRequest as fields, payloads left where
// they arrived. Not installed with the rest of this folder: clients of ours
// have no use for it.
#ifndef ATTENTION_WIRE_INFER_REQUEST_H_
#define ATTENTION_WIRE_INFER_REQUEST_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "base/buffer_pool.h"
#include "grpcpp/support/slice.h"
#include "kernel/tensor_view.h"
#include "wire/memory_meter.h"
#include "wire/message_reader.h"
#include "wire/slice_reader.h"
#include "wire/tensor_fields.h"

namespace attention::wire {

// The most inputs, and outputs that are asked for; the model has fewer.
inline constexpr size_t kMaxInferTensors = 16;
// The most parameters, of the request and of all its tensors together, and the
// most bytes that they may have.
inline constexpr size_t kMaxInferParameters = 256;
inline constexpr size_t kMaxInferParameterBytes = size_t{1} << 20;
// So much is kept of names, types and ids. All that are known are shorter.
inline constexpr size_t kMaxInferNameBytes = 64;
inline constexpr size_t kMaxInferIdBytes = 1024;

// An InferParameter and its key.
struct InferParameter {
  std::string name;
  // monostate: none that is known.
  std::variant<std::monostate, bool, int64_t, uint64_t, double, std::string>
      value;
};

// InferTensorContents. As the lists came, nothing checked.
struct InferContents {
  // Numbers of the fields that had elements, as bits: 1 << number.
  uint32_t lists = 0;
  // bool_contents, int_contents and int64_contents, one behind the other.
  std::vector<int64_t> integers;
  FloatList floats;
  FloatList doubles;
};

// Names may have been cut to kMaxInferNameBytes + 1 bytes.
struct InferTensor {
  std::string name;
  std::string datatype;  // none of an output
  // The first kMaxRank dimensions, and how many were sent.
  Shape shape;
  size_t rank = 0;
  std::vector<InferParameter> parameters;
  InferContents contents;
};

struct InferRequestFields {
  // Cut likewise, the id to kMaxInferIdBytes + 1 bytes.
  std::string model_name;
  std::string model_version;
  std::string id;
  // In their order. Of several with the same name the last counts.
  std::vector<InferParameter> parameters;
  std::vector<InferTensor> inputs;
  std::vector<InferTensor> outputs;
  // In the slices of the message.
  std::vector<SliceReader> raw_input_contents;
};

// Accepts what a proto3 parser accepts, texts that are not UTF-8 too. Memory is
// taken from `meter` before it is allocated, and stays taken. Whatever has come
// of the fields before an error is in `fields`, for what the answer says of the
// request.
//
// Errors: InvalidArgument if the bytes are no such message, or have more of
// something than the limits above; what the meter gives.
absl::Status DecodeInferRequest(absl::Span<const grpc::Slice> slices,
                                BufferPool& pool, MemoryMeter& meter,
                                InferRequestFields* fields);

}  // namespace attention::wire

#endif  // ATTENTION_WIRE_INFER_REQUEST_H_
