package attention

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"unsafe"

	"github.com/attention-service/attention-service/client/go/attentionpb"
)

// DataType is the type of a tensor's elements on the wire.
type DataType = attentionpb.DataType

// The element types. [TypeFloat8E4M3] is what a session may store; no tensor has it.
const (
	TypeUnspecified = attentionpb.DataType_DATA_TYPE_UNSPECIFIED
	TypeFloat32     = attentionpb.DataType_DATA_TYPE_FLOAT32
	TypeFloat16     = attentionpb.DataType_DATA_TYPE_FLOAT16
	TypeBFloat16    = attentionpb.DataType_DATA_TYPE_BFLOAT16
	TypeFloat64     = attentionpb.DataType_DATA_TYPE_FLOAT64
	TypeBool        = attentionpb.DataType_DATA_TYPE_BOOL
	TypeInt8        = attentionpb.DataType_DATA_TYPE_INT8
	TypeInt32       = attentionpb.DataType_DATA_TYPE_INT32
	TypeInt64       = attentionpb.DataType_DATA_TYPE_INT64
	TypeFloat8E4M3  = attentionpb.DataType_DATA_TYPE_FLOAT8_E4M3
	// TypeBits has one bit for each element of a mask, in [OfBytes]: 1 attends. Element
	// i, row-major and without gaps between rows, is bit i % 8, counted from the least
	// significant, of byte i / 8.
	TypeBits = attentionpb.DataType_DATA_TYPE_BITS
)

// Element is a Go type that stands for an element type of the wire.
type Element interface {
	float32 | float64 | Float16 | BFloat16 | bool | int8 | int32 | int64
}

// Tensor is a dense, row-major tensor: a type, a shape and elements. The zero value
// is no tensor, as for a mask that is not there. Copies share the elements.
type Tensor struct {
	dataType DataType
	shape    []int
	// Little-endian, without padding.
	data []byte
}

// Of makes a tensor of elements, outermost axis first in shape. The slice is lent,
// not copied (on big-endian machines it is copied). A shape that does not fit the
// elements is refused by the call that uses the tensor.
func Of[T Element](elements []T, shape ...int) Tensor {
	var zero T
	t := Tensor{dataType: typeOf(zero), shape: slices.Clone(shape), data: bytesOf(elements)}
	if !littleEndian {
		t.data = swapped(t.data, sizeOf(t.dataType))
	}
	return t
}

// OfBytes makes a tensor of the bytes of its elements: row-major, without padding,
// little-endian. Of [TypeBits] they are ceil(elements / 8) bytes, and the shape is that
// of the bits. The slice is lent.
func OfBytes(dataType DataType, data []byte, shape ...int) Tensor {
	return Tensor{dataType: dataType, shape: slices.Clone(shape), data: data}
}

// OfIntegers makes a tensor of integers that the wire has no type for, copying them
// into the next wider one that it has. Only masks and indices may have integers, and a
// mask of integers is added to the scores: 0 and 1 hide nothing.
func OfIntegers[T uint8 | int16 | uint16 | uint32](integers []T, shape ...int) Tensor {
	var zero T
	if uint64(^zero) == math.MaxUint32 {
		return Of(widened[T, int64](integers), shape...)
	}
	return Of(widened[T, int32](integers), shape...)
}

func widened[From uint8 | int16 | uint16 | uint32, To int32 | int64](from []From) []To {
	to := make([]To, len(from))
	for i, v := range from {
		to[i] = To(v)
	}
	return to
}

// IsZero tells whether there is no tensor at all.
func (t Tensor) IsZero() bool {
	return t.dataType == TypeUnspecified && t.shape == nil && t.data == nil
}

// DataType is the type of the elements.
func (t Tensor) DataType() DataType { return t.dataType }

// Shape is the length of each axis, outermost first. It must not be changed.
func (t Tensor) Shape() []int { return t.shape }

// Bytes are the elements as the wire has them: row-major, without padding,
// little-endian. They are not copied.
func (t Tensor) Bytes() []byte { return t.data }

// String tells type and shape, such as "FLOAT32 [2 8 33 64]".
func (t Tensor) String() string {
	if t.IsZero() {
		return "no tensor"
	}
	return fmt.Sprintf("%s %v", typeName(t.dataType), t.shape)
}

// Elements are a tensor's elements, without a copy where the machine is
// little-endian and the memory aligned. It fails if T is not the tensor's type.
func Elements[T Element](t Tensor) ([]T, error) {
	var zero T
	if want := typeOf(zero); t.dataType != want {
		return nil, fmt.Errorf("attention: the tensor has elements of %s, not %s", typeName(t.dataType), typeName(want))
	}
	return elementsOf[T](t.data), nil
}

