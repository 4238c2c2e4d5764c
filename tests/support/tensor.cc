#include "tests/support/tensor.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

namespace attention::test {
namespace {

constexpr std::byte kPadding{0xFF};

// The bits of a number that `format` holds exactly, or NaN or infinity.
uint64_t BitsOf(double x, FloatFormat format) {
  const uint64_t all_ones = (uint64_t{1} << format.exponent_bits) - 1;
  const uint64_t sign = std::signbit(x) ? uint64_t{1} : 0;
  uint64_t exponent = 0;
  uint64_t fraction = 0;
  if (std::isnan(x)) {
    exponent = all_ones;
    fraction = uint64_t{1} << (format.fraction_bits - 1);
  } else if (std::isinf(x)) {
    exponent = all_ones;
  } else if (std::fabs(x) >= std::ldexp(1.0, format.min_exponent)) {
    const int e = std::ilogb(x);
    exponent = e - format.min_exponent + 1;
    fraction = static_cast<uint64_t>(
        std::ldexp(std::ldexp(std::fabs(x), -e) - 1, format.fraction_bits));
  } else {
    fraction = static_cast<uint64_t>(
        std::ldexp(std::fabs(x), format.fraction_bits - format.min_exponent));
  }
  return (((sign << format.exponent_bits) | exponent) << format.fraction_bits) |
         fraction;
}

double ValueOf(uint64_t bits, FloatFormat format) {
  const uint64_t all_ones = (uint64_t{1} << format.exponent_bits) - 1;
  const uint64_t fraction = bits & ((uint64_t{1} << format.fraction_bits) - 1);
  const uint64_t exponent = (bits >> format.fraction_bits) & all_ones;
  const bool negative =
      (bits >> (format.fraction_bits + format.exponent_bits)) & 1;
  double magnitude;
  if (exponent == all_ones) {
    magnitude = fraction != 0 ? std::numeric_limits<double>::quiet_NaN()
                              : std::numeric_limits<double>::infinity();
  } else if (exponent == 0) {
    magnitude = std::ldexp(static_cast<double>(fraction),
                           format.min_exponent - format.fraction_bits);
  } else {
    magnitude = std::ldexp(
        1 + std::ldexp(static_cast<double>(fraction), -format.fraction_bits),
        static_cast<int>(exponent) - 1 + format.min_exponent);
  }
  return negative ? -magnitude : magnitude;
}

template <typename T>
double Load(const void* data) {
  T value;
  std::memcpy(&value, data, sizeof(value));
  return static_cast<double>(value);
}

template <typename T>
void Store(double x, void* data) {
  const T value = static_cast<T>(x);
  std::memcpy(data, &value, sizeof(value));
}

// Elements from the first to the last one, that one included.
int64_t Extent(const Shape& shape, const Shape& strides) {
  int64_t last = 0;
  for (size_t axis = 0; axis < shape.size(); ++axis) {
    if (shape[axis] == 0) return 0;
    last += (shape[axis] - 1) * strides[axis];
  }
  return last + 1;
}

}  // namespace

FloatFormat FormatOf(DataType type) {
  switch (type) {
    case DataType::kFloat16:
      return {5, 10, -14, 15};
    case DataType::kBFloat16:
      return {8, 7, -126, 127};
    case DataType::kFloat64:
      return {11, 52, -1022, 1023};
    default:
      return {8, 23, -126, 127};
  }
}

double UnitRoundoff(DataType type) {
  return std::ldexp(0.5, -FormatOf(type).fraction_bits);
}

double UlpAt(double x, DataType type) {
  const FloatFormat format = FormatOf(type);
  int exponent = format.min_exponent;
  if (std::isinf(x)) {
    exponent = format.max_exponent;
  } else if (x != 0) {
    exponent =
        std::clamp(std::ilogb(x), format.min_exponent, format.max_exponent);
  }
  return std::ldexp(1.0, exponent - format.fraction_bits);
}

double Round(double x, DataType type) {
  if (!IsFloat(type) || type == DataType::kFloat64 || !std::isfinite(x)) {
    return x;
  }
  const double ulp = UlpAt(x, type);
  // Exact but for the rounding wanted: ulp is a power of two.
  const double rounded = std::nearbyint(x / ulp) * ulp;
  const double overflow = std::ldexp(1.0, FormatOf(type).max_exponent + 1);
  if (std::fabs(rounded) >= overflow) {
    return std::copysign(std::numeric_limits<double>::infinity(), x);
  }
  return std::copysign(rounded, x);
}

double Decode(DataType type, const void* data) {
  switch (type) {
    case DataType::kFloat16:
    case DataType::kBFloat16: {
      uint16_t bits;
      std::memcpy(&bits, data, sizeof(bits));
      return ValueOf(bits, FormatOf(type));
    }
    case DataType::kFloat32:
      return Load<float>(data);
    case DataType::kFloat64:
      return Load<double>(data);
    case DataType::kBool:
      return Load<uint8_t>(data);
    case DataType::kInt8:
      return Load<int8_t>(data);
    case DataType::kInt32:
      return Load<int32_t>(data);
    case DataType::kInt64:
      return Load<int64_t>(data);
    case DataType::kFloat8E4M3:
      break;  // No tensor has it.
  }
  return 0;
}

void Encode(DataType type, double x, void* data) {
  switch (type) {
    case DataType::kFloat16:
    case DataType::kBFloat16: {
      const auto bits =
          static_cast<uint16_t>(BitsOf(Round(x, type), FormatOf(type)));
      std::memcpy(data, &bits, sizeof(bits));
      return;
    }
    case DataType::kFloat32:
      return Store<float>(x, data);
    case DataType::kFloat64:
      return Store<double>(x, data);
    case DataType::kBool:
      return Store<uint8_t>(x, data);
    case DataType::kInt8:
      return Store<int8_t>(x, data);
    case DataType::kInt32:
      return Store<int32_t>(x, data);
    case DataType::kInt64:
      return Store<int64_t>(x, data);
    case DataType::kFloat8E4M3:
      break;  // No tensor has it.
  }
}

Shape RowMajorStrides(absl::Span<const int64_t> shape) {
  Shape strides(shape.size(), 1);
  for (int axis = static_cast<int>(shape.size()) - 2; axis >= 0; --axis) {
    strides[axis] = strides[axis + 1] * std::max<int64_t>(shape[axis + 1], 1);
  }
  return strides;
}

Tensor::Tensor(DataType type, Shape shape, Placement placement)
    : type_(type),
      shape_(std::move(shape)),
      placement_(std::move(placement)),
      size_(NumElements(shape_).value()) {
  const Shape strides =
      placement_.strides.empty() ? RowMajorStrides(shape_) : placement_.strides;
  const int64_t bytes =
      (placement_.offset + Extent(shape_, strides)) * SizeOf(type_);
  storage_.assign(bytes + placement_.tail_bytes, kPadding);
  for (int64_t i = 0; i < size_; ++i) Set(i, 0);
}

Tensor::Tensor(DataType type, Shape shape, const std::vector<double>& values)
    : Tensor(type, std::move(shape)) {
  for (int64_t i = 0; i < size_; ++i) Set(i, values.at(i));
}

int64_t Tensor::MemoryIndex(int64_t index) const {
  if (placement_.strides.empty()) return placement_.offset + index;
  int64_t place = placement_.offset;
  for (int axis = static_cast<int>(shape_.size()) - 1; axis >= 0; --axis) {
    place += (index % shape_[axis]) * placement_.strides[axis];
    index /= shape_[axis];
  }
  return place;
}

int64_t Tensor::RowMajorIndex(absl::Span<const int64_t> index) const {
  int64_t flat = 0;
  for (size_t axis = 0; axis < shape_.size(); ++axis) {
    flat = flat * shape_[axis] + index[axis];
  }
  return flat;
}

double Tensor::Get(int64_t index) const {
  return Decode(type_, storage_.data() + MemoryIndex(index) * SizeOf(type_));
}

void Tensor::Set(int64_t index, double value) {
  Encode(type_, value, storage_.data() + MemoryIndex(index) * SizeOf(type_));
}

double Tensor::Get(absl::Span<const int64_t> index) const {
  return Get(RowMajorIndex(index));
}

void Tensor::Set(absl::Span<const int64_t> index, double value) {
  Set(RowMajorIndex(index), value);
}

std::vector<double> Tensor::values() const {
  std::vector<double> values(size_);
  for (int64_t i = 0; i < size_; ++i) values[i] = Get(i);
  return values;
}

void* Tensor::data() {
  if (size_ == 0) return nullptr;
  return storage_.data() + placement_.offset * SizeOf(type_);
}

const void* Tensor::data() const { return const_cast<Tensor*>(this)->data(); }

ConstTensorView Tensor::view() const {
  return {type_, shape_, placement_.strides, data()};
}

bool Tensor::GuardsIntact() const {
  const auto is_padding = [](std::byte b) { return b == kPadding; };
  return std::all_of(storage_.begin(),
                     storage_.begin() + placement_.offset * SizeOf(type_),
                     is_padding) &&
         std::all_of(storage_.end() - placement_.tail_bytes, storage_.end(),
                     is_padding);
}

Tensor Tensor::ConvertedTo(DataType type) const {
  Tensor result(type, shape_);
  for (int64_t i = 0; i < size_; ++i) result.Set(i, Get(i));
  return result;
}

Tensor Tensor::PlacedAs(Placement placement) const {
  Tensor result(type_, shape_, std::move(placement));
  for (int64_t i = 0; i < size_; ++i) result.Set(i, Get(i));
  return result;
}

Tensor Tensor::Slice(int axis, int64_t begin, int64_t end) const {
  Shape shape = shape_;
  shape[axis] = end - begin;
  Tensor result(type_, shape);
  int64_t inner = 1;
  for (size_t a = axis + 1; a < shape.size(); ++a) inner *= shape[a];
  for (int64_t i = 0; i < result.size(); ++i) {
    const int64_t outer = i / inner / shape[axis];
    const int64_t row = i / inner % shape[axis] + begin;
    result.Set(i, Get((outer * shape_[axis] + row) * inner + i % inner));
  }
  return result;
}

Tensor Concatenate(const std::vector<Tensor>& parts, int axis) {
  Shape shape = parts[0].shape();
  shape[axis] = 0;
  for (const Tensor& part : parts) shape[axis] += part.shape()[axis];
  Tensor result(parts[0].type(), shape);
  int64_t inner = 1;
  for (size_t a = axis + 1; a < shape.size(); ++a) inner *= shape[a];
  int64_t begin = 0;
  for (const Tensor& part : parts) {
    const int64_t rows = part.shape()[axis];
    for (int64_t i = 0; i < part.size(); ++i) {
      const int64_t outer = i / inner / rows;
      const int64_t row = i / inner % rows + begin;
      result.Set((outer * shape[axis] + row) * inner + i % inner, part.Get(i));
    }
    begin += rows;
  }
  return result;
}

Tensor Filled(DataType type, Shape shape, double value) {
  Tensor tensor(type, std::move(shape));
  for (int64_t i = 0; i < tensor.size(); ++i) tensor.Set(i, value);
  return tensor;
}

}  // namespace attention::test
