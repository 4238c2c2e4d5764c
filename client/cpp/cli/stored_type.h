// Element types as files have them: the wire's, and integers that it lacks.
#ifndef ATTENTION_CLIENT_CPP_CLI_STORED_TYPE_H_
#define ATTENTION_CLIENT_CPP_CLI_STORED_TYPE_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "attention/tensor.h"

namespace attention::cli {

enum class StoredType {
  kFloat32,
  kFloat16,
  kBFloat16,
  kFloat64,
  kBool,
  kInt8,
  kInt16,
  kInt32,
  kInt64,
  kUint8,
  kUint16,
  kUint32,
  kUint64,
};

// Bytes an element takes.
size_t StoredSize(StoredType type);

// The element type of the wire that `type` becomes.
v1::DataType SentAs(StoredType type);

// A tensor of these little-endian elements. Integers that the wire lacks keep
// their values in a wider type: uint8, int16 and uint16 become INT32, uint32
// and uint64 INT64. Error: InvalidArgument for a uint64 that INT64 cannot hold.
// Precondition: `bytes` has as many elements as `shape`.
absl::StatusOr<Tensor> TensorOf(StoredType type, std::vector<std::byte> bytes,
                                std::vector<int64_t> shape);

}  // namespace attention::cli

#endif  // ATTENTION_CLIENT_CPP_CLI_STORED_TYPE_H_
