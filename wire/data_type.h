// Element types by their numbers on the wire.
#ifndef ATTENTION_WIRE_DATA_TYPE_H_
#define ATTENTION_WIRE_DATA_TYPE_H_

#include <cstdint>
#include <optional>

#include "attention/v1/attention.pb.h"
#include "kernel/data_type.h"

namespace attention::wire {

constexpr v1::DataType ToWire(DataType type) {
  switch (type) {
    case DataType::kFloat32:
      return v1::DATA_TYPE_FLOAT32;
    case DataType::kFloat16:
      return v1::DATA_TYPE_FLOAT16;
    case DataType::kBFloat16:
      return v1::DATA_TYPE_BFLOAT16;
    case DataType::kFloat64:
      return v1::DATA_TYPE_FLOAT64;
    case DataType::kBool:
      return v1::DATA_TYPE_BOOL;
    case DataType::kInt8:
      return v1::DATA_TYPE_INT8;
    case DataType::kInt32:
      return v1::DATA_TYPE_INT32;
    case DataType::kInt64:
      return v1::DATA_TYPE_INT64;
    case DataType::kFloat8E4M3:
      return v1::DATA_TYPE_FLOAT8_E4M3;
  }
  return v1::DATA_TYPE_UNSPECIFIED;
}

// Of a tensor. Nothing for DATA_TYPE_UNSPECIFIED, numbers that are no type, and
// the one that only sessions store.
constexpr std::optional<DataType> FromWire(int32_t number) {
  switch (number) {
    case v1::DATA_TYPE_FLOAT32:
      return DataType::kFloat32;
    case v1::DATA_TYPE_FLOAT16:
      return DataType::kFloat16;
    case v1::DATA_TYPE_BFLOAT16:
      return DataType::kBFloat16;
    case v1::DATA_TYPE_FLOAT64:
      return DataType::kFloat64;
    case v1::DATA_TYPE_BOOL:
      return DataType::kBool;
    case v1::DATA_TYPE_INT8:
      return DataType::kInt8;
    case v1::DATA_TYPE_INT32:
      return DataType::kInt32;
    case v1::DATA_TYPE_INT64:
      return DataType::kInt64;
    default:
      return std::nullopt;
  }
}

// As FromWire(), of what a session stores.
constexpr std::optional<DataType> StoredFromWire(int32_t number) {
  if (number == v1::DATA_TYPE_FLOAT8_E4M3) return DataType::kFloat8E4M3;
  return FromWire(number);
}

}  // namespace attention::wire

#endif  // ATTENTION_WIRE_DATA_TYPE_H_
