// Tensors that tests own, with conversions of their own: nothing here is shared
// with the kernel, so that a mistake there cannot hide here.
#ifndef ATTENTION_TESTS_SUPPORT_TENSOR_H_
#define ATTENTION_TESTS_SUPPORT_TENSOR_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernel/data_type.h"
#include "kernel/tensor_view.h"

namespace attention::test {

// A binary floating point format: (-1)^s * 1.f * 2^e with `fraction_bits` bits
// of f and min_exponent <= e <= max_exponent, subnormals below.
struct FloatFormat {
  int exponent_bits;
  int fraction_bits;
  int min_exponent;
  int max_exponent;
};

inline constexpr DataType kFloatTypes[] = {
    DataType::kFloat32, DataType::kFloat16, DataType::kBFloat16,
    DataType::kFloat64};

// `type` is a float type.
FloatFormat FormatOf(DataType type);

// Half the distance between 1 and the next larger number of `type`: the largest
// relative error of rounding to it.
double UnitRoundoff(DataType type);

// Distance between neighbours of `type` around `x`; that of the largest finite
// numbers where |x| is beyond them.
double UlpAt(double x, DataType type);

// `x` rounded to the nearest number of `type`, ties to even, overflowing to
// infinity. Integers and booleans must be representable.
double Round(double x, DataType type);

// The element of `type` at `data`, exactly (an INT64 above 2^53 rounded).
double Decode(DataType type, const void* data);

// Writes Round(x, type) to `data`.
void Encode(DataType type, double x, void* data);

class Tensor {
 public:
  // How the elements stand in memory.
  struct Placement {
    // Empty: row-major without padding.
    Shape strides;
    // Elements of padding before the first one: 1 misaligns for every vector.
    int64_t offset = 0;
    // Bytes of padding after the last element. Zero lets the address sanitizer
    // see the first byte read past the end.
    int64_t tail_bytes = 0;
  };

  Tensor() : Tensor(DataType::kFloat32, {0}) {}
  // All zero. Padding has all bits set: NaN in the float types, in BOOL a byte
  // that is no boolean.
  Tensor(DataType type, Shape shape) : Tensor(type, shape, Placement{}) {}
  Tensor(DataType type, Shape shape, Placement placement);
  // `values` in row-major order.
  Tensor(DataType type, Shape shape, const std::vector<double>& values);

  DataType type() const { return type_; }
  const Shape& shape() const { return shape_; }
  int64_t size() const { return size_; }

  // Element by its place in row-major order, wherever it stands in memory.
  double Get(int64_t index) const;
  void Set(int64_t index, double value);
  double Get(absl::Span<const int64_t> index) const;
  void Set(absl::Span<const int64_t> index, double value);

  std::vector<double> values() const;
  ConstTensorView view() const;
  void* data();
  const void* data() const;

  // Whether the padding before and after the elements is as it was made.
  bool GuardsIntact() const;

  // A row-major copy in another type.
  Tensor ConvertedTo(DataType type) const;
  // The same values placed otherwise.
  Tensor PlacedAs(Placement placement) const;
  // Rows [begin, end) of `axis`, row-major.
  Tensor Slice(int axis, int64_t begin, int64_t end) const;

 private:
  int64_t MemoryIndex(int64_t index) const;
  int64_t RowMajorIndex(absl::Span<const int64_t> index) const;

  DataType type_;
  Shape shape_;
  Placement placement_;
  int64_t size_;
  std::vector<std::byte> storage_;
};

// Strides of `shape` without padding.
Shape RowMajorStrides(absl::Span<const int64_t> shape);

// `parts` joined along `axis`; the other axes agree.
Tensor Concatenate(const std::vector<Tensor>& parts, int axis);

// A tensor of equal elements.
Tensor Filled(DataType type, Shape shape, double value);

}  // namespace attention::test

#endif  // ATTENTION_TESTS_SUPPORT_TENSOR_H_
