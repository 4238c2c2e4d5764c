#include "client/cpp/cli/stored_type.h"

#include <cstring>
#include <limits>
#include <span>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace attention::cli {
namespace {

template <typename From, typename To>
std::vector<std::byte> Widened(std::span<const std::byte> bytes) {
  const size_t count = bytes.size() / sizeof(From);
  std::vector<std::byte> wide(count * sizeof(To));
  for (size_t i = 0; i < count; ++i) {
    From element;
    std::memcpy(&element, bytes.data() + i * sizeof(From), sizeof(From));
    const To same = element;
    std::memcpy(wide.data() + i * sizeof(To), &same, sizeof(To));
  }
  return wide;
}

// Below 2^63 the bytes of a uint64 are those of the same INT64.
absl::Status CheckUint64(std::span<const std::byte> bytes) {
  for (size_t at = 0; at < bytes.size(); at += sizeof(uint64_t)) {
    uint64_t element;
    std::memcpy(&element, bytes.data() + at, sizeof(element));
    if (element > std::numeric_limits<int64_t>::max()) {
      return absl::InvalidArgumentError(
          absl::StrCat("got the uint64 ", element,
                       ", wanted at most 9223372036854775807, INT64's largest",
                       " (uint64 is sent as INT64)"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

v1::DataType SentAs(StoredType type) {
  switch (type) {
    case StoredType::kFloat32:
      return v1::DATA_TYPE_FLOAT32;
    case StoredType::kFloat16:
      return v1::DATA_TYPE_FLOAT16;
    case StoredType::kBFloat16:
      return v1::DATA_TYPE_BFLOAT16;
    case StoredType::kFloat64:
      return v1::DATA_TYPE_FLOAT64;
    case StoredType::kBool:
      return v1::DATA_TYPE_BOOL;
    case StoredType::kInt8:
      return v1::DATA_TYPE_INT8;
    case StoredType::kUint8:
    case StoredType::kInt16:
    case StoredType::kUint16:
    case StoredType::kInt32:
      return v1::DATA_TYPE_INT32;
    case StoredType::kUint32:
    case StoredType::kUint64:
    case StoredType::kInt64:
      return v1::DATA_TYPE_INT64;
  }
  return v1::DATA_TYPE_UNSPECIFIED;
}

size_t StoredSize(StoredType type) {
  switch (type) {
    case StoredType::kUint8:
      return sizeof(uint8_t);
    case StoredType::kInt16:
    case StoredType::kUint16:
      return sizeof(uint16_t);
    case StoredType::kUint32:
      return sizeof(uint32_t);
    default:
      return ElementSize(SentAs(type));
  }
}

absl::StatusOr<Tensor> TensorOf(StoredType type, std::vector<std::byte> bytes,
                                std::vector<int64_t> shape) {
  switch (type) {
    case StoredType::kUint8:
      bytes = Widened<uint8_t, int32_t>(bytes);
      break;
    case StoredType::kInt16:
      bytes = Widened<int16_t, int32_t>(bytes);
      break;
    case StoredType::kUint16:
      bytes = Widened<uint16_t, int32_t>(bytes);
      break;
    case StoredType::kUint32:
      bytes = Widened<uint32_t, int64_t>(bytes);
      break;
    case StoredType::kUint64:
      if (absl::Status status = CheckUint64(bytes); !status.ok()) {
        return status;
      }
      break;
    default:
      break;
  }
  return Tensor::FromBytes(SentAs(type), std::move(bytes), std::move(shape))
      .value();
}

}  // namespace attention::cli
