// Partials and how they merge. Included once per SIMD target.
//
// A partial is the softmax state of some rows over some keys: per row the
// largest score m, the sum l of exp(score - m), and the unnormalised output o,
// the sum of exp(score - m) * value. Two partials merge to
//   m = max(m1, m2), l = l1 exp(m1 - m) + l2 exp(m2 - m), o likewise
// (FlashDecoding's combine, FlashInfer's merge_state). In floating point that
// is not associative. So the order is fixed: partials merge along the tree of
// blocks (kernel/key_values.h), whoever computed them. A missing block is the
// identity (m = -inf, l = 0, o = 0), which merges without changing a bit.
#if defined(ATTENTION_KERNEL_CPU_PARTIAL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ATTENTION_KERNEL_CPU_PARTIAL_INL_H_
#undef ATTENTION_KERNEL_CPU_PARTIAL_INL_H_
#else
#define ATTENTION_KERNEL_CPU_PARTIAL_INL_H_
#endif

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>
#include <optional>

#include "hwy/highway.h"
#include "kernel/cpu/math-inl.h"
#include "kernel/cpu/partials.h"
#include "kernel/cpu/row_state.h"

HWY_BEFORE_NAMESPACE();
namespace attention {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// exp(x - reference), 0 for x = -inf also where the reference is -inf.
template <class D, class V>
HWY_INLINE V ExpDifference(D d, V x, V reference) {
  using T = hn::TFromD<D>;
  const auto infinite =
      hn::Eq(reference, hn::Set(d, -std::numeric_limits<T>::infinity()));
  const V finite = hn::IfThenZeroElse(infinite, reference);
  return ExpNonPositive(d, hn::Sub(x, finite));
}

// Merges `right` into `left`, which is of earlier keys. Outputs are [rows,
// stride], row-major, stride being a multiple of a vector's lanes. `max` and
// `sum` must have room for `rows` rounded up to one.
template <typename T>
void Merge(const PartialRows<T>& left, const PartialRows<T>& right,
           int64_t rows, int64_t stride) {
  const hn::ScalableTag<T> d;
  constexpr int64_t N = static_cast<int64_t>(hn::MaxLanes(d));
  HWY_ALIGN T left_factor[N], right_factor[N];
  for (int64_t first = 0; first < rows; first += N) {
    const auto m1 = hn::Load(d, left.max + first);
    const auto m2 = hn::Load(d, right.max + first);
    // A comparison with NaN is false: a NaN on the left stays, one on the right
    // shows in its sum.
    const auto m = hn::IfThenElse(hn::Lt(m1, m2), m2, m1);
    const auto a = ExpDifference(d, m1, m);
    const auto b = ExpDifference(d, m2, m);
    hn::Store(m, d, left.max + first);
    hn::Store(Fma(hn::Load(d, right.sum + first), b,
                  hn::Mul(hn::Load(d, left.sum + first), a)),
              d, left.sum + first);
    hn::Store(a, d, left_factor);
    hn::Store(b, d, right_factor);
    for (int64_t r = first; r < HWY_MIN(rows, first + N); ++r) {
      const auto factor1 = hn::Set(d, left_factor[r - first]);
      const auto factor2 = hn::Set(d, right_factor[r - first]);
      T* o1 = left.output + r * stride;
      const T* o2 = right.output + r * stride;
      for (int64_t c = 0; c < stride; c += N) {
        hn::Store(Fma(hn::Load(d, o2 + c), factor2,
                      hn::Mul(hn::Load(d, o1 + c), factor1)),
                  d, o1 + c);
      }
    }
  }
}

// The open partials, those not merged yet, while blocks arrive in ascending
// order.
//
// Invariants:
//   1. Open partial i is of consecutive blocks, the last of which is
//      last_blocks[i]. These ranges ascend and do not overlap. Blocks that no
//      row sees are missing.
//   2. Two neighbours merge once a block arrives that lies outside the smallest
//      subtree that holds both. No block of that subtree can follow, so the
//      order of merges is the tree's alone.
//   3. Two do not merge if that subtree begins before `first_block`: its
//      earlier blocks are in another accumulator.
//   4. So per level of the tree at most one partial is open if first_block
//      is 0, else at most two.
template <typename T>
class PartialStack {
 public:
  // For partials of `rows` rows. Goes on from those that `state` holds.
  PartialStack(const RowState<T>& state, int64_t rows, int64_t first_block)
      : state_(state),
        depth_(state.progress->depth),
        rows_(rows),
        first_block_(first_block) {}

  // Opens a partial whose last block is `block`, after merging those that are
  // complete. The caller fills it before the next call.
  PartialRows<T> Push(int64_t block) {
    while (depth_ >= 2 && TopIsComplete(block)) MergeTop();
    state_.last_blocks[depth_] = block;
    return state_.Level(depth_++);
  }

  // Removes what was pushed last.
  void Pop() { --depth_; }

  // Merges all open partials into one; nothing if none is open.
  std::optional<PartialRows<T>> Fold() {
    while (depth_ >= 2) MergeTop();
    if (depth_ == 0) return std::nullopt;
    return state_.Level(0);
  }

  // Merges the open partials whose last block is `block` or later, and removes
  // the result; nothing if there are none.
  std::optional<PartialRows<T>> PopFrom(int64_t block) {
    if (depth_ == 0 || LastBlock(depth_ - 1) < block) return std::nullopt;
    while (depth_ >= 2 && LastBlock(depth_ - 2) >= block) MergeTop();
    return state_.Level(--depth_);
  }

 private:
  // The smallest subtree that holds blocks a and b has 2^JoinLevel blocks.
  static int JoinLevel(int64_t a, int64_t b) {
    return std::bit_width(static_cast<uint64_t>(a ^ b));
  }

  int64_t LastBlock(int64_t index) const { return state_.last_blocks[index]; }

  // Whether the two last partials merge when `block` comes: invariants 2 and 3.
  bool TopIsComplete(int64_t block) const {
    const int64_t last = LastBlock(depth_ - 1);
    const int level = JoinLevel(LastBlock(depth_ - 2), last);
    return level < JoinLevel(last, block) &&
           last >> level << level >= first_block_;
  }

  void MergeTop() {
    Merge(state_.Level(depth_ - 2), state_.Level(depth_ - 1), rows_,
          state_.output_stride);
    state_.last_blocks[depth_ - 2] = LastBlock(depth_ - 1);
    --depth_;
  }

  const RowState<T>& state_;
  int64_t& depth_;
  const int64_t rows_;
  const int64_t first_block_;
};

}  // namespace HWY_NAMESPACE
}  // namespace attention
HWY_AFTER_NAMESPACE();

#endif  // ATTENTION_KERNEL_CPU_PARTIAL_INL_H_
