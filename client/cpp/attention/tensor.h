// Dense tensors, as they travel: element type, shape, row-major bytes.
//
//   std::vector<float> values = {1, 0, 0, 1};
//   auto lent = attention::TensorSpan::Of<float>(values, {2, 2});
//   auto own = attention::Tensor::Of<float>(values, {2, 2});
//   std::vector<double> numbers = {0.1, 0.2};
//   auto half = attention::Tensor::Rounded(attention::v1::DATA_TYPE_FLOAT16,
//                                          numbers, {1, 2});
//   numbers = half.ToDoubles();
//
// The 16-bit floats are held as their bits in uint16_t (attention/float16.h).
// Bytes are little-endian, as on the wire; so must the machine be.
#ifndef ATTENTION_TENSOR_H_
#define ATTENTION_TENSOR_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "attention/v1/attention.pb.h"

namespace attention {

// Bytes an element takes; 0 for DATA_TYPE_UNSPECIFIED and unknown types.
size_t ElementSize(v1::DataType type);

// "FLOAT32"; the number for types this build does not know.
std::string TypeName(v1::DataType type);

// Number of elements of `shape`; nothing if a dimension is negative or the
// number overflows int64_t.
std::optional<int64_t> ElementCount(std::span<const int64_t> shape);

// Whether a tensor of this type and shape takes so many bytes. Types of which
// no size is known and shapes that ElementCount() refuses take none.
bool BytesFit(v1::DataType type, std::span<const int64_t> shape, size_t bytes);

// The element type that holds a C++ type. 16-bit floats have no C++ type of
// their own: name theirs where a function takes a v1::DataType.
template <typename T>
inline constexpr v1::DataType kDataTypeOf = v1::DATA_TYPE_UNSPECIFIED;
template <>
inline constexpr v1::DataType kDataTypeOf<float> = v1::DATA_TYPE_FLOAT32;
template <>
inline constexpr v1::DataType kDataTypeOf<double> = v1::DATA_TYPE_FLOAT64;
template <>
inline constexpr v1::DataType kDataTypeOf<bool> = v1::DATA_TYPE_BOOL;
template <>
inline constexpr v1::DataType kDataTypeOf<int8_t> = v1::DATA_TYPE_INT8;
template <>
inline constexpr v1::DataType kDataTypeOf<int32_t> = v1::DATA_TYPE_INT32;
template <>
inline constexpr v1::DataType kDataTypeOf<int64_t> = v1::DATA_TYPE_INT64;

// The C++ type in which Tensor::Of() holds a T: T itself, or, for an integer
// that the wire lacks, the next wider one that holds each of its values.
template <typename T>
struct Held {
  using type = T;
};
template <>
struct Held<uint8_t> {
  using type = int32_t;
};
template <>
struct Held<int16_t> {
  using type = int32_t;
};
template <>
struct Held<uint32_t> {
  using type = int64_t;
};

// Elements that somebody else owns, and which must stay as they are while a
// call uses them. Cheap to copy. Nothing is checked here: a number of bytes
// that does not fit the shape makes the server refuse the call, naming the
// tensor.
struct TensorSpan {
  // `elements` has the product of `shape` elements.
  template <typename T>
  static TensorSpan Of(std::span<const T> elements,
                       std::vector<int64_t> shape) {
    static_assert(kDataTypeOf<T> != v1::DATA_TYPE_UNSPECIFIED,
                  "no element type holds T: lend a Tensor::Of<T>(), which "
                  "widens integers, or give type and bytes yourself");
    return {kDataTypeOf<T>, std::move(shape), std::as_bytes(elements)};
  }

  v1::DataType type = v1::DATA_TYPE_UNSPECIFIED;
  std::vector<int64_t> shape;
  std::span<const std::byte> bytes;
};

// A tensor that shares its elements with its copies; they never change, so that
// it is a value, cheap to copy. Access from several threads is safe, but for
// assignment. The bytes always fit the shape.
class Tensor {
 public:
  // No element type, shape (0).
  Tensor() = default;

  // A tensor of these bytes; nothing if `type` is unknown or the number of
  // bytes is not what the shape needs.
  static std::optional<Tensor> FromBytes(v1::DataType type,
                                         std::vector<std::byte> bytes,
                                         std::vector<int64_t> shape);

  // The same of `bytes` bytes that `elements` keeps: a pointer to the first
  // one, which shares the ownership of whatever holds them, or owns nothing
  // where somebody else sees to that. They must be aligned to the element's
  // size, and not change.
  static std::optional<Tensor> FromShared(
      v1::DataType type, std::shared_ptr<const std::byte> elements,
      size_t bytes, std::vector<int64_t> shape);

  // As FromBytes(), of elements of a C++ type. Integers that the wire lacks
  // keep their values: uint8_t and int16_t become INT32, uint32_t INT64.
  // (uint16_t could be numbers or the bits of 16-bit floats: FromBytes() takes
  // those.) Precondition: `elements` has the product of `shape` elements.
  template <typename T>
  static Tensor Of(std::span<const T> elements, std::vector<int64_t> shape) {
    using Element = typename Held<T>::type;
    static_assert(kDataTypeOf<Element> != v1::DATA_TYPE_UNSPECIFIED,
                  "no element type holds T; use FromBytes");
    if constexpr (std::is_same_v<Element, T>) {
      const auto bytes = std::as_bytes(elements);
      return FromBytes(kDataTypeOf<T>, {bytes.begin(), bytes.end()},
                       std::move(shape))
          .value();
    } else {
      const std::vector<Element> wide(elements.begin(), elements.end());
      return Of<Element>(wide, std::move(shape));
    }
  }

  // Numbers rounded to any known element type: to nearest even for floats, to
  // nearest and clamped to the range for integers (NaN is 0), not zero is true
  // for BOOL. Precondition: `numbers` has the product of `shape` elements.
  static Tensor Rounded(v1::DataType type, std::span<const double> numbers,
                        std::vector<int64_t> shape);

  v1::DataType type() const { return type_; }
  const std::vector<int64_t>& shape() const { return shape_; }
  std::span<const std::byte> bytes() const {
    return {elements_.get(), elements_ == nullptr ? 0 : num_bytes_};
  }
  int64_t size() const { return ElementCount(shape_).value_or(0); }

  // The elements in place; valid while the tensor or a copy of it lives and is
  // not assigned to.
  // T is the type's C++ type, or uint16_t for the bits of a 16-bit float; empty
  // if the tensor is of another type.
  template <typename T>
  std::span<const T> elements() const {
    const bool bits16 =
        type_ == v1::DATA_TYPE_FLOAT16 || type_ == v1::DATA_TYPE_BFLOAT16;
    if (std::is_same_v<T, uint16_t> ? !bits16 : type_ != kDataTypeOf<T>) {
      return {};
    }
    return {reinterpret_cast<const T*>(bytes().data()),
            bytes().size() / sizeof(T)};
  }

  // All elements as double: exact but for INT64 beyond 2^53.
  std::vector<double> ToDoubles() const;

  // The tensor lent to a call; valid as elements() is.
  // NOLINTNEXTLINE(google-explicit-constructor): a call takes either.
  operator TensorSpan() const { return {type_, shape_, bytes()}; }

 private:
  v1::DataType type_ = v1::DATA_TYPE_UNSPECIFIED;
  std::vector<int64_t> shape_ = {0};
  // Null without elements.
  std::shared_ptr<const std::byte> elements_;
  size_t num_bytes_ = 0;
};

}  // namespace attention

#endif  // ATTENTION_TENSOR_H_
