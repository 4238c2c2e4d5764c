#include "attention/tensor.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "attention/float16.h"

namespace attention {
namespace {

static_assert(std::endian::native == std::endian::little,
              "tensors travel little-endian and are not converted");

template <typename T>
T Clamped(double number) {
  if (std::isnan(number)) return 0;
  number = std::nearbyint(number);
  // The largest value of a wide type is not a double; its successor is.
  if (number >= std::ldexp(1.0, std::numeric_limits<T>::digits)) {
    return std::numeric_limits<T>::max();
  }
  if (number <= static_cast<double>(std::numeric_limits<T>::min())) {
    return std::numeric_limits<T>::min();
  }
  return static_cast<T>(number);
}

template <typename T, typename Convert>
std::vector<std::byte> Pack(std::span<const double> numbers, Convert convert) {
  std::vector<std::byte> bytes(numbers.size() * sizeof(T));
  for (size_t i = 0; i < numbers.size(); ++i) {
    const T element = convert(numbers[i]);
    std::memcpy(bytes.data() + i * sizeof(T), &element, sizeof(T));
  }
  return bytes;
}

template <typename T, typename Convert>
std::vector<double> Unpack(std::span<const std::byte> bytes, Convert convert) {
  std::vector<double> numbers(bytes.size() / sizeof(T));
  for (size_t i = 0; i < numbers.size(); ++i) {
    T element;
    std::memcpy(&element, bytes.data() + i * sizeof(T), sizeof(T));
    numbers[i] = static_cast<double>(convert(element));
  }
  return numbers;
}

std::vector<std::byte> PackAs(v1::DataType type,
                              std::span<const double> numbers) {
  switch (type) {
    case v1::DATA_TYPE_FLOAT32:
      return Pack<float>(numbers,
                         [](double x) { return static_cast<float>(x); });
    case v1::DATA_TYPE_FLOAT16:
      return Pack<uint16_t>(numbers, ToFloat16);
    case v1::DATA_TYPE_BFLOAT16:
      return Pack<uint16_t>(numbers, ToBFloat16);
    case v1::DATA_TYPE_FLOAT64:
      return Pack<double>(numbers, [](double x) { return x; });
    case v1::DATA_TYPE_BOOL:
      return Pack<uint8_t>(numbers, [](double x) { return x != 0 ? 1 : 0; });
    case v1::DATA_TYPE_INT8:
      return Pack<int8_t>(numbers, Clamped<int8_t>);
    case v1::DATA_TYPE_INT32:
      return Pack<int32_t>(numbers, Clamped<int32_t>);
    case v1::DATA_TYPE_INT64:
      return Pack<int64_t>(numbers, Clamped<int64_t>);
    default:
      return {};
  }
}

}  // namespace

size_t ElementSize(v1::DataType type) {
  switch (type) {
    case v1::DATA_TYPE_FLOAT64:
    case v1::DATA_TYPE_INT64:
      return 8;
    case v1::DATA_TYPE_FLOAT32:
    case v1::DATA_TYPE_INT32:
      return 4;
    case v1::DATA_TYPE_FLOAT16:
    case v1::DATA_TYPE_BFLOAT16:
      return 2;
    case v1::DATA_TYPE_BOOL:
    case v1::DATA_TYPE_INT8:
      return 1;
    default:
      return 0;
  }
}

std::string TypeName(v1::DataType type) {
  constexpr size_t kPrefix = std::char_traits<char>::length("DATA_TYPE_");
  const std::string name(v1::DataType_Name(type));
  return name.empty() ? std::to_string(type) : name.substr(kPrefix);
}

std::optional<int64_t> ElementCount(std::span<const int64_t> shape) {
  int64_t count = 1;
  bool empty = false;
  for (const int64_t dim : shape) {
    if (dim < 0) return std::nullopt;
    if (dim == 0) {
      empty = true;
    } else if (__builtin_mul_overflow(count, dim, &count)) {
      return std::nullopt;
    }
  }
  return empty ? 0 : count;
}

bool BytesFit(v1::DataType type, std::span<const int64_t> shape, size_t bytes) {
  const std::optional<int64_t> count = ElementCount(shape);
  if (count && type == v1::DATA_TYPE_BITS) {
    return bytes == static_cast<uint64_t>(*count / 8 + (*count % 8 != 0));
  }
  const size_t element_size = ElementSize(type);
  return count && element_size != 0 && bytes % element_size == 0 &&
         bytes / element_size == static_cast<uint64_t>(*count);
}

std::optional<Tensor> Tensor::FromBytes(v1::DataType type,
                                        std::vector<std::byte> bytes,
                                        std::vector<int64_t> shape) {
  const auto owner =
      std::make_shared<const std::vector<std::byte>>(std::move(bytes));
  return FromShared(type, {owner, owner->data()}, owner->size(),
                    std::move(shape));
}

std::optional<Tensor> Tensor::FromShared(
    v1::DataType type, std::shared_ptr<const std::byte> elements, size_t bytes,
    std::vector<int64_t> shape) {
  if (!BytesFit(type, shape, bytes)) return std::nullopt;
  Tensor tensor;
  tensor.type_ = type;
  tensor.shape_ = std::move(shape);
  tensor.elements_ = std::move(elements);
  tensor.num_bytes_ = bytes;
  return tensor;
}

Tensor Tensor::Rounded(v1::DataType type, std::span<const double> numbers,
                       std::vector<int64_t> shape) {
  return FromBytes(type, PackAs(type, numbers), std::move(shape)).value();
}

std::vector<double> Tensor::ToDoubles() const {
  const auto same = [](auto x) { return x; };
  switch (type_) {
    case v1::DATA_TYPE_FLOAT32:
      return Unpack<float>(bytes(), same);
    case v1::DATA_TYPE_FLOAT16:
      return Unpack<uint16_t>(bytes(), FromFloat16);
    case v1::DATA_TYPE_BFLOAT16:
      return Unpack<uint16_t>(bytes(), FromBFloat16);
    case v1::DATA_TYPE_FLOAT64:
      return Unpack<double>(bytes(), same);
    case v1::DATA_TYPE_BOOL:
    case v1::DATA_TYPE_INT8:
      return Unpack<int8_t>(bytes(), same);
    case v1::DATA_TYPE_INT32:
      return Unpack<int32_t>(bytes(), same);
    case v1::DATA_TYPE_INT64:
      return Unpack<int64_t>(bytes(), same);
    default:
      return {};
  }
}

}  // namespace attention
