// Scaled rows (kernel/scaled.h) as the numbers that they stand for. Included
// once per SIMD target.
#if defined(ATTENTION_KERNEL_CPU_SCALED_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ATTENTION_KERNEL_CPU_SCALED_INL_H_
#undef ATTENTION_KERNEL_CPU_SCALED_INL_H_
#else
#define ATTENTION_KERNEL_CPU_SCALED_INL_H_
#endif

#include <cstdint>

#include "hwy/highway.h"
#include "kernel/cpu/convert-inl.h"
#include "kernel/cpu/strided_rows.h"
#include "kernel/scaled.h"

HWY_BEFORE_NAMESPACE();
namespace attention {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Vectors of elements, without their scale; exact.
struct Int8Elements {
  template <class D>
  static HWY_INLINE hn::Vec<D> Load(D d, const void* row, int64_t column) {
    const hn::Rebind<int8_t, D> d8;
    const hn::RebindToSigned<D> d32;
    return hn::ConvertTo(
        d, hn::PromoteTo(
               d32, hn::LoadU(d8, static_cast<const int8_t*>(row) + column)));
  }
};

struct Float8Elements {
  template <class D>
  static HWY_INLINE hn::Vec<D> Load(D d, const void* row, int64_t column) {
    // The bits of a FLOAT16 that is 2^-8 times as much, subnormals included.
    const hn::Rebind<uint8_t, D> d8;
    const hn::Rebind<uint16_t, D> d16;
    const auto bits = hn::PromoteTo(
        d16, hn::LoadU(d8, static_cast<const uint8_t*>(row) + column));
    const auto sign = hn::ShiftLeft<8>(hn::And(bits, hn::Set(d16, 0x80)));
    const auto magnitude = hn::ShiftLeft<7>(hn::And(bits, hn::Set(d16, 0x7f)));
    const hn::Rebind<hwy::float16_t, D> dh;
    return hn::Mul(hn::PromoteTo(d, hn::BitCast(dh, hn::Or(sign, magnitude))),
                   hn::Set(d, 256.0f));
  }
};

// The numbers of scaled rows of `type`, to to[rows.count][columns].
template <class Elements>
void UnscaleRowsOf(DataType type, const StridedRows& rows, int64_t columns,
                   float* HWY_RESTRICT to) {
  const Tag<float> d;
  constexpr int64_t N = kLanes<float>;
  for (int64_t i = 0; i < rows.count; ++i, to += columns) {
    const void* const row = rows.Row<char>(i);
    const auto factor = hn::Set(d, ScaleFactor(rows.scales[i]));
    int64_t c = 0;
    for (; c + N <= columns; c += N) {
      hn::StoreU(hn::Mul(Elements::Load(d, row, c), factor), d, to + c);
    }
    for (; c < columns; ++c) {
      to[c] = ScaledElement(type, rows.scales[i], row, c);
    }
  }
}

inline void UnscaleRows(DataType type, const StridedRows& rows, int64_t columns,
                        float* to) {
  if (type == DataType::kInt8) {
    UnscaleRowsOf<Int8Elements>(type, rows, columns, to);
  } else {
    UnscaleRowsOf<Float8Elements>(type, rows, columns, to);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace attention
HWY_AFTER_NAMESPACE();

#endif  // ATTENTION_KERNEL_CPU_SCALED_INL_H_
