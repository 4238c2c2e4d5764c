// The kernel's exp and tanh against the C library in a wider type: every float,
// many doubles, on every SIMD target.
#ifndef HWY_DISABLED_TARGETS
// As in kernel/cpu/dispatch.cc.
#define HWY_DISABLED_TARGETS                                               \
  (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | \
   HWY_SVE2_128 | HWY_RVV)
#endif
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "tests/kernel/math_test.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernel/cpu/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace attention {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// `count` is a multiple of the lanes of any vector; memory is aligned to it.
template <typename T>
void ExpT(const T* x, size_t count, T* y) {
  const hn::ScalableTag<T> d;
  for (size_t i = 0; i < count; i += hn::Lanes(d)) {
    hn::Store(ExpNonPositive(d, hn::Load(d, x + i)), d, y + i);
  }
}

template <typename T>
void TanhT(const T* x, size_t count, T* y) {
  const hn::ScalableTag<T> d;
  for (size_t i = 0; i < count; i += hn::Lanes(d)) {
    hn::Store(Tanh(d, hn::Load(d, x + i)), d, y + i);
  }
}

// HWY_EXPORT takes no templates.
void ExpF(const float* x, size_t count, float* y) { ExpT(x, count, y); }
void ExpD(const double* x, size_t count, double* y) { ExpT(x, count, y); }
void TanhF(const float* x, size_t count, float* y) { TanhT(x, count, y); }
void TanhD(const double* x, size_t count, double* y) { TanhT(x, count, y); }

}  // namespace HWY_NAMESPACE
}  // namespace attention
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <gtest/gtest.h>

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <mutex>
#include <numbers>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/casts.h"
#include "absl/functional/function_ref.h"
#include "base/executor.h"
#include "base/parallel_for.h"
#include "tests/support/attention_case.h"
#include "tests/support/run_kernel.h"

namespace attention {
HWY_EXPORT(ExpF);
HWY_EXPORT(ExpD);
HWY_EXPORT(TanhF);
HWY_EXPORT(TanhD);

namespace test {
namespace {

// Every float where that takes seconds; elsewhere one of so many, as without
// optimisation, with sanitizers or under emulation it would take minutes.
#if defined(NDEBUG) && !defined(ATTENTION_EMULATED)
constexpr uint32_t kStride = 1;
#else
constexpr uint32_t kStride = 4099;
#endif
// Targets other than the machine's best, whose bits are the same, get this.
constexpr uint32_t kSparseStride = std::max<uint32_t>(kStride, 97);

constexpr size_t kChunk = 4096;

// A function of the kernel, what it should be, and how far off it is.
template <typename T, typename Wide>
struct Function {
  void (*evaluate)(const T* x, size_t count, T* y);
  Wide (*exact)(Wide);
  double (*distance)(T actual, Wide exact);
};

// In units in the last place of `exact`.
template <typename T, typename Wide>
double Ulps(T actual, Wide exact) {
  const int exponent =
      std::max(std::ilogb(exact), std::numeric_limits<T>::min_exponent - 1);
  return static_cast<double>(
      std::fabs(std::ldexp(static_cast<Wide>(actual) - exact,
                           std::numeric_limits<T>::digits - 1 - exponent)));
}

// Relative, in unit roundoffs.
template <typename T, typename Wide>
double Roundoffs(T actual, Wide exact) {
  return static_cast<double>(
      std::fabs(static_cast<Wide>(actual) - exact) / std::fabs(exact) *
      static_cast<Wide>(2 / std::numeric_limits<T>::epsilon()));
}

template <typename T>
struct Worst {
  double distance = 0;
  T at = 0;

