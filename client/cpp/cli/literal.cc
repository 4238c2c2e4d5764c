#include "client/cpp/cli/literal.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "attention/float16.h"
#include "client/cpp/cli/literal_parser.h"

namespace attention::cli {
namespace {

// The number of an element in the literal's order as " at [1][0]".
std::string Index(const std::vector<int64_t>& shape, size_t element) {
  std::string index;
  for (size_t axis = shape.size(); axis-- > 0;) {
    const auto length = static_cast<size_t>(shape[axis]);
    index = absl::StrCat("[", element % length, "]", index);
    element /= length;
  }
  return index.empty() ? "" : absl::StrCat(" at ", index);
}

template <typename T>
bool IsWhole(double number) {
  // Beyond it a double may be another number than was written.
  constexpr double kExact = 0x1p53;
  const auto least = static_cast<double>(std::numeric_limits<T>::min());
  const auto most = static_cast<double>(std::numeric_limits<T>::max());
  return number == std::nearbyint(number) &&
         number >= std::max(least, -kExact) && number <= std::min(most, kExact);
}

// Whether an element of `type` is the number but for rounding.
bool Holds(v1::DataType type, double number) {
  const bool special = !std::isfinite(number);
  switch (type) {
    case v1::DATA_TYPE_FLOAT32:
      return special || std::isfinite(static_cast<float>(number));
    case v1::DATA_TYPE_FLOAT16:
      return special || std::isfinite(FromFloat16(ToFloat16(number)));
    case v1::DATA_TYPE_BFLOAT16:
      return special || std::isfinite(FromBFloat16(ToBFloat16(number)));
    case v1::DATA_TYPE_BOOL:
      return number == 0 || number == 1;
    case v1::DATA_TYPE_INT8:
      return IsWhole<int8_t>(number);
    case v1::DATA_TYPE_INT32:
      return IsWhole<int32_t>(number);
    case v1::DATA_TYPE_INT64:
      return IsWhole<int64_t>(number);
    default:
      return true;
  }
}

template <typename T>
std::string Shortest(T value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  char buffer[32];
  const auto end = std::to_chars(buffer, buffer + sizeof(buffer), value).ptr;
  return {buffer, end};
}

// The fewest digits that round to `bits`.
std::string ShortestFloat16(float value, uint16_t bits,
                            uint16_t (*round)(double)) {
  for (int digits = 1; digits < std::numeric_limits<float>::max_digits10;
       ++digits) {
    const double rounded =
        std::strtod(absl::StrFormat("%.*g", digits, value).c_str(), nullptr);
    if (round(rounded) == bits) return Shortest(rounded);
  }
  return Shortest(value);
}

std::string FormatElement(const Tensor& tensor, size_t i) {
  switch (tensor.type()) {
    case v1::DATA_TYPE_FLOAT32:
      return Shortest(tensor.elements<float>()[i]);
    case v1::DATA_TYPE_FLOAT64:
      return Shortest(tensor.elements<double>()[i]);
    case v1::DATA_TYPE_FLOAT16:
    case v1::DATA_TYPE_BFLOAT16: {
      const bool half = tensor.type() == v1::DATA_TYPE_FLOAT16;
      const uint16_t bits = tensor.elements<uint16_t>()[i];
      const float value = half ? FromFloat16(bits) : FromBFloat16(bits);
      if (!std::isfinite(value)) return Shortest(value);
      return ShortestFloat16(value, bits, half ? ToFloat16 : ToBFloat16);
    }
    case v1::DATA_TYPE_BOOL:
      return tensor.bytes()[i] != std::byte{0} ? "true" : "false";
    case v1::DATA_TYPE_INT8:
      return absl::StrCat(int{tensor.elements<int8_t>()[i]});
    case v1::DATA_TYPE_INT32:
      return absl::StrCat(tensor.elements<int32_t>()[i]);
    case v1::DATA_TYPE_INT64:
      return absl::StrCat(tensor.elements<int64_t>()[i]);
    default:
      return "?";
  }
}

void FormatAxis(const Tensor& tensor, size_t axis, size_t& next,
                std::string& out) {
  if (axis == tensor.shape().size()) {
    out += FormatElement(tensor, next++);
    return;
  }
  const bool rows = axis + 1 == tensor.shape().size();
  const std::string separator =
      rows ? ", " : absl::StrCat(",\n", std::string(axis + 1, ' '));
  out += '[';
  for (int64_t i = 0; i < tensor.shape()[axis]; ++i) {
    if (i > 0) out += separator;
    FormatAxis(tensor, axis + 1, next, out);
  }
  out += ']';
}

}  // namespace

absl::StatusOr<Tensor> ParseLiteral(const std::string& text,
                                    v1::DataType type) {
  absl::StatusOr<ParsedLiteral> literal = ReadLiteral(text);
  if (!literal.ok()) return literal.status();
  if (literal->booleans) type = v1::DATA_TYPE_BOOL;
  type = literal->type.value_or(type);
  for (size_t i = 0; i < literal->numbers.size(); ++i) {
    if (Holds(type, literal->numbers[i])) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        "got ", TokenAt(text, literal->places[i]), ", wanted a number that ",
        TypeName(type), " holds", Index(literal->shape, i)));
  }
  return Tensor::Rounded(type, literal->numbers, std::move(literal->shape));
}

std::string FormatLiteral(const Tensor& tensor) {
  std::string out;
  size_t next = 0;
  FormatAxis(tensor, 0, next, out);
  return out;
}

}  // namespace attention::cli
