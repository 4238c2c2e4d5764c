package attention

import "math"

// Float16 is the bits of an IEEE 754 binary16 number.
type Float16 uint16

// BFloat16 is the upper 16 bits of an IEEE 754 binary32 number.
type BFloat16 uint16

// ToFloat16 rounds to the nearest binary16, ties to even. What is too large becomes
// an infinity, NaN stays NaN.
func ToFloat16(value float32) Float16 {
	bits := math.Float32bits(value)
	sign := Float16(bits >> 16 & 0x8000)
	magnitude := bits & 0x7fffffff
	switch {
	case magnitude > 0x7f800000: // NaN: its upper bits, and quiet.
		return sign | 0x7e00 | Float16(magnitude>>13&0x3ff)
	case magnitude >= 0x47800000: // 65536 and more, infinity too.
		return sign | 0x7c00
	case magnitude >= 0x38800000: // Normal: rebase the exponent, round, carry into it.
		rounded := magnitude + 0xfff + magnitude>>13&1
		return sign | Float16((rounded-0x38000000)>>13)
	case magnitude < 0x33000000: // Below half of the least subnormal.
		return sign
	}
	// Subnormal: the significand in units of 2^-24.
	significand := magnitude&0x7fffff | 0x800000
	shift := 126 - magnitude>>23
	result := significand >> shift
	rest := significand & (1<<shift - 1)
	half := uint32(1) << (shift - 1)
	if rest > half || rest == half && result&1 == 1 {
		result++
	}
	return sign | Float16(result)
}

// Float32 is the same number, exactly.
func (f Float16) Float32() float32 {
	sign := uint32(f&0x8000) << 16
	exponent := uint32(f >> 10 & 0x1f)
	significand := uint32(f & 0x3ff)
	switch exponent {
	case 0:
		value := float32(significand) * (1.0 / (1 << 24))
		return math.Float32frombits(math.Float32bits(value) | sign)
	case 0x1f:
		return math.Float32frombits(sign | 0x7f800000 | significand<<13)
	}
	return math.Float32frombits(sign | (exponent+112)<<23 | significand<<13)
}

// ToBFloat16 rounds to the nearest bfloat16, ties to even. NaN stays NaN.
func ToBFloat16(value float32) BFloat16 {
	bits := math.Float32bits(value)
	if bits&0x7fffffff > 0x7f800000 {
		return BFloat16(bits>>16 | 0x40)
	}
	return BFloat16((bits + 0x7fff + bits>>16&1) >> 16)
}

// Float32 is the same number, exactly.
func (f BFloat16) Float32() float32 {
	return math.Float32frombits(uint32(f) << 16)
}

// ToFloat16s rounds each number, as [ToFloat16].
func ToFloat16s(values []float32) []Float16 { return converted(values, ToFloat16) }

// ToBFloat16s rounds each number, as [ToBFloat16].
func ToBFloat16s(values []float32) []BFloat16 { return converted(values, ToBFloat16) }
