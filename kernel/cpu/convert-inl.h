// Converts rows of elements of any type to the precision computed in, and back.
// Included once per SIMD target.
#if defined(ATTENTION_KERNEL_CPU_CONVERT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ATTENTION_KERNEL_CPU_CONVERT_INL_H_
#undef ATTENTION_KERNEL_CPU_CONVERT_INL_H_
#else
#define ATTENTION_KERNEL_CPU_CONVERT_INL_H_
#endif

#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "hwy/highway.h"
#include "kernel/attention.h"
#include "kernel/cpu/convert.h"

HWY_BEFORE_NAMESPACE();
namespace attention {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <typename T>
using Tag = hn::ScalableTag<T>;
template <typename T>
using Vec = hn::Vec<Tag<T>>;

template <typename T>
constexpr int64_t kLanes = static_cast<int64_t>(hn::MaxLanes(Tag<T>()));

// Calls f with an object of the C++ type of `type`. That is T, or, only if
// kNarrow, a narrower float type.
template <typename T, bool kNarrow, class F>
HWY_INLINE void WithElementsOf(DataType type, const F& f) {
  if constexpr (kNarrow) {
    if (type == DataType::kFloat16) return f(hwy::float16_t());
    if (type == DataType::kBFloat16) return f(hwy::bfloat16_t());
    if (sizeof(T) == 8 && type == DataType::kFloat32) return f(float());
  }
  f(T());
}

// Vector of T from consecutive elements of another type; exact.
template <class D>
HWY_INLINE hn::Vec<D> LoadAs(D d, const hn::TFromD<D>* from) {
  return hn::LoadU(d, from);
}
template <class D, typename Half, hwy::EnableIf<sizeof(Half) == 2>* = nullptr>
HWY_INLINE hn::Vec<D> LoadAs(D d, const Half* from) {
  if constexpr (sizeof(hn::TFromD<D>) == 4) {
#if HWY_TARGET == HWY_SCALAR || HWY_TARGET == HWY_EMU128 || \
    (HWY_ARCH_X86 && HWY_TARGET > HWY_AVX2)
    // Without an instruction for it Highway converts infinity and NaN to finite
    // numbers: version 1.0 on the first two targets, 1.3 on SSE2 as well.
    if constexpr (std::is_same_v<Half, hwy::float16_t>) {
      float floats[hn::MaxLanes(d)];
      for (size_t i = 0; i < hn::MaxLanes(d); ++i) {
        uint16_t bits;
        std::memcpy(&bits, from + i, sizeof(bits));
        floats[i] = HalfToFloat(bits);
      }
      return hn::LoadU(d, floats);
    }
#endif
    return hn::PromoteTo(d, hn::LoadU(hn::Rebind<Half, D>(), from));
  } else {
    const hn::Rebind<float, D> df;
    return hn::PromoteTo(d, LoadAs(df, from));
  }
}
template <class D, hwy::EnableIf<sizeof(hn::TFromD<D>) == 8>* = nullptr>
HWY_INLINE hn::Vec<D> LoadAs(D d, const float* from) {
  return hn::PromoteTo(d, hn::LoadU(hn::Rebind<float, D>(), from));
}

// Converts a row of `count` elements. Fills up to a whole vector with zeros.
template <typename T, typename From>
void LoadRow(const From* from, int64_t count, T* HWY_RESTRICT to) {
  const Tag<T> d;
  constexpr int64_t N = kLanes<T>;
  int64_t c = 0;
  for (; c + N <= count; c += N) hn::StoreU(LoadAs(d, from + c), d, to + c);
  if (c == count) return;
  From rest[N] = {};
  std::memcpy(rest, from + c, (count - c) * sizeof(From));
  hn::StoreU(LoadAs(d, rest), d, to + c);
}

// NaN becomes the one quiet NaN.
template <class D, class V>
HWY_INLINE V CanonicalNan(D d, V v) {
  using T = hn::TFromD<D>;
  const V nan = hn::Set(d, std::numeric_limits<T>::quiet_NaN());
  return hn::IfThenElse(hn::Eq(v, v), v, nan);
}

// StoreElements() in vectors: writes `count` elements as `type`, from element
// `index` of `data` on.
template <typename T>
void StoreRow(const T* from, int64_t count, DataType type, void* data,
              int64_t index) {
  int64_t c = 0;
#if HWY_TARGET != HWY_SCALAR && HWY_TARGET != HWY_EMU128
  const Tag<T> d;
  constexpr int64_t N = kLanes<T>;
  if (type == (sizeof(T) == 4 ? DataType::kFloat32 : DataType::kFloat64)) {
    T* to = static_cast<T*>(data) + index;
    for (; c + N <= count; c += N) {
      hn::StoreU(CanonicalNan(d, hn::Load(d, from + c)), d, to + c);
    }
  } else if constexpr (sizeof(T) == 4) {
    if (type == DataType::kFloat16) {
      auto* to = static_cast<hwy::float16_t*>(data) + index;
      const hn::Rebind<hwy::float16_t, Tag<T>> dh;
      for (; c + N <= count; c += N) {
        hn::StoreU(hn::DemoteTo(dh, CanonicalNan(d, hn::Load(d, from + c))), dh,
                   to + c);
      }
    } else if (type == DataType::kBFloat16) {
      // Highway's own conversion truncates.
      auto* to = static_cast<uint16_t*>(data) + index;
      const hn::Rebind<uint16_t, Tag<T>> dh;
      const hn::RebindToUnsigned<Tag<T>> du;
      for (; c + N <= count; c += N) {
        const auto bits =
            hn::BitCast(du, CanonicalNan(d, hn::Load(d, from + c)));
        const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1u));
        const auto rounded = hn::Add(hn::Add(bits, hn::Set(du, 0x7fffu)), odd);
        hn::StoreU(hn::TruncateTo(dh, hn::ShiftRight<16>(rounded)), dh, to + c);
      }
    }
  }
#endif
  StoreElements(from + c, count - c, type, data, index + c);
}

}  // namespace HWY_NAMESPACE
}  // namespace attention
HWY_AFTER_NAMESPACE();

#endif  // ATTENTION_KERNEL_CPU_CONVERT_INL_H_
