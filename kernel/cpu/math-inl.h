// Elementary functions, made of correctly rounded operations only, so that
// every SIMD target gives the same bits. Included once per SIMD target.
#if defined(ATTENTION_KERNEL_CPU_MATH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ATTENTION_KERNEL_CPU_MATH_INL_H_
#undef ATTENTION_KERNEL_CPU_MATH_INL_H_
#else
#define ATTENTION_KERNEL_CPU_MATH_INL_H_
#endif

#include <cmath>
#include <limits>

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

// c - a * b with one rounding.
template <class V>
HWY_INLINE V NegFma(V a, V b, V c) {
#if HWY_NATIVE_FMA
  return hn::NegMulAdd(a, b, c);
#else
  return Fma(hn::Neg(a), b, c);
#endif
}

// kLn2High + kLn2Low is log(2) to twice the precision. kMinLog: a little above
// the logarithm of the smallest normal number.
template <typename T>
struct ExpTraits;
template <>
struct ExpTraits<float> {
  static constexpr float kLog2E = 0x1.715476p+0f;
  static constexpr float kLn2High = 0x1.62e43p-1f;
  static constexpr float kLn2Low = -0x1.05c61p-29f;
  static constexpr float kRounder = 0x1.8p23f;
  static constexpr float kMinLog = -87.0f;
};
template <>
struct ExpTraits<double> {
  static constexpr double kLog2E = 0x1.71547652b82fep+0;
  static constexpr double kLn2High = 0x1.62e42fefa39efp-1;
  static constexpr double kLn2Low = 0x1.abc9e3b39803fp-56;
  static constexpr double kRounder = 0x1.8p52;
  static constexpr double kMinLog = -708.0;
};

// (e^g - 1) / g for |g| <= log(2) / 2: 1 + g * h(g) with minimax polynomials h
// for the relative error of 1 + g * (1 + g * h(g)) against e^g, which is 3.1e-9
// (float, degree 4) and 3.7e-18 (double, degree 9).
template <class D, class V>
HWY_INLINE V ExpM1Quotient(D d, V g) {
  using T = hn::TFromD<D>;
  if constexpr (sizeof(T) == 4) {
    V h = hn::Set(d, 1.38145986467e-3f);
    h = Fma(h, g, hn::Set(d, 8.36871687973e-3f));
    h = Fma(h, g, hn::Set(d, 4.16683880453e-2f));
    h = Fma(h, g, hn::Set(d, 1.66665206317e-1f));
    h = Fma(h, g, hn::Set(d, 4.99999934478e-1f));
    return Fma(h, g, hn::Set(d, 1.0f));
  } else {
    V h = hn::Set(d, 2.500006162553127959e-8);
    h = Fma(h, g, hn::Set(d, 2.763024838532302056e-7));
    h = Fma(h, g, hn::Set(d, 2.755758637378518095e-6));
    h = Fma(h, g, hn::Set(d, 2.480149309888739154e-5));
    h = Fma(h, g, hn::Set(d, 1.984126950657872393e-4));
    h = Fma(h, g, hn::Set(d, 1.388888894363013416e-3));
    h = Fma(h, g, hn::Set(d, 8.333333333494461664e-3));
    h = Fma(h, g, hn::Set(d, 4.166666666653015850e-2));
    h = Fma(h, g, hn::Set(d, 1.666666666666641252e-1));
    h = Fma(h, g, hn::Set(d, 5.000000000000010627e-1));
    return Fma(h, g, hn::Set(d, 1.0));
  }
}