  void Add(const Worst& other) {
    // Also where the other is NaN.
    if (!(other.distance <= distance)) *this = other;
  }
};

// The worst of `chunks` times kChunk inputs.
template <typename T, typename Wide>
Worst<T> WorstOf(const Function<T, Wide>& function, int64_t chunks,
                 absl::FunctionRef<void(int64_t chunk, T* inputs)> fill) {
  Executor executor(static_cast<int>(std::thread::hardware_concurrency()) - 1);
  std::mutex mutex;
  Worst<T> worst;
  ParallelFor(executor, chunks, [&](int64_t chunk) {
    HWY_ALIGN_MAX T inputs[kChunk];
    HWY_ALIGN_MAX T outputs[kChunk];
    fill(chunk, inputs);
    function.evaluate(inputs, kChunk, outputs);
    Worst<T> here;
    for (size_t i = 0; i < kChunk; ++i) {
      const Wide exact = function.exact(static_cast<Wide>(inputs[i]));
      here.Add({function.distance(outputs[i], exact), inputs[i]});
    }
    const std::lock_guard<std::mutex> lock(mutex);
    worst.Add(here);
  });
  return worst;
}

// Of every `stride`-th float from `first` away from zero to `last`, which have
// the same sign.
Worst<float> WorstOfFloats(const Function<float, double>& function, float first,
                           float last, uint32_t stride) {
  const auto begin = absl::bit_cast<uint32_t>(first);
  const auto end = absl::bit_cast<uint32_t>(last);
  const int64_t count = (end - begin) / stride + 1;
  constexpr int64_t kSize = kChunk;
  return WorstOf<float, double>(
      function, (count + kSize - 1) / kSize, [&](int64_t chunk, float* inputs) {
        for (int64_t i = 0; i < kSize; ++i) {
          const int64_t number = std::min(count - 1, chunk * kSize + i);
          inputs[i] = absl::bit_cast<float>(
              begin + static_cast<uint32_t>(number) * stride);
        }
      });
}

// Of some million doubles, or one in `stride` of them.
Worst<double> WorstOfSamples(const Function<double, long double>& function,
                             uint32_t stride,
                             absl::FunctionRef<double(Random&)> sample) {
  return WorstOf<double, long double>(function, 1024 / stride + 1,
                                      [&](int64_t chunk, double* inputs) {
                                        Random random(chunk);
                                        for (size_t i = 0; i < kChunk; ++i)
                                          inputs[i] = sample(random);
                                      });
}

// Runs `worst(stride)` on every target, the best one first, and prints what it
// finds.
template <typename T>
void ExpectWithin(double limit, const char* what,
                  absl::FunctionRef<Worst<T>(uint32_t stride)> worst) {
  uint32_t stride = kStride;
  for (const std::string& target : AllSimdTargets()) {
    const ScopedSimdTarget scope(target);
    const Worst<T> found = worst(stride);
    std::printf("%s on %s: %.3f, at %.9g\n", what, target.c_str(),
                found.distance, static_cast<double>(found.at));
    EXPECT_LE(found.distance, limit) << found.at << " on " << target;
    stride = kSparseStride;
  }
}

const Function<float, double> kExpOfFloat = {
    [](const float* x, size_t count, float* y) {
      HWY_DYNAMIC_DISPATCH(ExpF)(x, count, y);
    },
    [](double x) { return std::exp(x); }, Ulps<float, double>};

const Function<double, long double> kExpOfDouble = {
    [](const double* x, size_t count, double* y) {
      HWY_DYNAMIC_DISPATCH(ExpD)(x, count, y);
    },
    [](long double x) { return std::exp(x); }, Ulps<double, long double>};

const Function<float, double> kTanhOfFloat = {
    [](const float* x, size_t count, float* y) {
      HWY_DYNAMIC_DISPATCH(TanhF)(x, count, y);
    },
    [](double x) { return std::tanh(x); }, Roundoffs<float, double>};

const Function<double, long double> kTanhOfDouble = {
    [](const double* x, size_t count, double* y) {
      HWY_DYNAMIC_DISPATCH(TanhD)(x, count, y);
    },
    [](long double x) { return std::tanh(x); }, Roundoffs<double, long double>};

TEST(MathTest, ExpOfEveryFloat) {
  ExpectWithin<float>(1, "ulps of exp, float", [](uint32_t stride) {
    return WorstOfFloats(kExpOfFloat, -0.0F, -87.0F, stride);
  });
}

// Uniform, over all magnitudes, and around the multiples of half of log 2,
// where the reduced argument is the largest or changes its sign.
TEST(MathTest, ExpOfManyDoubles) {
  ExpectWithin<double>(1, "ulps of exp, double", [](uint32_t stride) {
    return WorstOfSamples(kExpOfDouble, stride, [](Random& random) {
      switch (random.Integer(0, 2)) {
        case 0:
          return -708 * random.Real();
        case 1:
          return -std::exp2(-60 + 69.4 * random.Real());
        default:
          return -std::fabs(0.5 * std::numbers::ln2 *
                                static_cast<double>(random.Integer(0, 2042)) +
                            0x1p-40 * random.Normal());
      }
    });
  });
}

TEST(MathTest, ExpBelowItsRangeIsZero) {
  for (const std::string& target : AllSimdTargets()) {
    const ScopedSimdTarget scope(target);
    HWY_ALIGN_MAX float x[kChunk];
    HWY_ALIGN_MAX double wide[kChunk];
    for (size_t i = 0; i < kChunk; ++i) {
      const auto step = static_cast<float>(i);
      x[i] = std::nextafter(-87.0F, -100.0F) * std::exp2(step * 0.03F);
      wide[i] = std::nextafter(-708.0, -1000.0) * std::exp2(step * 0.2);
    }
    HWY_DYNAMIC_DISPATCH(ExpF)(x, kChunk, x);
    HWY_DYNAMIC_DISPATCH(ExpD)(wide, kChunk, wide);
    for (size_t i = 0; i < kChunk; ++i) {
      ASSERT_EQ(x[i], 0) << i << " on " << target;
      ASSERT_EQ(wide[i], 0) << i << " on " << target;
    }
  }
}

// Beside the range that matters a sample: tanh(x) is x below and 1 above.
TEST(MathTest, TanhOfEveryFloat) {
  ExpectWithin<float>(5, "roundoffs of tanh, float", [](uint32_t stride) {
    const uint32_t sparse = std::max<uint32_t>(stride, 97);
    Worst<float> worst = WorstOfFloats(kTanhOfFloat, 0x1p-14F, 10, stride);
    worst.Add(WorstOfFloats(kTanhOfFloat, FLT_MIN, 0x1p-14F, sparse));
    worst.Add(WorstOfFloats(kTanhOfFloat, 10, FLT_MAX, sparse));
    worst.Add(WorstOfFloats(kTanhOfFloat, -0x1p-14F, -10, sparse));
    return worst;
  });
}

TEST(MathTest, TanhOfManyDoubles) {
  ExpectWithin<double>(5, "roundoffs of tanh, double", [](uint32_t stride) {
    return WorstOfSamples(kTanhOfDouble, stride, [](Random& random) {
      return random.Chance(0.5) ? std::exp2(-60 + 65 * random.Real())
                                : random.Normal();
    });
  });
}

}  // namespace
}  // namespace test
}  // namespace attention
#endif  // HWY_ONCE
