// Prefetching, apart from the computation that it hides behind. Included once
// per SIMD target.
//
// While a block of keys is computed, the next one's keys are prefetched during
// its scores and the next one's values during its P * V. A mask comes before
// both: each tile prefetches its own rows of it during its scores, and the next
// block's keys and values follow during P * V. Decoding reads keys and values
// where they lie: this block's values are prefetched during its scores, the
// next block's keys during P * V.
#if defined(ATTENTION_KERNEL_CPU_PREFETCH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ATTENTION_KERNEL_CPU_PREFETCH_INL_H_
#undef ATTENTION_KERNEL_CPU_PREFETCH_INL_H_
#else
#define ATTENTION_KERNEL_CPU_PREFETCH_INL_H_
#endif

#include <cstdint>

#include "hwy/highway.h"
#include "kernel/cpu/row_stretch.h"
#include "kernel/cpu/row_task.h"

HWY_BEFORE_NAMESPACE();
namespace attention {
namespace HWY_NAMESPACE {

// Whether this CPU prefetches more lines at once if they go to L2 alone.
inline bool PrefetchesBestToL2() {
#if HWY_ARCH_X86
  static const bool intel = __builtin_cpu_is("intel") != 0;
  return intel;
#else
  return false;
#endif
}

// Prefetches the lines of a stretch of rows, a few at a time, long before they
// are read, into L2: L1 is smaller than a block of keys. On AMD's CPUs
// prefetching into L1 is the faster way there, by up to 1.5 times, on Intel's
// into L2, by up to 1.2. Where keys come from beyond L2, as in decoding, all
// this is worth up to a factor of two.
class Prefetcher {
 public:
  // Spread over about `calls` calls of Next().
  Prefetcher(const RowStretch& rows, int64_t calls)
      : row_(static_cast<const char*>(rows.data)),
        row_bytes_(rows.row_bytes),
        stride_bytes_(rows.stride_bytes),
        rows_left_(rows.count) {
    const int64_t lines = rows.count * RoundUp(rows.row_bytes, kLine) / kLine;
    lines_ = calls > 0 ? (lines + calls - 1) / calls : 0;
  }

  // Whether all has been prefetched.
  bool Done() const { return rows_left_ == 0; }

  // No call of a function in here: it would spill a tile's registers.
  HWY_INLINE void Next() {
    for (int64_t i = 0; i < lines_ && rows_left_ > 0; ++i) {
      if (to_l2_) {
        __builtin_prefetch(row_ + column_, 0, 2);
      } else {
        __builtin_prefetch(row_ + column_, 0, 3);
      }
      column_ += kLine;
      if (column_ >= row_bytes_) {
        column_ = 0;
        row_ += stride_bytes_;
        --rows_left_;
      }
    }
  }

 private:
  static constexpr int64_t kLine = 64;
  const char* row_;
  int64_t row_bytes_;
  int64_t stride_bytes_;
  int64_t rows_left_;
  int64_t lines_;
  int64_t column_ = 0;
  bool to_l2_ = PrefetchesBestToL2();
};

struct NoPrefetch {
  void Next() {}
};

// What is read after the block that is being computed.
struct NextRows {
  RowStretch keys;
  RowStretch values;
};

// The prefetching of a block, shared by its tiles.
class BlockPrefetch {
 public:
  // `score_calls` and `value_calls`: of Prefetcher::Next(), by all tiles of the
  // block together, while they score and while they compute P * V.
  BlockPrefetch(const NextRows& next, bool has_mask, int64_t score_calls,
                int64_t value_calls)
      : next_(next),
        has_mask_(has_mask),
        keys_(next.keys, has_mask ? value_calls / 2 : score_calls),
        values_(next.values, has_mask ? value_calls / 2 : value_calls) {}

  // For the scores of a tile, which reads `mask` after `calls` calls.
  Prefetcher& DuringScores(const RowStretch& mask, int64_t calls) {
    if (mask.count == 0) return keys_;
    mask_ = Prefetcher(mask, calls);
    return mask_;
  }
  Prefetcher& DuringValues() {
    return has_mask_ && !keys_.Done() ? keys_ : values_;
  }
  const NextRows& next() const { return next_; }

 private:
  const NextRows next_;
  const bool has_mask_;
  Prefetcher keys_;
  Prefetcher values_;
  Prefetcher mask_{{}, 0};
};

}  // namespace HWY_NAMESPACE
}  // namespace attention
HWY_AFTER_NAMESPACE();

#endif  // ATTENTION_KERNEL_CPU_PREFETCH_INL_H_
