// Partial softmax results and how they merge. Included once per SIMD target.
//
// A partial is what some of the keys give for a set of rows: the largest score
// m, the sum l of exp(score - m) and the unnormalised output o, the sum of
// exp(score - m) * value. Merging two is
//   m = max(m1, m2), l = l1 exp(m1 - m) + l2 exp(m2 - m), o likewise
// (FlashDecoding's combine, FlashInfer's merge_state). That is not associative
// in floating point, so the order is fixed: blocks of kKeyBlock keys are the
// leaves of the binary tree over their absolute numbers, and partials merge
// along that tree whoever computed them. A missing block is the identity
// (m = -inf, l = 0, o = 0), which merges without changing a bit.
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

// Merges `right` into `left`, which holds keys before it. `rows` may be rounded
// up to a vector in `max` and `sum`; `stride` is a multiple of one.
template <typename T>
void Merge(const PartialRows<T>& left, const PartialRows<T>& right,
           int64_t rows, int64_t stride) {
  const hn::ScalableTag<T> d;
  constexpr int64_t N = static_cast<int64_t>(hn::MaxLanes(d));
  HWY_ALIGN T left_factor[N], right_factor[N];
  for (int64_t first = 0; first < rows; first += N) {
    const auto m1 = hn::Load(d, left.max + first);
    const auto m2 = hn::Load(d, right.max + first);
    // A comparison with NaN is false: the left NaN stays, a right one shows in
    // its sum.
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

// The open nodes of the tree of blocks while blocks arrive in ascending order.
//
// Invariants:
//   1. Node i holds the keys of a run of blocks that ends at last_blocks[i];
//      the runs ascend and do not overlap. Blocks that no row sees are missing.
//   2. Two neighbours merge once a block arrives that lies outside the smallest
//      subtree that holds both. Whatever comes later, no block of that subtree
//      can follow, so that the order of merges is the tree's alone.
//   3. None merge whose subtree begins before `first_block`: what is before it
//      is held elsewhere.
//   4. So at most one node is open per level of the tree where first_block is
//   0,
//      else at most two.
template <typename T>
class PartialStack {
 public:
  // For partials of `rows` rows; goes on from the nodes that `state` holds.
  PartialStack(const RowState<T>& state, int64_t rows, int64_t first_block)
      : levels_(state.levels.data()),
        last_blocks_(state.last_blocks),
        depth_(state.progress->depth),
        rows_(rows),
        stride_(state.output_stride),
        first_block_(first_block) {}

  // Room for the partial of block (or of a subtree whose last block is)
  // `block`, to be filled before the next call.
  const PartialRows<T>& Push(int64_t block) {
    while (depth_ >= 2 && TopIsComplete(block)) MergeTop();
    last_blocks_[depth_] = block;
    return levels_[depth_++];
  }

  // Takes away what was pushed last.
  void Pop() { --depth_; }

  // Merges what is open; null if nothing was pushed.
  const PartialRows<T>* Fold() {
    while (depth_ >= 2) MergeTop();
    return depth_ == 0 ? nullptr : &levels_[0];
  }

  // Merges the open nodes of blocks from `block` on, the last ones, and takes
  // the result away; null if there are none.
  const PartialRows<T>* PopFrom(int64_t block) {
    if (depth_ == 0 || last_blocks_[depth_ - 1] < block) return nullptr;
    while (depth_ >= 2 && last_blocks_[depth_ - 2] >= block) MergeTop();
    return &levels_[--depth_];
  }

 private:
  // Level of the tree at which the subtrees of two blocks meet.
  static int JoinLevel(int64_t a, int64_t b) {
    return std::bit_width(static_cast<uint64_t>(a ^ b));
  }

  // Whether the two nodes on top merge when `block` comes.
  bool TopIsComplete(int64_t block) const {
    const int64_t last = last_blocks_[depth_ - 1];
    const int level = JoinLevel(last_blocks_[depth_ - 2], last);
    return level < JoinLevel(last, block) &&
           last >> level << level >= first_block_;
  }

  void MergeTop() {
    Merge(levels_[depth_ - 2], levels_[depth_ - 1], rows_, stride_);
    last_blocks_[depth_ - 2] = last_blocks_[depth_ - 1];
    --depth_;
  }

  const PartialRows<T>* const levels_;
  int64_t* const last_blocks_;
  int64_t& depth_;
  const int64_t rows_;
  const int64_t stride_;
  const int64_t first_block_;
};

}  // namespace HWY_NAMESPACE
}  // namespace attention
HWY_AFTER_NAMESPACE();

#endif  // ATTENTION_KERNEL_CPU_PARTIAL_INL_H_
