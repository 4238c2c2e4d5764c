// From scores to weights, a row of a block at a time: soft cap, mask, ALiBi,
// limits of what is seen, maximum, exp and sum. A step that a request does not
// ask for costs nothing. Included once per SIMD target.
#if defined(ATTENTION_KERNEL_SOFTMAX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ATTENTION_KERNEL_SOFTMAX_INL_H_
#undef ATTENTION_KERNEL_SOFTMAX_INL_H_
#else
#define ATTENTION_KERNEL_SOFTMAX_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <limits>

#include "hwy/highway.h"
#include "kernel/convert.h"
#include "kernel/math-inl.h"
#include "kernel/task_rows.h"
#include "kernel/tile-inl.h"

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

// ((x[0] + x[8]) + (x[4] + x[12])) + ... : halves added until one is left.
template <typename T>
T SumOf16(const T* lanes) {
  T sum[kSumLanes];
  for (int i = 0; i < kSumLanes; ++i) sum[i] = lanes[i];
  for (int width = kSumLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) sum[i] += sum[i + width];
  }
  return sum[0];
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

// bias = what the mask tensor adds to the scores of keys [lanes.begin,
// lanes.end) of the block.
template <typename T>
void LoadBias(const TaskRows& rows, int64_t first, int64_t row,
              const KeyRange& lanes, T* bias) {
  const MaskOperand& mask = *rows.problem().mask;
  const int64_t covered =
      std::clamp<int64_t>(mask.length - first, lanes.begin, lanes.end);
  std::fill(bias + covered, bias + lanes.end, -kInfinity<T>);
  // What is not there may not even be pointed to.
  if (covered == lanes.begin) return;
  const int64_t index = rows.MaskIndex(first, row);
  if (mask.type == DataType::kBool) {
    const uint8_t* from = static_cast<const uint8_t*>(mask.data) + index;
    for (int64_t j = lanes.begin; j < covered; ++j) {
      bias[j] = from[j] ? T{0} : -kInfinity<T>;
    }
  } else {
    const char* from =
        static_cast<const char*>(mask.data) +
        (index + lanes.begin) * static_cast<int64_t>(SizeOf(mask.type));
    LoadElements(from, mask.type, covered - lanes.begin, bias + lanes.begin);
  }
}

// `bias` is working memory for a block.
template <typename T>
void AddMask(const TaskRows& rows, int64_t first, int64_t row,
             const KeyRange& lanes, T* bias, T* scores) {
  const Tag<T> d;
  const Vec<T> masked = hn::Set(d, -kInfinity<T>);
  LoadBias(rows, first, row, lanes, bias);
  for (int64_t j = lanes.begin; j < lanes.end; j += kLanes<T>) {
    const Vec<T> added = hn::Load(d, bias + j);
    const Vec<T> sum = hn::Add(hn::Load(d, scores + j), added);
    // Not the sum: the score under a mask may be NaN.
    hn::Store(hn::IfThenElse(hn::Eq(added, masked), masked, sum), d,
              scores + j);
  }
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

// Mask tensor, ALiBi, and -inf outside the visible keys. `bias` is working
// memory for a block.
template <typename T>
void AddBias(const TaskRows& rows, int64_t first, int64_t row,
             const KeyRange& lanes, T* bias, T* scores) {
  const Problem& problem = rows.problem();
  const KeyRange visible = rows.VisibleInBlock(first, row);
  if (problem.mask) AddMask(rows, first, row, lanes, bias, scores);
  if (!problem.alibi_slopes.empty()) {
    AddAlibi(rows, first, row, lanes, scores);
  }
  std::fill(scores + lanes.begin, scores + std::max(visible.begin, lanes.begin),
            -kInfinity<T>);
  std::fill(scores + std::min(visible.end, lanes.end), scores + lanes.end,
            -kInfinity<T>);
}

// The largest of a row's scores.
template <typename T>
T Max(const TaskRows& rows, int64_t first, int64_t row, const KeyRange& lanes,
      const T* scores) {
  const Tag<T> d;
  Vec<T> largest = hn::Set(d, -kInfinity<T>);
  for (int64_t j = lanes.begin; j < lanes.end; j += kLanes<T>) {
    largest = hn::Max(largest, hn::Load(d, scores + j));
  }
  const T max = LargestLane<T>(largest);
  if (max == -kInfinity<T> && rows.SeesAny<T>(first, row)) {
    // Every score is -inf, but not by a mask: unless other blocks hold larger
    // ones the row is 0 / 0. The lowest finite number tells it from a row
    // that sees nothing, and weighs as little.
    return std::numeric_limits<T>::lowest();
  }
  return max;
}

// Turns a row of scores into weights exp(score - max); returns their sum.
template <typename T>
T Exponentiate(T max, const KeyRange& lanes, T* scores) {
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
      const Vec<T> weight = ExpNonPositive(
          d, hn::Sub(hn::Load(d, scores + j + i * N), reference));
      hn::Store(weight, d, scores + j + i * N);
      sums[i] = hn::Add(sums[i], weight);
    }
  }
  HWY_ALIGN T lane_sums[kSumLanes];
  ATTENTION_UNROLL
  for (int i = 0; i < kSums; ++i) hn::Store(sums[i], d, lane_sums + i * N);
  return SumOf16(lane_sums);
}

}  // namespace HWY_NAMESPACE
}  // namespace attention
HWY_AFTER_NAMESPACE();

#endif  // ATTENTION_KERNEL_SOFTMAX_INL_H_