// Float32s are the elements of a float tensor as float32: without a copy where they
// are that, else converted (a float64 to the nearest float32). It is nil where the
// tensor has no floats.
func (t Tensor) Float32s() []float32 {
	switch t.dataType {
	case TypeFloat32:
		return elementsOf[float32](t.data)
	case TypeFloat16:
		return converted(elementsOf[Float16](t.data), Float16.Float32)
	case TypeBFloat16:
		return converted(elementsOf[BFloat16](t.data), BFloat16.Float32)
	case TypeFloat64:
		return converted(elementsOf[float64](t.data), func(v float64) float32 { return float32(v) })
	}
	return nil
}

func converted[From, To any](from []From, convert func(From) To) []To {
	to := make([]To, len(from))
	for i, v := range from {
		to[i] = convert(v)
	}
	return to
}

var littleEndian = binary.NativeEndian.Uint16([]byte{1, 0}) == 1

func typeOf(zero any) DataType {
	switch zero.(type) {
	case float32:
		return TypeFloat32
	case float64:
		return TypeFloat64
	case Float16:
		return TypeFloat16
	case BFloat16:
		return TypeBFloat16
	case bool:
		return TypeBool
	case int8:
		return TypeInt8
	case int32:
		return TypeInt32
	case int64:
		return TypeInt64
	}
	return TypeUnspecified
}

// sizeOf is the bytes of an element; 0 of bits, and of a type that tensors do not have.
func sizeOf(dataType DataType) int {
	switch dataType {
	case TypeFloat32, TypeInt32:
		return 4
	case TypeFloat16, TypeBFloat16:
		return 2
	case TypeFloat64, TypeInt64:
		return 8
	case TypeBool, TypeInt8:
		return 1
	}
	return 0
}

func typeName(dataType DataType) string {
	const prefix = len("DATA_TYPE_")
	if name := dataType.String(); len(name) > prefix {
		return name[prefix:]
	}
	return dataType.String()
}

// bytesOf is the memory of elements, in the machine's byte order.
func bytesOf[T Element](elements []T) []byte {
	if len(elements) == 0 {
		return []byte{}
	}
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(elements))), len(elements)*int(unsafe.Sizeof(elements[0])))
}

// elementsOf reads little-endian bytes; what is no whole element at the end is
// left out.
func elementsOf[T Element](data []byte) []T {
	var zero T
	size := int(unsafe.Sizeof(zero))
	n := len(data) / size
	if n == 0 {
		return []T{}
	}
	start := unsafe.Pointer(unsafe.SliceData(data))
	_, isBool := any(zero).(bool)
	if littleEndian && uintptr(start)%unsafe.Alignof(zero) == 0 && !isBool {
		return unsafe.Slice((*T)(start), n)
	}
	elements := make([]T, n)
	if bools, ok := any(elements).([]bool); ok {
		// A bool in memory must be 0 or 1, which nobody has promised of the bytes.
		for i := range bools {
			bools[i] = data[i] != 0
		}
		return elements
	}
	memory := bytesOf(elements)
	copy(memory, data)
	if !littleEndian {
		copy(memory, swapped(memory, size))
	}
	return elements
}

// swapped is a copy with the bytes of each element reversed.
func swapped(data []byte, size int) []byte {
	copied := slices.Clone(data)
	if size > 1 {
		for begin := 0; begin+size <= len(copied); begin += size {
			slices.Reverse(copied[begin : begin+size])
		}
	}
	return copied
}

// newData is memory for the elements of an answer, aligned for every element type.
func newData(bytes int) []byte {
	if bytes == 0 {
		return []byte{}
	}
	words := make([]uint64, (bytes+7)/8)
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(words))), bytes)
}

// bytesOfShape is the bytes that a type and a shape ask for; not ok where a length
// is negative or the product too large.
func bytesOfShape(dataType DataType, shape []int) (bytes int, ok bool) {
	size := sizeOf(dataType)
	if dataType == TypeBits {
		size = 1 // Counts elements, until the end.
	}
	if size == 0 {
		return 0, false
	}
	empty := false
	for _, length := range shape {
		if length < 0 {
			return 0, false
		}
		empty = empty || length == 0
	}
	if empty {
		return 0, true
	}
	bytes = size
	for _, length := range shape {
		if bytes > math.MaxInt/length {
			return 0, false
		}
		bytes *= length
	}
	if dataType == TypeBits {
		return bytes/8 + min(1, bytes%8), true
	}
	return bytes, true
}

// fits tells whether the bytes are those that type and shape ask for.
func (t Tensor) fits() bool {
	bytes, ok := bytesOfShape(t.dataType, t.shape)
	return ok && bytes == len(t.data)
}
