// From scores to weights, a row of a block at a time: soft cap, mask, ALiBi,
// limits of what is seen, maximum, exp and sum. A step that a request does not
// ask for costs nothing. Included once per SIMD target.
#if defined(ATTENTION_KERNEL_CPU_SOFTMAX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ATTENTION_KERNEL_CPU_SOFTMAX_INL_H_
#undef ATTENTION_KERNEL_CPU_SOFTMAX_INL_H_
#else
#define ATTENTION_KERNEL_CPU_SOFTMAX_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <limits>

#include "hwy/highway.h"
#include "kernel/cpu/convert-inl.h"
#include "kernel/cpu/math-inl.h"
#include "kernel/cpu/task_rows.h"
#include "kernel/cpu/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace attention {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Below, `lanes` are the keys of a block that a function works on: whole groups
// of kSumLanes. Keys and rows are counted as in task_rows.h.

// Sums along a row of weights use this many lanes on every target.
constexpr int64_t kSumLanes = 16;

template <typename T>
constexpr T kInfinity = std::numeric_limits<T>::infinity();

// Sum of a vector's lanes: halves added until one is left.
template <class D, class V>
HWY_INLINE hn::TFromD<D> SumOfHalves([[maybe_unused]] D d, V v) {
#if HWY_TARGET != HWY_SCALAR
  if constexpr (hn::MaxLanes(d) > 1) {
    const hn::Half<D> dh;
    return SumOfHalves(dh, hn::Add(hn::LowerHalf(dh, v), hn::UpperHalf(dh, v)));
  }
#endif
  return hn::GetLane(v);
}

// ((x[0] + x[8]) + (x[4] + x[12])) + ... of kSumLanes numbers in vectors.
template <typename T>
HWY_INLINE T SumOf16(Vec<T>* HWY_RESTRICT x) {
  ATTENTION_UNROLL
  for (int64_t width = kSumLanes / kLanes<T> / 2; width > 0; width /= 2) {
    ATTENTION_UNROLL
    for (int64_t i = 0; i < width; ++i) x[i] = hn::Add(x[i], x[i + width]);
  }
  return SumOfHalves(Tag<T>(), x[0]);
}

template <typename T>
HWY_INLINE T LargestLane(Vec<T> v) {
  const Tag<T> d;
#if HWY_TARGET == HWY_EMU128
  // There MaxOfLanes starts from the lowest finite number instead of -inf.
  T lanes[kLanes<T>];
  hn::StoreU(v, d, lanes);
  return *std::max_element(lanes, lanes + kLanes<T>);
#else
  return hn::GetLane(hn::MaxOfLanes(d, v));
#endif
}

// scores = cap * tanh(scores / cap).
template <typename T>
void Cap(T cap_number, const KeyRange& lanes, T* scores) {
  const Tag<T> d;
  const Vec<T> cap = hn::Set(d, cap_number);
  for (int64_t j = lanes.begin; j < lanes.end; j += kLanes<T>) {
    const Vec<T> s = hn::Load(d, scores + j);
    hn::Store(hn::Mul(cap, Tanh(d, hn::Div(s, cap))), d, scores + j);
  }
}

// What the mask tensor adds to the scores of keys [lanes.begin, lanes.end) of
// the block, where it lies or converted in `memory`, which has room for a
// block. The result's element j is key j's.
template <typename T>
const T* Bias(const TaskRows& rows, int64_t first, int64_t row,
              const KeyRange& lanes, T* memory) {
  const MaskOperand& mask = *rows.problem().mask;
  const int64_t covered =
      std::clamp<int64_t>(mask.length - first, lanes.begin, lanes.end);
  // What is not there may not even be pointed to.
  if (covered > lanes.begin) {
    const int64_t begin = rows.MaskIndex(first, row) + lanes.begin;
    const int64_t count = covered - lanes.begin;
    const void* from = static_cast<const char*>(mask.data) +
                       begin * static_cast<int64_t>(SizeOf(mask.type));
    T* to = memory + lanes.begin;
    switch (mask.type) {
      case DataType::kBool:
        for (int64_t i = 0; i < count; ++i) {
          to[i] = static_cast<const uint8_t*>(from)[i] ? T{0} : -kInfinity<T>;
        }
        break;
      case DataType::kFloat16:
        LoadRow(static_cast<const hwy::float16_t*>(from), count, to);
        break;
      case DataType::kBFloat16:
        LoadRow(static_cast<const hwy::bfloat16_t*>(from), count, to);
        break;
      case DataType::kFloat32:
        if constexpr (sizeof(T) == 4) {
          if (covered == lanes.end) {
            return static_cast<const T*>(from) - lanes.begin;
          }
        }
        LoadRow(static_cast<const float*>(from), count, to);
        break;
      default:
        LoadElements(from, mask.type, count, to);
    }
  }
  std::fill(memory + covered, memory + lanes.end, -kInfinity<T>);
  return memory;
}

