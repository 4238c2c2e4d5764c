// Conversions of the 16-bit float types that C++20 has no type for.
//
// Values are the raw bits, as Tensor holds them. All functions are total and
// thread-safe. Rounding is to nearest, ties to even, straight from double, so
// that nothing is rounded twice; too large becomes infinity, NaN stays NaN.
#ifndef ATTENTION_FLOAT16_H_
#define ATTENTION_FLOAT16_H_

#include <cstdint>

namespace attention {

// IEEE 754 binary16.
uint16_t ToFloat16(double value);
float FromFloat16(uint16_t bits);

// The upper 16 bits of a binary32.
uint16_t ToBFloat16(double value);
float FromBFloat16(uint16_t bits);

}  // namespace attention

#endif  // ATTENTION_FLOAT16_H_
