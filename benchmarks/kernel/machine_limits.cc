#include "benchmarks/kernel/machine_limits.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <numeric>
#include <vector>

#include "base/parallel_for.h"
#include "benchmarks/kernel/huge_page_allocator.h"
#include "kernel/attention.h"

#ifdef __x86_64__
#include <immintrin.h>
#endif

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "benchmarks/kernel/machine_limits.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace attention::benchmarks {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// More chains than the latency of a multiply-add times its throughput.
constexpr int kChains = 12;

// Multiply-adds `rounds` times on each chain; returns the number of operations.
template <typename T>
double MultiplyAdd(int64_t rounds) {
  const hn::ScalableTag<T> d;
  hn::Vec<decltype(d)> sums[kChains];
  for (auto& sum : sums) sum = hn::Set(d, T{1});
  const auto factor = hn::Set(d, T{0.5});
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 16
    for (auto& sum : sums) sum = hn::MulAdd(sum, factor, factor);
  }
  auto total = sums[0];
  for (auto& sum : sums) total = hn::Add(total, sum);
  volatile T sink = hn::GetLane(total);
  static_cast<void>(sink);
  return 2.0 * kChains * static_cast<double>(rounds) *
         static_cast<double>(hn::Lanes(d));
}

double MultiplyAddFloat(int64_t rounds) { return MultiplyAdd<float>(rounds); }
double MultiplyAddDouble(int64_t rounds) { return MultiplyAdd<double>(rounds); }

// Reads `count` floats, a multiple of eight vectors.
float Sum(const float* data, int64_t count) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  hn::Vec<decltype(d)> sums[8];
  for (auto& sum : sums) sum = hn::Zero(d);
  for (int64_t i = 0; i + 8 * lanes <= count; i += 8 * lanes) {
#pragma GCC unroll 8
    for (int v = 0; v < 8; ++v) {
      sums[v] = hn::Add(sums[v], hn::LoadU(d, data + i + v * lanes));
    }
  }
  for (int v = 1; v < 8; ++v) sums[0] = hn::Add(sums[0], sums[v]);
  return hn::GetLane(hn::SumOfLanes(d, sums[0]));
}

}  // namespace HWY_NAMESPACE
}  // namespace attention::benchmarks
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace attention::benchmarks {
namespace {

HWY_EXPORT(MultiplyAddFloat);
HWY_EXPORT(MultiplyAddDouble);
HWY_EXPORT(Sum);

// Products of BFLOAT16, which Highway 1.0 does not know. As MultiplyAdd.
#ifdef __x86_64__
__attribute__((target("avx512f,avx512bf16"))) double DotBFloat16(
    int64_t rounds) {
  constexpr int kSums = 12;
  __m512 sums[kSums];
  for (auto& sum : sums) sum = _mm512_setzero_ps();
  const __m512 half = _mm512_set1_ps(0.5f);
  const __m512bh factor = _mm512_cvtne2ps_pbh(half, half);
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 16
    for (auto& sum : sums) sum = _mm512_dpbf16_ps(sum, factor, factor);
  }
  auto total = sums[0];
  for (auto& sum : sums) total = _mm512_add_ps(total, sum);
  volatile float sink = _mm512_cvtss_f32(total);
  static_cast<void>(sink);
  return 2.0 * kSums * 32 * static_cast<double>(rounds);
}

// Full registers of zeros, on four registers of sums.
double MultiplyTilesBFloat16(int64_t rounds) {
  struct alignas(64) {
    uint8_t palette = 1;
    uint8_t unused[15] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16};
  } shape;
  asm volatile("ldtilecfg %0" : : "m"(shape));
  for (int64_t i = 0; i < rounds; ++i) {
    asm volatile(
        "tdpbf16ps %tmm5, %tmm4, %tmm0\n"
        "tdpbf16ps %tmm5, %tmm4, %tmm1\n"
        "tdpbf16ps %tmm5, %tmm4, %tmm2\n"
        "tdpbf16ps %tmm5, %tmm4, %tmm3\n");
  }
  asm volatile("tilerelease");
  return 4.0 * 2 * 16 * 16 * 32 * static_cast<double>(rounds);
}

// The faster of both; returns 0 where the CPU has neither.
double MultiplyAddBFloat16(int64_t rounds) {
  // The kernel asks the operating system for them.
  if (HasFastMath() && __builtin_cpu_supports("amx-bf16")) {
    return MultiplyTilesBFloat16(rounds / 4);
  }
  return __builtin_cpu_supports("avx512bf16") ? DotBFloat16(rounds) : 0;
}
#else
double MultiplyAddBFloat16(int64_t) { return 0; }
#endif

constexpr int kTries = 8;
// Threads that have slept may share a core for a while.
constexpr std::chrono::duration<double> kLeastTime(0.1);

// The most of amount() / seconds over several tries.
template <class F>
double BestRate(const F& amount) {
  using Clock = std::chrono::steady_clock;
  double best = 0;
  const auto begin = Clock::now();
  for (int i = 0; i < kTries || Clock::now() - begin < kLeastTime; ++i) {
    const auto start = Clock::now();
    const double done = amount();
    const std::chrono::duration<double> taken = Clock::now() - start;
    best = std::max(best, done / taken.count());
  }
  return best;
}

}  // namespace

double MeasureLimit(Limit limit, Executor& executor) {
  constexpr int64_t kRounds = 3'000'000;
  const int threads = executor.threads() + 1;
  std::vector<double> done(threads);
  const auto best_rate = [&](auto work) {
    return 1e-9 * BestRate([&] {
             ParallelFor(executor, threads,
                         [&](int64_t t) { done[t] = work(t); });
             return std::accumulate(done.begin(), done.end(), 0.0);
           });
  };
  switch (limit) {
    case Limit::kFloat:
      return best_rate([](int64_t) {
        return HWY_DYNAMIC_DISPATCH(MultiplyAddFloat)(kRounds);
      });
    case Limit::kDouble:
      return best_rate([](int64_t) {
        return HWY_DYNAMIC_DISPATCH(MultiplyAddDouble)(kRounds);
      });
    case Limit::kBFloat16:
      return best_rate([](int64_t) { return MultiplyAddBFloat16(kRounds); });
    case Limit::kRead:
      break;
  }
  constexpr int64_t kFloats = int64_t{64} << 20;  // 256 MiB
  static const auto* const memory =
      new std::vector<float, HugePageAllocator<float>>(kFloats, 1.0f);
  const int64_t share = kFloats / threads;
  return best_rate([&](int64_t t) {
    volatile float sink =
        HWY_DYNAMIC_DISPATCH(Sum)(memory->data() + t * share, share);
    static_cast<void>(sink);
    return static_cast<double>(share) * sizeof(float);
  });
}

}  // namespace attention::benchmarks
#endif  // HWY_ONCE