// p * 2^r for integral r and normal results; 0 where x < least. `rounded` is
// r + kRounder, whose last bits are those of the integer r. So no conversion to
// integer is needed, which some targets lack and NaN does not survive.
template <class D, class V>
HWY_INLINE V TimesPowerOf2OrZero([[maybe_unused]] D d, V p,
                                 [[maybe_unused]] V r,
                                 [[maybe_unused]] V rounded, V x, V least) {
  using T = hn::TFromD<D>;
#if HWY_TARGET <= HWY_AVX3 && HWY_ARCH_X86
  // "Not less" is true for NaN.
  if constexpr (sizeof(T) == 4) {
    return V{_mm512_maskz_scalef_ps(
        _mm512_cmp_ps_mask(x.raw, least.raw, _CMP_NLT_UQ), p.raw, r.raw)};
  } else {
    return V{_mm512_maskz_scalef_pd(
        _mm512_cmp_pd_mask(x.raw, least.raw, _CMP_NLT_UQ), p.raw, r.raw)};
  }
#else
  const hn::RebindToSigned<D> di;
  constexpr int kMantissaBits = sizeof(T) == 4 ? 23 : 52;
  constexpr int kBias = sizeof(T) == 4 ? 127 : 1023;
  const auto exponent = hn::Add(hn::BitCast(di, rounded),
                                hn::Set(di, hn::TFromD<decltype(di)>{kBias}));
  return hn::IfThenZeroElse(
      hn::Lt(x, least),
      hn::Mul(p, hn::BitCast(d, hn::ShiftLeft<kMantissaBits>(exponent))));
#endif
}

// exp(x) for x <= 0, NaN for NaN; 0 for x < kMinLog. Within 1 unit in the last
// place; exp(0) is 1.
template <class D, class V>
HWY_INLINE V ExpNonPositive(D d, V x) {
  using T = hn::TFromD<D>;
  using Traits = ExpTraits<T>;
  // x = r log(2) + g: adding and subtracting 1.5 * 2^mantissa_bits rounds to
  // the integer r.
  const V magic = hn::Set(d, Traits::kRounder);
  const V rounded = Fma(x, hn::Set(d, Traits::kLog2E), magic);
  const V r = hn::Sub(rounded, magic);
  V g = NegFma(r, hn::Set(d, Traits::kLn2High), x);
  g = NegFma(r, hn::Set(d, Traits::kLn2Low), g);
  const V p = Fma(ExpM1Quotient(d, g), g, hn::Set(d, T{1}));
  return TimesPowerOf2OrZero(d, p, r, rounded, x, hn::Set(d, Traits::kMinLog));
}

// tanh(x) = sign(x) e / (e + 2) with e = exp(2|x|) - 1. Where 2|x| <= log(2) /
// 2, e comes from its own polynomial, without cancellation. Elsewhere the
// quotient is written in exp(-2|x|), which cannot overflow.
template <class D, class V>
HWY_INLINE V Tanh(D d, V x) {
  using T = hn::TFromD<D>;
  const V one = hn::Set(d, T{1});
  const V y = hn::Mul(hn::Abs(x), hn::Set(d, T{2}));
  const auto small = hn::Lt(y, hn::Set(d, ExpTraits<T>::kLn2High / 2));
  // In the lanes that take the other branch the polynomial may overflow; those
  // results are dropped.
  const V e = hn::Mul(ExpM1Quotient(d, y), y);
  const V near = hn::Div(e, hn::Add(e, hn::Set(d, T{2})));
  const V t = ExpNonPositive(d, hn::Neg(y));
  const V far = hn::Div(hn::Sub(one, t), hn::Add(one, t));
  return hn::CopySign(hn::IfThenElse(small, near, far), x);
}

// Natural logarithm of a positive finite number; the rest as std::log. Written
// out because the C library's bits depend on the CPU. Error below 1e-15 of the
// larger of result and 1.
inline double Log(double x) {
  if (!(x > 0) || x == std::numeric_limits<double>::infinity())
    return std::log(x);
  int exponent;
  double m = std::frexp(x, &exponent);
  if (m < 0.70710678118654752440) {
    m *= 2;
    --exponent;
  }
  // log(m) = 2 atanh(z), |z| <= 0.172.
  const double z = (m - 1) / (m + 1);
  const double z2 = z * z;
  double series = 0;
  for (int n = 23; n >= 1; n -= 2) series = std::fma(series, z2, 1.0 / n);
  return std::fma(exponent, 0.69314718055994530942, 2 * z * series);
}

}  // namespace HWY_NAMESPACE
}  // namespace attention
HWY_AFTER_NAMESPACE();

#endif  // ATTENTION_KERNEL_CPU_MATH_INL_H_
