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
#if defined(ATTENTION_KERNEL_PARTIAL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ATTENTION_KERNEL_PARTIAL_INL_H_
#undef ATTENTION_KERNEL_PARTIAL_INL_H_
#else
#define ATTENTION_KERNEL_PARTIAL_INL_H_
#endif

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>

#include "hwy/highway.h"
#include "kernel/math-inl.h"
#include "kernel/scratch.h"

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
void Merge(const Partial<T>& left, const Partial<T>& right, int64_t rows,
           int64_t stride) {
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

// The open nodes of the tree while blocks arrive in ascending order: at most
// one a level, so about log2 of the number of blocks.
template <typename T>
class PartialStack {
 public:
  // `levels` partials of `rows` rows of `stride` elements, memory included.
  // They hold the open nodes that `nodes` tells of.
  PartialStack(const Partial<T>* levels, int64_t rows, int64_t stride,
               const OpenNodes& nodes)
      : levels_(levels), rows_(rows), stride_(stride) {
    nodes_.depth = nodes.depth;
    std::copy_n(nodes.last_block, nodes.depth, nodes_.last_block);
  }

  const OpenNodes& nodes() const { return nodes_; }

  // Room for the partial of block (or of a subtree whose last block is)
  // `block`, to be filled before the next call.
  const Partial<T>& Push(int64_t block) {
    int& depth = nodes_.depth;
    while (depth >= 2 && JoinLevel(depth - 2, nodes_.last_block[depth - 1]) <
                             JoinLevel(depth - 1, block)) {
      MergeTop();
    }
    nodes_.last_block[depth] = block;
    return levels_[depth++];
  }

  // Takes away what was pushed last.
  void Pop() { --nodes_.depth; }

  // Merges what is open; null if nothing was pushed.
  const Partial<T>* Fold() {
    while (nodes_.depth >= 2) MergeTop();
    return nodes_.depth == 0 ? nullptr : &levels_[0];
  }

 private:
  // Level of the tree at which node `index` of the stack meets `block`.
  int JoinLevel(int index, int64_t block) const {
    return std::bit_width(
        static_cast<uint64_t>(nodes_.last_block[index] ^ block));
  }

  void MergeTop() {
    int& depth = nodes_.depth;
    Merge(levels_[depth - 2], levels_[depth - 1], rows_, stride_);
    nodes_.last_block[depth - 2] = nodes_.last_block[depth - 1];
    --depth;
  }

  const Partial<T>* const levels_;
  const int64_t rows_;
  const int64_t stride_;
  OpenNodes nodes_;
};

}  // namespace HWY_NAMESPACE
}  // namespace attention
HWY_AFTER_NAMESPACE();

#endif  // ATTENTION_KERNEL_PARTIAL_INL_H_
