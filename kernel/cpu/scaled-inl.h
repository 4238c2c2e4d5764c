// Scaled rows (kernel/scaled.h) as the numbers that they stand for. Included
// once per SIMD target.
#if defined(ATTENTION_KERNEL_CPU_SCALED_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ATTENTION_KERNEL_CPU_SCALED_INL_H_
#undef ATTENTION_KERNEL_CPU_SCALED_INL_H_
#else
#define ATTENTION_KERNEL_CPU_SCALED_INL_H_
#endif

#include <cstdint>
#include <type_traits>

#include "hwy/highway.h"
#include "kernel/cpu/convert-inl.h"
#include "kernel/cpu/strided_rows.h"
#include "kernel/scaled.h"

HWY_BEFORE_NAMESPACE();
namespace attention {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Elements of scaled rows, without their scale.
struct Int8Element {
  int8_t bits;
};
struct Float8Element {
  uint8_t bits;
};
template <typename Element>
constexpr bool kIsScaledElement = std::is_same_v<Element, Int8Element> ||
                                  std::is_same_v<Element, Float8Element>;

// Calls f with an object of the element type of scaled rows of `type`.
template <class F>
HWY_INLINE void WithScaledElementsOf(DataType type, const F& f) {
  type == DataType::kInt8 ? f(Int8Element()) : f(Float8Element());
}

// Exact.
template <class D>
HWY_INLINE hn::Vec<D> LoadAs(D d, const Int8Element* from) {
  const hn::Rebind<int8_t, D> d8;
  const hn::RebindToSigned<D> d32;
  return hn::ConvertTo(
      d,
      hn::PromoteTo(d32, hn::LoadU(d8, reinterpret_cast<const int8_t*>(from))));
}
template <class D>
HWY_INLINE hn::Vec<D> LoadAs(D d, const Float8Element* from) {
  // The bits of a FLOAT16 that is 2^-8 times as much, subnormals included: the
  // sign, which extends over what is above it, is kept in one place.
  const hn::Rebind<int8_t, D> d8;
  const hn::Rebind<int16_t, D> d16;
  const auto bits =
      hn::PromoteTo(d16, hn::LoadU(d8, reinterpret_cast<const int8_t*>(from)));
  const auto half =
      hn::And(hn::ShiftLeft<7>(bits), hn::Set(d16, int16_t{~0x4000}));
  const hn::Rebind<hwy::float16_t, D> dh;
  return hn::Mul(hn::PromoteTo(d, hn::BitCast(dh, half)), hn::Set(d, 256.0f));
}

// The factors of rows.count scales, filled up with zeros to a whole vector.
inline void LoadFactors(const StridedRows& rows, float* HWY_RESTRICT factors) {
  int64_t i = 0;
  for (; i < rows.count; ++i) factors[i] = ScaleFactor(rows.scales[i]);
  for (; i % kLanes<float> != 0; ++i) factors[i] = 0;
}

// Values of scaled rows where they lie: columns from data[0] on.
template <typename Element>
struct ScaledValues {
  const Element* data;
  const float* factors;  // of each row

  ScaledValues operator+(int64_t columns) const {
    return {data + columns, factors};
  }
};

// The numbers of scaled rows, to to[rows.count][columns].
template <typename Element>
void UnscaleRowsOf(DataType type, const StridedRows& rows, int64_t columns,
                   float* HWY_RESTRICT to) {
  const Tag<float> d;
  constexpr int64_t N = kLanes<float>;
  for (int64_t i = 0; i < rows.count; ++i, to += columns) {
    const Element* const row = rows.Row<Element>(i);
    const auto factor = hn::Set(d, ScaleFactor(rows.scales[i]));
    int64_t c = 0;
    for (; c + N <= columns; c += N) {
      hn::StoreU(hn::Mul(LoadAs(d, row + c), factor), d, to + c);
    }
    for (; c < columns; ++c) {
      to[c] = ScaledElement(type, rows.scales[i], row, c);
    }
  }
}

inline void UnscaleRows(DataType type, const StridedRows& rows, int64_t columns,
                        float* to) {
  WithScaledElementsOf(type, [&](auto element) {
    UnscaleRowsOf<decltype(element)>(type, rows, columns, to);
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace attention
HWY_AFTER_NAMESPACE();

#endif  // ATTENTION_KERNEL_CPU_SCALED_INL_H_
