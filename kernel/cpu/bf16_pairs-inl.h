// MathMode::kFast: dot products of pairs of BFLOAT16 by the instruction of
// AVX512_BF16, two products per lane, at about twice the speed.
// Highway 1.0 knows neither the instruction nor how to ask the CPU for it; this
// file does both. Included once per SIMD target.
//
// What differs from Exact (tile-inl.h): weights are rounded to BFLOAT16, and
// exp is only as precise as that needs. The two products of a step are rounded
// in the CPU's way. Subnormal numbers count as zero. Steps begin at even keys
// of a block, so that the bits still do not depend on how rows and keys are
// cut.
#if defined(ATTENTION_KERNEL_CPU_BF16_PAIRS_INL_H_) == \
    defined(HWY_TARGET_TOGGLE)
#ifdef ATTENTION_KERNEL_CPU_BF16_PAIRS_INL_H_
#undef ATTENTION_KERNEL_CPU_BF16_PAIRS_INL_H_
#else
#define ATTENTION_KERNEL_CPU_BF16_PAIRS_INL_H_
#endif

#include <cstdint>
#include <cstring>

#include "hwy/highway.h"
#include "kernel/attention.h"
#include "kernel/cpu/convert-inl.h"
#include "kernel/cpu/math-inl.h"
#include "kernel/cpu/tile-inl.h"

#undef ATTENTION_HAVE_BF16_PAIRS
#if HWY_TARGET <= HWY_AVX3 && HWY_ARCH_X86
#define ATTENTION_HAVE_BF16_PAIRS 1
#else
#define ATTENTION_HAVE_BF16_PAIRS 0
#endif

#if ATTENTION_HAVE_BF16_PAIRS
HWY_BEFORE_NAMESPACE();
namespace attention {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Two neighbours in memory, not necessarily aligned as a float.
struct BF16Pair {
  hwy::bfloat16_t first, second;
};

template <class D>
HWY_INLINE hn::Vec<D> LoadAs(D d, const BF16Pair* from) {
  static_assert(sizeof(BF16Pair) == sizeof(hn::TFromD<D>));
  return hn::LoadU(d, reinterpret_cast<const hn::TFromD<D>*>(from));
}

// The members are those of Exact. A float here holds the bits of two BFLOAT16,
// the first in its lower half. Of a query or key they are neighbours along D;
// of a value, the same column of two neighbouring keys.
struct BF16Pairs : PlainSums<float> {
  using T = float;
  static constexpr int64_t kElements = 2;
  static constexpr int64_t kStepsAtOnce = 1;
  static constexpr int kTileRows = HWY_NAMESPACE::kTileRows;
  using Decode = BF16Pairs;

  // Intel's CPUs have the instruction as well, but two multiply-adds take no
  // longer there.
  static bool Supported() {
    return __builtin_cpu_supports("avx512bf16") != 0 &&
           __builtin_cpu_is("intel") == 0;
  }

  template <bool kNarrow, class F>
  static HWY_INLINE void WithKeysOf(DataType /*type*/, const F& f) {
    f(BF16Pair());
  }
  template <bool kNarrow, class F>
  static HWY_INLINE void WithValuesOf(DataType /*type*/, const F& f) {
    f(hwy::bfloat16_t());
  }

