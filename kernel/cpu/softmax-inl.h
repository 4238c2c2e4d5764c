// From scores to weights, one row of one block at a time: soft cap, mask
// tensor, ALiBi, causal mask and window, then maximum, exp and sum. What a
// request does not ask for costs nothing. Included once per SIMD target.
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

// Below, `padded` are the keys of a block that a function works on: whole
// groups of kSumLanes. `scores` is [kKeyBlock]. Keys and rows are counted as in
// task_rows.h.

// Sums along a row of weights use this many lanes on every target.
constexpr int64_t kSumLanes = 16;

template <typename T>
constexpr T kInfinity = std::numeric_limits<T>::infinity();

// Sum of a vector's lanes: adds the upper half to the lower until one is left.
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

// ((x[0] + x[8]) + (x[4] + x[12])) + ... of kSumLanes numbers in x[kSumLanes /
// kLanes] vectors.
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
void Cap(T cap_number, const KeyRange& padded, T* scores) {
  const Tag<T> d;
  const Vec<T> cap = hn::Set(d, cap_number);
  for (int64_t j = padded.begin; j < padded.end; j += kLanes<T>) {
    const Vec<T> s = hn::Load(d, scores + j);
    hn::Store(hn::Mul(cap, Tanh(d, hn::Div(s, cap))), d, scores + j);
  }
}

// What the mask tensor adds to the scores of keys `padded` of the block:
// element j of the result is key j's. It lies in the tensor itself, or
// converted in `memory`, [kKeyBlock].
template <typename T>
const T* Bias(const TaskRows& rows, int64_t first, int64_t row,
              const KeyRange& padded, T* memory) {
  const MaskOperand& mask = *rows.problem().mask;
  const int64_t covered =
      std::clamp<int64_t>(mask.length - first, padded.begin, padded.end);
  // Not even a pointer may be formed to what is not there.
  if (covered > padded.begin) {
    const int64_t begin = rows.MaskIndex(first, row) + padded.begin;
    const int64_t count = covered - padded.begin;
    const void* from = static_cast<const char*>(mask.data) +
                       begin * static_cast<int64_t>(SizeOf(mask.type));
    T* to = memory + padded.begin;
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
          if (covered == padded.end) {
            return static_cast<const T*>(from) - padded.begin;
          }
        }
        LoadRow(static_cast<const float*>(from), count, to);
        break;
      default:
        LoadElements(from, mask.type, count, to);
    }
  }
  std::fill(memory + covered, memory + padded.end, -kInfinity<T>);
  return memory;
}

// Adds bias[j] to the score of each key j; returns whether it masks any.
template <typename T>
bool AddMask(const T* bias, const KeyRange& padded, T* scores) {
  const Tag<T> d;
  const Vec<T> masked = hn::Set(d, -kInfinity<T>);
  auto any = hn::Eq(masked, hn::Zero(d));
  for (int64_t j = padded.begin; j < padded.end; j += kLanes<T>) {
    const Vec<T> added = hn::LoadU(d, bias + j);
    const Vec<T> sum = hn::Add(hn::Load(d, scores + j), added);
    const auto is_masked = hn::Eq(added, masked);
    // Not the sum, which is NaN where the masked score is.
    hn::Store(hn::IfThenElse(is_masked, masked, sum), d, scores + j);
    any = hn::Or(any, is_masked);
  }
  return !hn::AllFalse(d, any);
}

template <typename T>
void AddAlibi(const TaskRows& rows, int64_t first, int64_t row,
              const KeyRange& padded, T* scores) {
  const Tag<T> d;
  const Vec<T> slope =
      hn::Set(d, static_cast<T>(-rows.problem().alibi_slopes[rows.Head(row)]));
  const int64_t position = rows.Query(row) + rows.sequence().offset;
  for (int64_t j = padded.begin; j < padded.end; j += kLanes<T>) {
    const Vec<T> distance = hn::Abs(hn::Add(
        hn::Set(d, static_cast<T>(first + j - position)), hn::Iota(d, T{0})));
    hn::Store(Fma(slope, distance, hn::Load(d, scores + j)), d, scores + j);
  }
}

// Mask tensor, ALiBi, and -inf outside the visible keys; returns whether the
// mask tensor masks any of `padded`. `bias` is scratch, [kKeyBlock].
template <typename T>
HWY_INLINE bool AddBias(const TaskRows& rows, int64_t first, int64_t row,
                        const KeyRange& visible, const KeyRange& padded,
                        T* bias, T* scores) {
  const Problem& problem = rows.problem();
  const bool masks =
      problem.mask &&
      AddMask(Bias(rows, first, row, padded, bias), padded, scores);
  if (!problem.alibi_slopes.empty()) {
    AddAlibi(rows, first, row, padded, scores);
  }
  std::fill(scores + padded.begin,
            scores + std::max(visible.begin, padded.begin), -kInfinity<T>);
  std::fill(scores + std::min(visible.end, padded.end), scores + padded.end,
            -kInfinity<T>);
  return masks;
}

// Of the keys that indices select, only these have scores: key keys[c] of the
// block has number c, in ascending order, in [0, count).
struct GatheredKeys {
  uint8_t keys[kKeyBlock];
  int64_t count;

  KeyRange padded() const { return {0, RoundUp(count, kSumLanes)}; }
};

