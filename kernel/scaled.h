// Rows of numbers of eight bits, with a scale: keys and values that take a
// quarter of the memory of FLOAT32.
//
// A row, of one token and head, has a scale 2^(s - 127), s in [0, 254]: E8M0 of
// OCP's Microscaling formats (MX, version 1.0). Its elements are INT8 in [-127,
// 127], or FLOAT8_E4M3, times the scale: each is a FLOAT32 number exactly.
// docs/numerics.md says how rows are rounded.
#ifndef ATTENTION_KERNEL_SCALED_H_
#define ATTENTION_KERNEL_SCALED_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "absl/base/casts.h"
#include "kernel/data_type.h"

namespace attention {

constexpr bool IsScaled(DataType type) {
  return type == DataType::kInt8 || type == DataType::kFloat8E4M3;
}

// The scale of a row with an infinity or a NaN, all of whose elements are NaN.
inline constexpr uint8_t kNanScale = 255;

inline float ScaleFactor(uint8_t scale) {
  if (scale == kNanScale) return std::numeric_limits<float>::quiet_NaN();
  // 2^-127 is subnormal.
  return absl::bit_cast<float>(scale == 0 ? uint32_t{1} << 22
                                          : uint32_t{scale} << 23);
}

// Of numbers that the type has, all but NaN.
inline float Float8ToFloat(uint8_t bits) {
  const uint32_t sign = uint32_t{bits} >> 7 << 31;
  const uint32_t magnitude = bits & 0x7f;
  // Below 2^-6 multiples of 2^-9.
  const float value = magnitude < 8
                          ? static_cast<float>(magnitude) * 0x1p-9f
                          : absl::bit_cast<float>((magnitude + 960) << 20);
  return absl::bit_cast<float>(absl::bit_cast<uint32_t>(value) | sign);
}

// To nearest, ties to even. |value| is at most 464.
inline uint8_t FloatToFloat8(float value) {
  const uint32_t bits = absl::bit_cast<uint32_t>(value);
  const uint32_t sign = bits >> 31 << 7;
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude < 0x3c800000) {  // 2^-6
    // Adding 2^14 leaves multiples of 2^-9, rounded.
    const float shifted = absl::bit_cast<float>(magnitude) + 0x1p14f;
    return static_cast<uint8_t>(
        sign | (absl::bit_cast<uint32_t>(shifted) - 0x46800000));
  }
  const uint32_t odd = magnitude >> 20 & 1;
  return static_cast<uint8_t>(sign |
                              (((magnitude + 0x7ffff + odd) >> 20) - 960));
}

// The scale of a row whose largest magnitude is `largest`, infinity or NaN if
// it has one of these: the smallest by which every element rounds to a number
// that the type has. Of zeros alone it is 1.
inline uint8_t ScaleOf(DataType type, float largest) {
  if (!std::isfinite(largest)) return kNanScale;
  if (largest == 0) return 127;
  int exponent;  // largest = fraction * 2^exponent
  const float fraction = std::frexp(largest, &exponent);
  int scale = 0;
  if (type == DataType::kInt8) {
    scale = exponent - 7 + (fraction * 128 >= 127.5f);
  } else {
    scale = exponent - 9 + (fraction * 512 > 464);
  }
  return static_cast<uint8_t>(std::max(scale, -127) + 127);
}

// Rounds elements of a row with this scale, which ScaleOf() gave for the whole
// row, to `to`.
inline void ScaleElements(DataType type, uint8_t scale, const float* from,
                          int64_t count, void* to) {
  if (scale == kNanScale) {
    std::fill_n(static_cast<uint8_t*>(to), count, uint8_t{0});
    return;
  }
  // 2^127 to 2^-127: exact, and so are the products, but for some that round to
  // zero in any case.
  const float inverse = ScaleFactor(static_cast<uint8_t>(254 - scale));
  // With the largest scales 64 and 256 stand for 2^128, which FLOAT32 has not.
  if (type == DataType::kInt8) {
    auto* const elements = static_cast<int8_t*>(to);
    for (int64_t i = 0; i < count; ++i) {
      // Adding 1.5 * 2^23 leaves whole numbers, rounded, in the lowest bits.
      const float shifted = from[i] * inverse + 0x1.8p23f;
      elements[i] = static_cast<int8_t>(absl::bit_cast<uint32_t>(shifted));
    }
    for (int64_t i = 0; scale == 127 + 122 && i < count; ++i) {
      elements[i] = std::clamp<int8_t>(elements[i], -63, 63);
    }
  } else {
    auto* const elements = static_cast<uint8_t*>(to);
    for (int64_t i = 0; i < count; ++i) {
      elements[i] = FloatToFloat8(from[i] * inverse);
    }
    for (int64_t i = 0; scale == 127 + 120 && i < count; ++i) {
      if ((elements[i] & 0x7f) == 0x78) --elements[i];  // 256 to 240
    }
  }
}

// Element `index` of a row with this scale.
inline float ScaledElement(DataType type, uint8_t scale, const void* row,
                           int64_t index) {
  const float element =
      type == DataType::kInt8
          ? static_cast<float>(static_cast<const int8_t*>(row)[index])
          : Float8ToFloat(static_cast<const uint8_t*>(row)[index]);
  return element * ScaleFactor(scale);
}

}  // namespace attention

#endif  // ATTENTION_KERNEL_SCALED_H_
