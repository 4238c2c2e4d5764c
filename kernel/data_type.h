// Element types of tensors.
#ifndef ATTENTION_KERNEL_DATA_TYPE_H_
#define ATTENTION_KERNEL_DATA_TYPE_H_

#include <cstddef>
#include <cstdint>

#include "absl/strings/string_view.h"

namespace attention {

enum class DataType : uint8_t {
  kFloat32,   // IEEE 754 binary32
  kFloat16,   // IEEE 754 binary16
  kBFloat16,  // upper 16 bits of a binary32
  kFloat64,   // IEEE 754 binary64
  kBool,      // one byte, 0 or 1
  kInt8,
  kInt32,
  kInt64,
  kFloat8E4M3,  // OCP's E4M3: no infinities. Of scaled rows only:
                // kernel/scaled.h
};

// Bytes per element.
constexpr size_t SizeOf(DataType type) {
  switch (type) {
    case DataType::kFloat64:
    case DataType::kInt64:
      return 8;
    case DataType::kFloat32:
    case DataType::kInt32:
      return 4;
    case DataType::kFloat16:
    case DataType::kBFloat16:
      return 2;
    case DataType::kBool:
    case DataType::kInt8:
    case DataType::kFloat8E4M3:
      return 1;
  }
  return 0;
}

constexpr bool IsFloat(DataType type) {
  return type == DataType::kFloat32 || type == DataType::kFloat16 ||
         type == DataType::kBFloat16 || type == DataType::kFloat64;
}

// The name used on the wire and in errors: "FLOAT32", "BOOL", ...
constexpr absl::string_view Name(DataType type) {
  switch (type) {
    case DataType::kFloat32:
      return "FLOAT32";
    case DataType::kFloat16:
      return "FLOAT16";
    case DataType::kBFloat16:
      return "BFLOAT16";
    case DataType::kFloat64:
      return "FLOAT64";
    case DataType::kBool:
      return "BOOL";
    case DataType::kInt8:
      return "INT8";
    case DataType::kInt32:
      return "INT32";
    case DataType::kInt64:
      return "INT64";
    case DataType::kFloat8E4M3:
      return "FLOAT8_E4M3";
  }
  return "UNKNOWN";
}

}  // namespace attention

#endif  // ATTENTION_KERNEL_DATA_TYPE_H_