// AddBias() for gathered keys that causal mask, window and valid length let all
// rows see.
template <typename T>
HWY_INLINE bool AddGatheredBias(const TaskRows& rows, int64_t first,
                                int64_t row, const GatheredKeys& gathered,
                                T* bias, T* scores) {
  const Problem& problem = rows.problem();
  const KeyRange padded = gathered.padded();
  const int64_t count = gathered.count;
  bool masks = false;
  if (problem.mask) {
    for (int64_t c = 0; c < count; ++c) {
      bias[c] = rows.MaskAt<T>(first, row, gathered.keys[c]);
    }
    std::fill(bias + count, bias + padded.end, T{0});
    masks = AddMask<T>(bias, padded, scores);
  }
  if (!problem.alibi_slopes.empty()) {
    const Tag<T> d;
    const Vec<T> slope =
        hn::Set(d, static_cast<T>(-problem.alibi_slopes[rows.Head(row)]));
    const int64_t position = rows.Query(row) + rows.sequence().offset - first;
    for (int64_t c = 0; c < count; ++c) {
      bias[c] = static_cast<T>(gathered.keys[c] - position);
    }
    std::fill(bias + count, bias + padded.end, T{0});
    for (int64_t c = 0; c < padded.end; c += kLanes<T>) {
      hn::Store(
          Fma(slope, hn::Abs(hn::Load(d, bias + c)), hn::Load(d, scores + c)),
          d, scores + c);
    }
  }
  std::fill(scores + count, scores + padded.end, -kInfinity<T>);
  return masks;
}

// The largest of a row's scores.
template <typename T>
HWY_INLINE T LargestScore(const KeyRange& padded, const T* scores) {
  const Tag<T> d;
  constexpr int64_t N = kLanes<T>;
  constexpr int kChains = 4;  // hide the latency of a comparison
  Vec<T> largest[kChains];
  ATTENTION_UNROLL
  for (int i = 0; i < kChains; ++i) largest[i] = hn::Set(d, -kInfinity<T>);
  int64_t j = padded.begin;
  for (; j + kChains * N <= padded.end; j += kChains * N) {
    ATTENTION_UNROLL
    for (int i = 0; i < kChains; ++i) {
      largest[i] = hn::Max(largest[i], hn::Load(d, scores + j + i * N));
    }
  }
  for (; j < padded.end; j += N) {
    largest[0] = hn::Max(largest[0], hn::Load(d, scores + j));
  }
  return LargestLane<T>(hn::Max(hn::Max(largest[0], largest[1]),
                                hn::Max(largest[2], largest[3])));
}

// The largest score, which the row's weights are relative to.
template <typename T>
HWY_INLINE T Max(const TaskRows& rows, int64_t first, int64_t row,
                 const KeyRange& padded, const T* scores) {
  const T max = LargestScore(padded, scores);
  if (max == -kInfinity<T> && rows.SeesAny<T>(first, row)) {
    // The row sees keys, but all their scores are -inf. Unless other blocks
    // have larger ones, the row is 0 / 0 = NaN. The lowest finite number tells
    // it from a row that sees no key, and gives the same weights.
    return std::numeric_limits<T>::lowest();
  }
  return max;
}

template <typename T>
HWY_INLINE T MaxGathered(const TaskRows& rows, int64_t first, int64_t row,
                         const GatheredKeys& gathered, const T* scores) {
  const T max = LargestScore(gathered.padded(), scores);
  if (max != -kInfinity<T>) return max;
  for (int64_t c = 0; c < gathered.count; ++c) {
    if (rows.Unmasked<T>(first, row, gathered.keys[c])) {
      return std::numeric_limits<T>::lowest();  // As in Max().
    }
  }
  return max;
}

// Turns scores into weights exp(score - max), stored as steps of Arithmetic.
// Returns their sum.
template <TileArithmetic Arithmetic, typename T = typename Arithmetic::T>
HWY_INLINE T Exponentiate(T max, const KeyRange& padded, T* scores) {
  const Tag<T> d;
  constexpr int64_t N = kLanes<T>;
  const Vec<T> reference = hn::Set(d, max == -kInfinity<T> ? T{0} : max);
  constexpr int kSums = kSumLanes / N;
  Vec<T> sums[kSums];
  ATTENTION_UNROLL
  for (int i = 0; i < kSums; ++i) sums[i] = hn::Zero(d);
  for (int64_t j = padded.begin; j < padded.end; j += kSumLanes) {
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

// Exponentiate() for gathered keys. Each weight is added in the lane that its
// key has among all keys of the block: the weights of the others are 0, which
// would change nothing.
template <typename T>
HWY_INLINE T ExponentiateGathered(T max, const GatheredKeys& gathered,
                                  T* scores) {
  const Tag<T> d;
  const Vec<T> reference = hn::Set(d, max == -kInfinity<T> ? T{0} : max);
  for (int64_t c = 0; c < gathered.padded().end; c += kLanes<T>) {
    hn::Store(ExpNonPositive(d, hn::Sub(hn::Load(d, scores + c), reference)), d,
              scores + c);
  }
  HWY_ALIGN T lanes[kSumLanes] = {};
  for (int64_t c = 0; c < gathered.count; ++c) {
    lanes[gathered.keys[c] % kSumLanes] += scores[c];
  }
  constexpr int kSums = kSumLanes / kLanes<T>;
  Vec<T> sums[kSums];
  ATTENTION_UNROLL
  for (int i = 0; i < kSums; ++i) sums[i] = hn::Load(d, lanes + i * kLanes<T>);
  return SumOf16<T>(sums);
}

}  // namespace HWY_NAMESPACE
}  // namespace attention
HWY_AFTER_NAMESPACE();

#endif  // ATTENTION_KERNEL_CPU_SOFTMAX_INL_H_
