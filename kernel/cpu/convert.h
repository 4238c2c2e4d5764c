// Conversions between element types, one element at a time. Widening is exact;
// narrowing rounds to nearest, ties to even. Every NaN becomes the positive
// quiet NaN, whatever the CPU made of it.
#ifndef ATTENTION_KERNEL_CPU_CONVERT_H_
#define ATTENTION_KERNEL_CPU_CONVERT_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "absl/base/casts.h"
#include "kernel/data_type.h"

namespace attention {

inline float HalfToFloat(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t magnitude = half & 0x7fff;
  if (magnitude >= 0x7c00) {  // infinity, NaN
    return absl::bit_cast<float>(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
  }
  // The bits moved up are the value divided by 2^112, subnormals included.
  const float value = absl::bit_cast<float>(magnitude << 13) * 0x1p112f;
  return absl::bit_cast<float>(absl::bit_cast<uint32_t>(value) | sign);
}

inline float BFloatToFloat(uint16_t bfloat) {
  return absl::bit_cast<float>(static_cast<uint32_t>(bfloat) << 16);
}

inline uint16_t FloatToHalf(float value) {
  const uint32_t bits = absl::bit_cast<uint32_t>(value);
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return 0x7e00;
  if (magnitude >= 0x477ff000) return sign | 0x7c00;  // rounds to infinity
  if (magnitude < 0x38800000) {
    // Below 2^-14: adding 0.5 leaves the subnormal's bits, rounded, at the end.
    const float shifted = absl::bit_cast<float>(magnitude) + 0.5f;
    return sign | static_cast<uint16_t>(absl::bit_cast<uint32_t>(shifted) -
                                        0x3f000000);
  }
  const uint32_t odd = magnitude >> 13 & 1;
  return sign |
         static_cast<uint16_t>((magnitude - 0x38000000 + 0xfff + odd) >> 13);
}

inline uint16_t FloatToBFloat(float value) {
  const uint32_t bits = absl::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fc0;
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Rounds to odd: rounding the result once more, to a type at least two bits
// narrower, gives what rounding `value` at once would.
inline float DoubleToFloatOdd(double value) {
  const float nearest = static_cast<float>(value);
  const double back = nearest;
  if (back == value || std::isnan(value)) return nearest;
  const uint32_t bits = absl::bit_cast<uint32_t>(nearest);
  if (bits & 1) return nearest;
  // The neighbour on value's other side is odd.
  const bool away = std::fabs(value) > std::fabs(back);
  return absl::bit_cast<float>(away ? bits + 1 : bits - 1);
}

inline float Canonical(float value) {
  return std::isnan(value) ? std::numeric_limits<float>::quiet_NaN() : value;
}
inline double Canonical(double value) {
  return std::isnan(value) ? std::numeric_limits<double>::quiet_NaN() : value;
}

// Finite numbers stay finite: else a mask's large negative numbers would become
// -infinity, which masks.
template <typename T>
T FromDouble(double value) {
  if (std::isinf(value)) return static_cast<T>(value);
  constexpr double kMax = std::numeric_limits<T>::max();
  return static_cast<T>(std::clamp(value, -kMax, kMax));
}

// Element `index` of an array of `type`, as T (float or double). Integers and
// doubles are rounded where T cannot hold them; false is 0 and true is 1.
template <typename T>
T LoadElement(const void* data, DataType type, int64_t index) {
  switch (type) {
    case DataType::kFloat32:
      return static_cast<T>(static_cast<const float*>(data)[index]);
    case DataType::kFloat16:
      return HalfToFloat(static_cast<const uint16_t*>(data)[index]);
    case DataType::kBFloat16:
      return BFloatToFloat(static_cast<const uint16_t*>(data)[index]);
    case DataType::kFloat64:
      return FromDouble<T>(static_cast<const double*>(data)[index]);
    case DataType::kBool:
    case DataType::kInt8:
      return static_cast<T>(static_cast<const int8_t*>(data)[index]);
    case DataType::kInt32:
      return static_cast<T>(static_cast<const int32_t*>(data)[index]);
    case DataType::kInt64:
      return static_cast<T>(static_cast<const int64_t*>(data)[index]);
    case DataType::kFloat8E4M3:
      break;  // Not without a scale.
  }
  return T{0};
}

// LoadElement() of elements [0, count).
template <typename T>
void LoadElements(const void* data, DataType type, int64_t count, T* to) {
  const auto each = [&](auto load) {
    for (int64_t i = 0; i < count; ++i) to[i] = load(i);
  };
  switch (type) {
    case DataType::kFloat32:
      return each([from = static_cast<const float*>(data)](int64_t i) {
        return static_cast<T>(from[i]);
      });
    case DataType::kFloat16:
      return each([from = static_cast<const uint16_t*>(data)](int64_t i) {
        return static_cast<T>(HalfToFloat(from[i]));
      });
    case DataType::kBFloat16:
      return each([from = static_cast<const uint16_t*>(data)](int64_t i) {
        return static_cast<T>(BFloatToFloat(from[i]));
      });
    default:
      return each([=](int64_t i) { return LoadElement<T>(data, type, i); });
  }
}

// Writes `count` elements of T (float or double) as `type`, a float type, from
// element `index` of `data` on.
template <typename T>
void StoreElements(const T* from, int64_t count, DataType type, void* data,
                   int64_t index) {
  const auto narrow = [](T value) {
    if constexpr (sizeof(T) == 8) {
      return DoubleToFloatOdd(value);
    } else {
      return value;
    }
  };
  switch (type) {
    case DataType::kFloat16:
      for (int64_t i = 0; i < count; ++i) {
        static_cast<uint16_t*>(data)[index + i] = FloatToHalf(narrow(from[i]));
      }
      return;
    case DataType::kBFloat16:
      for (int64_t i = 0; i < count; ++i) {
        static_cast<uint16_t*>(data)[index + i] =
            FloatToBFloat(narrow(from[i]));
      }
      return;
    case DataType::kFloat64:
      for (int64_t i = 0; i < count; ++i) {
        static_cast<double*>(data)[index + i] =
            Canonical(static_cast<double>(from[i]));
      }
      return;
    default:
      for (int64_t i = 0; i < count; ++i) {
        static_cast<float*>(data)[index + i] =
            Canonical(static_cast<float>(from[i]));
      }
  }
}

}  // namespace attention

#endif  // ATTENTION_KERNEL_CPU_CONVERT_H_
