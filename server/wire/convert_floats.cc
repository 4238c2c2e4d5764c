#include "server/wire/convert_floats.h"

#include <bit>
#include <cstring>

namespace attention::server::wire {
namespace {

float FromBFloat16(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

float FromFloat16(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
  const uint32_t exponent = (bits >> 10) & 0x1f;
  const uint32_t mantissa = bits & 0x3ff;
  if (exponent == 0) {
    // Zero or subnormal: a multiple of 2^-24.
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign != 0 ? -magnitude : magnitude;
  }
  const uint32_t rebiased = exponent == 0x1f ? 0xff : exponent + (127 - 15);
  return std::bit_cast<float>(sign | rebiased << 23 | mantissa << 13);
}

template <typename Element, typename Convert>
void ConvertAll(const void* source, int64_t count, float* target,
                Convert convert) {
  const auto* elements = static_cast<const Element*>(source);
  for (int64_t i = 0; i < count; ++i) target[i] = convert(elements[i]);
}

}  // namespace

void ConvertToFloats(DataType type, const void* source, int64_t count,
                     float* target) {
  switch (type) {
    case DataType::kFloat32:
      std::memcpy(target, source, count * sizeof(float));
      return;
    case DataType::kFloat16:
      return ConvertAll<uint16_t>(source, count, target, FromFloat16);
    case DataType::kBFloat16:
      return ConvertAll<uint16_t>(source, count, target, FromBFloat16);
    case DataType::kFloat64:
      return ConvertAll<double>(source, count, target, [](double number) {
        return static_cast<float>(number);
      });
    default:
      return;  // Answers hold floats only.
  }
}

}  // namespace attention::server::wire
