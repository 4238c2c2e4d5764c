#include "benchmarks/kernel/tile_parts.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>

#include "absl/functional/function_ref.h"
#include "kernel/attention.h"
#include "kernel/cpu/row_task.h"

// As in kernel/cpu/dispatch.cc.
#define HWY_DISABLED_TARGETS                                               \
  (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | \
   HWY_SVE2_128 | HWY_RVV)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "benchmarks/kernel/tile_parts.cc"
#include "hwy/aligned_allocator.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernel/cpu/softmax-inl.h"
#include "kernel/cpu/tile-inl.h"

#ifndef ATTENTION_BENCHMARKS_KERNEL_TILE_PARTS_CC_ONCE_
#define ATTENTION_BENCHMARKS_KERNEL_TILE_PARTS_CC_ONCE_
namespace attention::benchmarks {

// Seconds a call, the median of several tries.
inline double Time(absl::FunctionRef<void()> call) {
  using Clock = std::chrono::steady_clock;
  constexpr int kCalls = 1000;
  std::array<double, 9> tries;
  for (double& seconds : tries) {
    const auto start = Clock::now();
    for (int i = 0; i < kCalls; ++i) call();
    const std::chrono::duration<double> taken = Clock::now() - start;
    seconds = taken.count() / kCalls;
  }
  std::nth_element(tries.begin(), tries.begin() + tries.size() / 2,
                   tries.end());
  return tries[tries.size() / 2];
}

}  // namespace attention::benchmarks
#endif

HWY_BEFORE_NAMESPACE();
namespace attention::benchmarks {
namespace HWY_NAMESPACE {

TileParts MeasureHere(int64_t head_size) {
  namespace kernel = ::attention::HWY_NAMESPACE;
  using Arithmetic = kernel::Exact<float>;
  Arithmetic arithmetic;
  constexpr int64_t kRows = kernel::kTileRows;
  const auto filled = [](int64_t size) {
    auto memory = hwy::AllocateAligned<float>(size);
    std::fill_n(memory.get(), size, 0.5f);
    return memory;
  };
  const auto query = filled(kRows * head_size);
  const auto keys = filled(kKeyBlock * head_size);
  const auto packed = filled(kKeyBlock * head_size);
  const auto values = filled(kKeyBlock * head_size);
  const auto scores = filled(kRows * kKeyBlock);
  const auto output = filled(kRows * head_size);
  kernel::Prefetcher prefetcher({}, 0);
  const KeyRange lanes = {0, kKeyBlock};

  TileParts parts;
  parts.rows = kRows;
  parts.scores = Time([&]() HWY_ATTR {
    kernel::ScoreBlock(arithmetic, kRows, query.get(), head_size, packed.get(),
                       0, kKeyBlock, 0.01f, scores.get(), prefetcher);
  });
  parts.weighted_sums = Time([&]() HWY_ATTR {
    kernel::AccumulateBlock(arithmetic, kRows, scores.get(), kKeyBlock,
                            values.get(), head_size, head_size, output.get(),
                            head_size, prefetcher);
  });
  parts.softmax = Time([&]() HWY_ATTR {
    float max[kRows];
    for (int64_t r = 0; r < kRows; ++r) {
      max[r] = kernel::LargestScore(lanes, scores.get() + r * kKeyBlock);
    }
    for (int64_t r = 0; r < kRows; ++r) {
      output[r] = kernel::Exponentiate<Arithmetic>(
          max[r], lanes, scores.get() + r * kKeyBlock);
    }
  });
  const double packing = Time([&]() HWY_ATTR {
    for (int64_t j = 0; j < kKeyBlock; j += kernel::kPanel<float>) {
      const float* rows[kernel::kPanel<float>];
      for (int64_t i = 0; i < kernel::kPanel<float>; ++i) {
        rows[i] = keys.get() + (j + i) * head_size;
      }
      kernel::PackPanel<float>(rows, kernel::kPanel<float>, head_size,
                               packed.get() + j * head_size);
    }
  });
  parts.packing = packing * kRows / kTaskRows;
  return parts;
}

}  // namespace HWY_NAMESPACE
}  // namespace attention::benchmarks
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace attention::benchmarks {

HWY_EXPORT(MeasureHere);

TileParts MeasureTileParts(int64_t head_size) {
  return HWY_DYNAMIC_DISPATCH(MeasureHere)(head_size);
}

}  // namespace attention::benchmarks
#endif  // HWY_ONCE
