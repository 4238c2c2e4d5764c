// Elementary functions on vectors, made of exactly rounded operations only, so
// that every SIMD target gives the same bits. Included once per target.
#if defined(ATTENTION_KERNEL_MATH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ATTENTION_KERNEL_MATH_INL_H_
#undef ATTENTION_KERNEL_MATH_INL_H_
#else
#define ATTENTION_KERNEL_MATH_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <limits>

#include "hwy/highway.h"
#include "kernel/convert.h"

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

// log2(e) and log(2), each as a double and what is missing to twice the
// precision.
constexpr double kLog2E = 0x1.71547652b82fep+0;
constexpr double kLog2ELow = 0x1.777d0ffda0d24p-56;
constexpr double kLn2 = 0x1.62e42fefa39efp-1;
constexpr double kLn2Low = 0x1.abc9e3b39803fp-56;

// x log2(e), rounded once. Finite numbers stay finite.
template <typename T>
T ToBase2(double x) {
  if (std::isinf(x)) return static_cast<T>(x);
  constexpr double kMax = std::numeric_limits<double>::max();
  return FromDouble<T>(
      std::clamp(std::fma(x, kLog2E, x * kLog2ELow), -kMax, kMax));
}

// x log(2); the largest numbers, where ToBase2() ends, are themselves.
template <typename T>
double FromBase2(T x) {
  if (std::fabs(x) >= std::numeric_limits<T>::max()) return x;
  return std::fma(x, kLn2, x * kLn2Low);
}

// kMinExponent: of the smallest normal number.
template <typename T>
struct Exp2Traits;
template <>
struct Exp2Traits<float> {
  static constexpr float kRounder = 0x1.8p23f;
  static constexpr float kMinExponent = -126.0f;
};
template <>
struct Exp2Traits<double> {
  static constexpr double kRounder = 0x1.8p52;
  static constexpr double kMinExponent = -1022.0;
};

// (2^f - 1) / f for |f| <= 1/2: minimax polynomials for the relative error of
// 2^f, which is 4e-9 (float, degree 5) and 2e-17 (double, degree 10) with these
// coefficients as rounded.
template <class D, class V>
HWY_INLINE V Exp2M1Quotient(D d, V f) {
  using T = hn::TFromD<D>;
  if constexpr (sizeof(T) == 4) {
    V h = hn::Set(d, 1.5321138489e-4f);
    h = Fma(h, f, hn::Set(d, 1.3390172775e-3f));
    h = Fma(h, f, hn::Set(d, 9.6185264622e-3f));
    h = Fma(h, f, hn::Set(d, 5.5503622332e-2f));
    h = Fma(h, f, hn::Set(d, 2.4022647548e-1f));
    return Fma(h, f, hn::Set(d, 6.9314718056e-1f));
  } else {
    V h = hn::Set(d, 4.43630248781827299e-10);
    h = Fma(h, f, hn::Set(d, 7.07358211569326688e-9));
    h = Fma(h, f, hn::Set(d, 1.01781846789837495e-7));
    h = Fma(h, f, hn::Set(d, 1.32154365943838076e-6));
    h = Fma(h, f, hn::Set(d, 1.52527335467701325e-5));
    h = Fma(h, f, hn::Set(d, 1.54035304540926173e-4));
    h = Fma(h, f, hn::Set(d, 1.33335581466862531e-3));
    h = Fma(h, f, hn::Set(d, 9.61812910759696629e-3));
    h = Fma(h, f, hn::Set(d, 5.55041086648207336e-2));
    h = Fma(h, f, hn::Set(d, 2.40226506959101223e-1));
    return Fma(h, f, hn::Set(d, 6.93147180559945309e-1));
  }
}

// p * 2^r for integral r and normal results; 0 where x < least. `rounded` is
// r + kRounder, whose last bits are those of the integer r: no conversion,
// which NaN and some targets would make trouble in.
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

// 2^x for x <= 0, NaN for NaN; 0 for x < kMinExponent. Within 1 unit in the
// last place; 2^0 is 1.
template <class D, class V>
HWY_INLINE V Exp2NonPositive(D d, V x) {
  using T = hn::TFromD<D>;
  using Traits = Exp2Traits<T>;
  // x = r + f: adding and subtracting 1.5 * 2^mantissa_bits rounds to the
  // integer r.
  const V magic = hn::Set(d, Traits::kRounder);
  const V rounded = hn::Add(x, magic);
  const V r = hn::Sub(rounded, magic);
  const V f = hn::Sub(x, r);
  const V p = Fma(Exp2M1Quotient(d, f), f, hn::Set(d, T{1}));
  return TimesPowerOf2OrZero(d, p, r, rounded, x,
                             hn::Set(d, Traits::kMinExponent));
}

// tanh(x). With e = exp(2|x|) - 1 it is e / (e + 2); where exp(2|x|) is at most
// the root of 2 that difference comes from its own polynomial, without
// cancellation; elsewhere it is written in exp(-2|x|), which cannot overflow.
template <class D, class V>
HWY_INLINE V Tanh(D d, V x) {
  using T = hn::TFromD<D>;
  const V one = hn::Set(d, T{1});
  const V y = hn::Mul(hn::Abs(x), hn::Set(d, static_cast<T>(2 * kLog2E)));
  const auto small = hn::Lt(y, hn::Set(d, T{0.5}));
  // In the lanes that take the other branch the polynomial may overflow; those
  // results are dropped.
  const V e = hn::Mul(Exp2M1Quotient(d, y), y);
  const V near = hn::Div(e, hn::Add(e, hn::Set(d, T{2})));
  const V t = Exp2NonPositive(d, hn::Neg(y));
  const V far = hn::Div(hn::Sub(one, t), hn::Add(one, t));
  return hn::CopySign(hn::IfThenElse(small, near, far), x);
}

}  // namespace HWY_NAMESPACE
}  // namespace attention
HWY_AFTER_NAMESPACE();

#endif  // ATTENTION_KERNEL_MATH_INL_H_
