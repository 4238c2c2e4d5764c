// Elementary functions on vectors, made of exactly rounded operations only, so
// that every SIMD target gives the same bits. Included once per target.
#if defined(ATTENTION_KERNEL_MATH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ATTENTION_KERNEL_MATH_INL_H_
#undef ATTENTION_KERNEL_MATH_INL_H_
#else
#define ATTENTION_KERNEL_MATH_INL_H_
#endif

#include <cmath>

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace attention {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// a * b + c with one rounding. Targets without the instruction compute it lane
// by lane: slow, the same bits.
template <class V>
HWY_INLINE V Fma(V a, V b, V c) {
#if HWY_NATIVE_FMA
  return hn::MulAdd(a, b, c);
#else
  const hn::DFromV<V> d;
  using T = hn::TFromD<decltype(d)>;
  HWY_ALIGN T x[hn::MaxLanes(d)], y[hn::MaxLanes(d)], z[hn::MaxLanes(d)];
  hn::Store(a, d, x);
  hn::Store(b, d, y);
  hn::Store(c, d, z);
  for (size_t i = 0; i < hn::Lanes(d); ++i) x[i] = std::fma(x[i], y[i], z[i]);
  return hn::Load(d, x);
#endif
}

// kMinLog: a little above the logarithm of the smallest normal number.
template <typename T>
struct ExpTraits;
template <>
struct ExpTraits<float> {
  static constexpr float kLog2E = 0x1.715476p+0f;
  static constexpr float kRounder = 0x1.8p23f;
  static constexpr float kMinLog = -87.0f;
};
template <>
struct ExpTraits<double> {
  static constexpr double kLog2E = 0x1.71547652b82fep+0;
  static constexpr double kRounder = 0x1.8p52;
  static constexpr double kMinLog = -708.0;
};

// (2^f - 1) / f for f in [-0.5, 0.5]: minimax polynomials for the relative
// error of 1 + f * q(f) against 2^f, which is 2.6e-9 (float, degree 5) and
// 1.8e-17 (double, degree 10).
template <class D, class V>
HWY_INLINE V Exp2M1Quotient(D d, V f) {
  using T = hn::TFromD<D>;
  if constexpr (sizeof(T) == 4) {
    V q = hn::Set(d, 1.55946781613e-4f);
    q = Fma(q, f, hn::Set(d, 1.34066439024e-3f));
    q = Fma(q, f, hn::Set(d, 9.61769297299e-3f));
    q = Fma(q, f, hn::Set(d, 5.55031055101e-2f));
    q = Fma(q, f, hn::Set(d, 2.40226527829e-1f));
    return Fma(q, f, hn::Set(d, 6.93147214968e-1f));
  } else {
    V q = hn::Set(d, 4.078071929588336665e-10);
    q = Fma(q, f, hn::Set(d, 7.072570412814423510e-9));
    q = Fma(q, f, hn::Set(d, 1.018064765923413889e-7));
    q = Fma(q, f, hn::Set(d, 1.321544267532982214e-6));
    q = Fma(q, f, hn::Set(d, 1.525272738519386820e-5));
    q = Fma(q, f, hn::Set(d, 1.540353044157213033e-4));
    q = Fma(q, f, hn::Set(d, 1.333355815343996475e-3));
    q = Fma(q, f, hn::Set(d, 9.618129107607002380e-3));
    q = Fma(q, f, hn::Set(d, 5.550410866479039456e-2));
    q = Fma(q, f, hn::Set(d, 2.402265069591009801e-1));
    return Fma(q, f, hn::Set(d, 6.931471805599456968e-1));
  }
}

// x * 2^r for integral r in [-min_exponent, 0] and normal results. `rounded` is
// r + kRounder, whose last bits are those of the integer r: no conversion,
// which NaN and some targets would make trouble in.
template <class D, class V>
HWY_INLINE V TimesPowerOf2([[maybe_unused]] D d, V x, [[maybe_unused]] V r,
                           [[maybe_unused]] V rounded) {
  using T = hn::TFromD<D>;
#if HWY_TARGET <= HWY_AVX3 && HWY_ARCH_X86
  if constexpr (sizeof(T) == 4) {
    return V{_mm512_scalef_ps(x.raw, r.raw)};
  } else {
    return V{_mm512_scalef_pd(x.raw, r.raw)};
  }
#else
  const hn::RebindToSigned<D> di;
  constexpr int kMantissaBits = sizeof(T) == 4 ? 23 : 52;
  constexpr int kBias = sizeof(T) == 4 ? 127 : 1023;
  const auto exponent = hn::Add(hn::BitCast(di, rounded),
                                hn::Set(di, hn::TFromD<decltype(di)>{kBias}));
  return hn::Mul(x, hn::BitCast(d, hn::ShiftLeft<kMantissaBits>(exponent)));
#endif
}

// exp(x) for x <= 0, NaN for NaN; 0 for x < kMinLog.
// Within 2 units in the last place, and |x| times the relative rounding error
// of kLog2E (1.3e-8, 1.4e-17): a weight so small that this shows hardly counts.
template <class D, class V>
HWY_INLINE V ExpNonPositive(D d, V x) {
  using T = hn::TFromD<D>;
  using Traits = ExpTraits<T>;
  // x log2(e) = r + f: adding and subtracting 1.5 * 2^mantissa_bits rounds to
  // the integer r; f needs no rounding of the product.
  const V log2e = hn::Set(d, Traits::kLog2E);
  const V magic = hn::Set(d, Traits::kRounder);
  const V rounded = Fma(x, log2e, magic);
  const V r = hn::Sub(rounded, magic);
  const V f = Fma(x, log2e, hn::Neg(r));
  const V p = Fma(Exp2M1Quotient(d, f), f, hn::Set(d, T{1}));
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, Traits::kMinLog)),
                            TimesPowerOf2(d, p, r, rounded));
}

// tanh(x). With e = exp(2|x|) - 1 it is e / (e + 2); where 2|x| log2(e) <= 0.5
// that difference comes from its own polynomial, without cancellation;
// elsewhere it is written in exp(-2|x|), which cannot overflow.
template <class D, class V>
HWY_INLINE V Tanh(D d, V x) {
  using T = hn::TFromD<D>;
  const V one = hn::Set(d, T{1});
  const V y = hn::Mul(hn::Abs(x), hn::Set(d, T{2} * ExpTraits<T>::kLog2E));
  const auto small = hn::Lt(y, hn::Set(d, T{0.5}));
  // In the lanes that take the other branch the polynomial may overflow; those
  // results are dropped.
  const V e = hn::Mul(Exp2M1Quotient(d, y), y);
  const V near = hn::Div(e, hn::Add(e, hn::Set(d, T{2})));
  const V t = ExpNonPositive(d, hn::Mul(hn::Abs(x), hn::Set(d, T{-2})));
  const V far = hn::Div(hn::Sub(one, t), hn::Add(one, t));
  return hn::CopySign(hn::IfThenElse(small, near, far), x);
}

}  // namespace HWY_NAMESPACE
}  // namespace attention
HWY_AFTER_NAMESPACE();

#endif  // ATTENTION_KERNEL_MATH_INL_H_
