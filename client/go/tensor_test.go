package attention_test

import (
	"math"
	"slices"
	"testing"

	attention "github.com/attention-service/attention-service/client/go"
)

// TestFloat16 compares with the definition, for every binary16 number and for numbers
// around the middle between two of them.
func TestFloat16(t *testing.T) {
	var finite []float64
	for bits := range 1 << 16 {
		f := attention.Float16(bits)
		value := f.Float32()
		sign, exponent, significand := 1.0, bits>>10&0x1f, float64(bits&0x3ff)
		if bits&0x8000 != 0 {
			sign = -1
		}
		want := sign * math.Ldexp(1024+significand, exponent-25)
		switch {
		case exponent == 0:
			want = sign * math.Ldexp(significand, -24)
		case exponent == 31 && significand == 0:
			want = math.Inf(int(sign))
		case exponent == 31:
			if !math.IsNaN(float64(value)) || !math.IsNaN(float64(attention.ToFloat16(value).Float32())) {
				t.Fatalf("%#x: got %v, wanted NaN", bits, value)
			}
			continue
		}
		if float64(value) != want || math.Signbit(float64(value)) != (sign < 0) {
			t.Fatalf("%#x: got %v, wanted %v", bits, value, want)
		}
		if back := attention.ToFloat16(value); back != f {
			t.Fatalf("%v: got %#x, wanted %#x", value, back, bits)
		}
		if bits < 0x7c00 {
			finite = append(finite, want)
		}
	}
	for i := range finite[1:] {
		low, high := finite[i], finite[i+1]
		middle := float32((low + high) / 2)
		even := attention.Float16(i + i&1)
		for value, want := range map[float32]attention.Float16{
			middle:                             even,
			math.Nextafter32(middle, 0):        attention.Float16(i),
			math.Nextafter32(middle, 1e38):     attention.Float16(i + 1),
			-middle:                            even | 0x8000,
			-math.Nextafter32(middle, 1e38):    attention.Float16(i+1) | 0x8000,
			float32(math.Copysign(0, -1)):      0x8000,
			65520:                              0x7c00,
			65519.99:                           0x7bff,
			float32(math.Inf(-1)):              0xfc00,
			math.SmallestNonzeroFloat32:        0,
			math.MaxFloat32:                    0x7c00,
			float32(math.Ldexp(1, -25)):        0,
			float32(math.Ldexp(1.000001, -25)): 1,
		} {
			if got := attention.ToFloat16(value); got != want {
				t.Fatalf("%v: got %#x, wanted %#x", value, got, want)
			}
		}
	}
}

func TestBFloat16(t *testing.T) {
	for value, want := range map[float32]attention.BFloat16{
		1: 0x3f80, -2: 0xc000, math.Float32frombits(0x3f808000): 0x3f80, math.Float32frombits(0x3f818000): 0x3f82,
		math.Float32frombits(0x3f808001): 0x3f81, math.MaxFloat32: 0x7f80, float32(math.Inf(-1)): 0xff80,
	} {
		if got := attention.ToBFloat16(value); got != want {
			t.Errorf("%v: got %#x, wanted %#x", value, got, want)
		}
	}
	for _, bits := range []uint32{0x7fc00000, 0x7f800001, 0xff800001} {
		if got := attention.ToBFloat16(math.Float32frombits(bits)).Float32(); !math.IsNaN(float64(got)) {
			t.Errorf("%#x: got %v, wanted NaN", bits, got)
		}
	}
	for bits := range 1 << 16 {
		f := attention.BFloat16(bits)
		if back := attention.ToBFloat16(f.Float32()); back != f && !math.IsNaN(float64(f.Float32())) {
			t.Fatalf("%#x: got %#x", bits, back)
		}
	}
}

func TestBits(t *testing.T) {
	packed := []byte{5}
	tensor := attention.OfBytes(attention.TypeBits, packed, 1, 3)
	if tensor.String() != "BITS [1 3]" || &tensor.Bytes()[0] != &packed[0] || tensor.Float32s() != nil {
		t.Errorf("got %v", tensor)
	}
	if _, err := attention.Elements[bool](tensor); err == nil {
		t.Error("bits were given as elements")
	}
}

func TestElements(t *testing.T) {
	floats := []float32{1, 2, 3}
	tensor := attention.Of(floats, 3)
	same := must(attention.Elements[float32](tensor))(t)
	if &same[0] != &floats[0] {
		t.Error("the elements were copied")
	}
	if _, err := attention.Elements[float64](tensor); err == nil {
		t.Error("elements of another type were given")
	}
	// Memory that is not aligned is copied.
	odd := append([]byte{0}, tensor.Bytes()...)
	if got := attention.OfBytes(attention.TypeFloat32, odd[1:], 3).Float32s(); !slices.Equal(got, floats) {
		t.Errorf("got %v", got)
	}
	bools := must(attention.Elements[bool](attention.OfBytes(attention.TypeBool, []byte{0, 1, 2}, 3)))(t)
	if !slices.Equal(bools, []bool{false, true, true}) {
		t.Errorf("got %v", bools)
	}
	if got := attention.Of(attention.ToFloat16s(floats), 3).Float32s(); !slices.Equal(got, floats) {
		t.Errorf("got %v", got)
	}
	wide := must(attention.Elements[int64](attention.OfIntegers([]uint32{math.MaxUint32}, 1)))(t)
	if wide[0] != math.MaxUint32 {
		t.Errorf("got %v", wide)
	}
	if small := attention.OfIntegers([]int16{-1}, 1); small.DataType() != attention.TypeInt32 || must(attention.Elements[int32](small))(t)[0] != -1 {
		t.Errorf("got %v", small)
	}
}