  static HWY_INLINE Vec<T> FirstProduct(Vec<T> a, Vec<T> b) {
    return MulAdd(a, b, hn::Zero(Tag<T>()));
  }
  // As assembly, which needs no compiler flag: compiled for a CPU without the
  // instruction, run only where Supported().
  static HWY_INLINE Vec<T> MulAdd(Vec<T> a, Vec<T> b, Vec<T> sum) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum.raw) : "v"(a.raw), "v"(b.raw));
    return sum;
  }

  static HWY_INLINE Vec<T> LoadValues(const float* pairs, int64_t stride,
                                      int64_t step) {
    return hn::LoadU(Tag<T>(), pairs + step * stride);
  }
  static HWY_INLINE Vec<T> LoadValues(const hwy::bfloat16_t* values,
                                      int64_t stride, int64_t step) {
    const hwy::bfloat16_t* row = values + 2 * step * stride;
    return Interleave(row, row + stride);
  }

  static void PackValues(const hwy::bfloat16_t* const* rows, int64_t columns,
                         float* HWY_RESTRICT to) {
    const Tag<T> d;
    constexpr int64_t N = kLanes<T>;
    for (int64_t c = 0; c < columns; c += N, to += N) {
      const int64_t count = HWY_MIN(N, columns - c);
      hwy::bfloat16_t part[2][N] = {};
      const hwy::bfloat16_t* from[2];
      for (int i = 0; i < 2; ++i) {
        from[i] = part[i];
        if (rows[i] == nullptr) continue;
        if (count == N) {
          from[i] = rows[i] + c;
        } else {
          std::memcpy(part[i], rows[i] + c, count * sizeof(part[i][0]));
        }
      }
      hn::Store(Interleave(from[0], from[1]), d, to);
    }
  }

  static float ValueAt(const void* const* rows, DataType /*type*/,
                       int64_t column) {
    uint16_t pair[2] = {};
    for (int i = 0; i < 2; ++i) {
      if (rows[i] == nullptr) continue;
      std::memcpy(&pair[i], static_cast<const uint16_t*>(rows[i]) + column,
                  sizeof(pair[i]));
    }
    float step;
    std::memcpy(&step, pair, sizeof(step));
    return step;
  }

  // Within 2^-16: weights will be rounded to eight bits. Like ExpNonPositive,
  // but computes 2^t of a rounded t, by a minimax polynomial p of degree 4 with
  // p(0) = 1. Its relative error on [-1/2, 1/2] is 2.9e-6.
  static HWY_INLINE Vec<T> Exp(Vec<T> x) {
    using Traits = ExpTraits<T>;
    const Tag<T> d;
    const Vec<T> magic = hn::Set(d, Traits::kRounder);
    const Vec<T> t = hn::Mul(x, hn::Set(d, Traits::kLog2E));
    const Vec<T> rounded = hn::Add(t, magic);
    const Vec<T> r = hn::Sub(rounded, magic);
    const Vec<T> g = hn::Sub(t, r);
    Vec<T> p = hn::Set(d, 9.5828531689e-3f);
    p = Fma(p, g, hn::Set(d, 5.5906425036e-2f));
    p = Fma(p, g, hn::Set(d, 2.4024098611e-1f));
    p = Fma(p, g, hn::Set(d, 6.9312419337e-1f));
    p = Fma(p, g, hn::Set(d, 1.0f));
    return TimesPowerOf2OrZero(d, p, r, rounded, x,
                               hn::Set(d, Traits::kMinLog));
  }

  // Must be called in ascending order: a vector overwrites scores already read.
  static HWY_INLINE void StoreWeights(Vec<T> weights, int64_t key, T* row) {
    __m256i rounded;
    asm("vcvtneps2bf16 %1, %0" : "=v"(rounded) : "v"(weights.raw));
    _mm256_store_si256(reinterpret_cast<__m256i*>(row + key / 2), rounded);
  }

 private:
  static HWY_INLINE Vec<T> Interleave(const hwy::bfloat16_t* first,
                                      const hwy::bfloat16_t* second) {
    // Conversion to float moves a number to the upper half.
    const Tag<T> d;
    const hn::RebindToUnsigned<Tag<T>> du;
    const auto low = hn::BitCast(du, LoadAs(d, first));
    const auto high = hn::BitCast(du, LoadAs(d, second));
    return hn::BitCast(d, hn::Or(hn::ShiftRight<16>(low), high));
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace attention
HWY_AFTER_NAMESPACE();
#endif  // ATTENTION_HAVE_BF16_PAIRS

#endif  // ATTENTION_KERNEL_CPU_BF16_PAIRS_INL_H_