// Adds the mask tensor; returns whether it masks any of `lanes`.
template <typename T>
bool AddMask(const TaskRows& rows, int64_t first, int64_t row,
             const KeyRange& lanes, T* memory, T* scores) {
  const Tag<T> d;
  const Vec<T> masked = hn::Set(d, -kInfinity<T>);
  const T* bias = Bias(rows, first, row, lanes, memory);
  auto any = hn::Eq(masked, hn::Zero(d));
  for (int64_t j = lanes.begin; j < lanes.end; j += kLanes<T>) {
    const Vec<T> added = hn::LoadU(d, bias + j);
    const Vec<T> sum = hn::Add(hn::Load(d, scores + j), added);
    const auto is_masked = hn::Eq(added, masked);
    // Not the sum: the score under a mask may be NaN.
    hn::Store(hn::IfThenElse(is_masked, masked, sum), d, scores + j);
    any = hn::Or(any, is_masked);
  }
  return !hn::AllFalse(d, any);
}

template <typename T>
void AddAlibi(const TaskRows& rows, int64_t first, int64_t row,
              const KeyRange& lanes, T* scores) {
  const Tag<T> d;
  const Vec<T> slope =
      hn::Set(d, static_cast<T>(-rows.problem().alibi_slopes[rows.Head(row)]));
  const int64_t position = rows.Query(row) + rows.sequence().offset;
  for (int64_t j = lanes.begin; j < lanes.end; j += kLanes<T>) {
    const Vec<T> distance = hn::Abs(hn::Add(
        hn::Set(d, static_cast<T>(first + j - position)), hn::Iota(d, T{0})));
    hn::Store(Fma(slope, distance, hn::Load(d, scores + j)), d, scores + j);
  }
}

// Mask tensor, ALiBi, and -inf outside the visible keys; returns whether the
// mask tensor masks any of `lanes`. `bias` is working memory for a block.
template <typename T>
HWY_INLINE bool AddBias(const TaskRows& rows, int64_t first, int64_t row,
                        const KeyRange& visible, const KeyRange& lanes, T* bias,
                        T* scores) {
  const Problem& problem = rows.problem();
  const bool masks =
      problem.mask && AddMask(rows, first, row, lanes, bias, scores);
  if (!problem.alibi_slopes.empty()) {
    AddAlibi(rows, first, row, lanes, scores);
  }
  std::fill(scores + lanes.begin, scores + std::max(visible.begin, lanes.begin),
            -kInfinity<T>);
  std::fill(scores + std::min(visible.end, lanes.end), scores + lanes.end,
            -kInfinity<T>);
  return masks;
}

// The largest of a row's scores.
template <typename T>
HWY_INLINE T LargestScore(const KeyRange& lanes, const T* scores) {
  const Tag<T> d;
  constexpr int64_t N = kLanes<T>;
  constexpr int kChains = 4;  // hide the latency of a comparison
  Vec<T> largest[kChains];
  ATTENTION_UNROLL
  for (int i = 0; i < kChains; ++i) largest[i] = hn::Set(d, -kInfinity<T>);
  int64_t j = lanes.begin;
  for (; j + kChains * N <= lanes.end; j += kChains * N) {
    ATTENTION_UNROLL
    for (int i = 0; i < kChains; ++i) {
      largest[i] = hn::Max(largest[i], hn::Load(d, scores + j + i * N));
    }
  }
  for (; j < lanes.end; j += N) {
    largest[0] = hn::Max(largest[0], hn::Load(d, scores + j));
  }
  return LargestLane<T>(hn::Max(hn::Max(largest[0], largest[1]),
                                hn::Max(largest[2], largest[3])));
}

// What a row's weights refer to: its largest score.
template <typename T>
HWY_INLINE T Max(const TaskRows& rows, int64_t first, int64_t row,
                 const KeyRange& lanes, const T* scores) {
  const T max = LargestScore(lanes, scores);
  if (max == -kInfinity<T> && rows.SeesAny<T>(first, row)) {
    // Every score is -inf, but not by a mask: unless other blocks hold larger
    // ones the row is 0 / 0. The lowest finite number tells it from a row
    // that sees nothing, and weighs as little.
    return std::numeric_limits<T>::lowest();
  }
  return max;
}

// Turns a row of scores into weights exp(score - max), as steps of Arithmetic;
// returns their sum.
template <class Arithmetic, typename T = typename Arithmetic::T>
HWY_INLINE T Exponentiate(T max, const KeyRange& lanes, T* scores) {
  const Tag<T> d;
  constexpr int64_t N = kLanes<T>;
  const Vec<T> reference = hn::Set(d, max == -kInfinity<T> ? T{0} : max);
  constexpr int kSums = kSumLanes / N;
  Vec<T> sums[kSums];
  ATTENTION_UNROLL
  for (int i = 0; i < kSums; ++i) sums[i] = hn::Zero(d);
  for (int64_t j = lanes.begin; j < lanes.end; j += kSumLanes) {
    ATTENTION_UNROLL
    for (int i = 0; i < kSums; ++i) {
      const Vec<T> weight =
          Arithmetic::Exp(hn::Sub(hn::Load(d, scores + j + i * N), reference));
      Arithmetic::StoreWeights(weight, j + i * N, scores);
      sums[i] = hn::Add(sums[i], weight);
    }
  }
  return SumOf16<T>(sums);
}

}  // namespace HWY_NAMESPACE
}  // namespace attention
HWY_AFTER_NAMESPACE();

#endif  // ATTENTION_KERNEL_CPU_SOFTMAX_INL_H_
