#include "attention/float16.h"

#include <bit>
#include <cmath>

namespace attention {
namespace {

// Rounds to a float format of 16 bits with `kMantissa` explicit fraction bits.
template <int kMantissa>
uint16_t Round(double value) {
  constexpr int kExponent = 15 - kMantissa;
  constexpr int kBias = (1 << (kExponent - 1)) - 1;
  constexpr uint16_t kInfinity = ((1 << kExponent) - 1) << kMantissa;
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  if (std::isnan(value)) return sign | kInfinity | (1 << (kMantissa - 1));
  const double magnitude = std::fabs(value);
  if (magnitude == 0) return sign;
  if (std::isinf(magnitude)) return sign | kInfinity;

  // Subnormals share the exponent of the smallest normal number.
  int exponent = std::ilogb(magnitude);
  if (exponent < 1 - kBias) exponent = 1 - kBias;
  if (exponent > kBias) return sign | kInfinity;
  // The number of units in the last place; exact but for the rounding, since
  // ldexp only moves the exponent and the result is far from double's limits.
  const auto units = static_cast<uint32_t>(
      std::nearbyint(std::ldexp(magnitude, kMantissa - exponent)));
  // The implicit leading bit, if there, adds one to the biased exponent; a
  // rounding up to the next power of two does so likewise, up to infinity.
  const uint32_t bits =
      (static_cast<uint32_t>(exponent + kBias - 1) << kMantissa) + units;
  return sign | static_cast<uint16_t>(bits);
}

}  // namespace

uint16_t ToFloat16(double value) { return Round<10>(value); }

float FromFloat16(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
  const uint32_t exponent = (bits >> 10) & 0x1f;
  const uint32_t fraction = bits & 0x3ff;
  if (exponent == 0) {
    const float magnitude = std::ldexp(static_cast<float>(fraction), -24);
    return sign != 0 ? -magnitude : magnitude;
  }
  const uint32_t wide_exponent = exponent == 0x1f ? 0xff : exponent + 112;
  return std::bit_cast<float>(sign | wide_exponent << 23 | fraction << 13);
}

uint16_t ToBFloat16(double value) { return Round<7>(value); }

float FromBFloat16(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

}  // namespace attention
