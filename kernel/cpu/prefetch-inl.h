// Prefetching, apart from the computation that it hides behind. Included once
// per SIMD target.
//
// What is prefetched during the two products of a block:
//              Q·K                          P·V
//   prefill    the next block's keys        the next block's values
//   with mask  the tile's rows of the mask  the next block's keys, then values
//   decode     this block's values          the next block's keys
#if defined(ATTENTION_KERNEL_CPU_PREFETCH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ATTENTION_KERNEL_CPU_PREFETCH_INL_H_
#undef ATTENTION_KERNEL_CPU_PREFETCH_INL_H_
#else
#define ATTENTION_KERNEL_CPU_PREFETCH_INL_H_
#endif

#include <cstdint>

#include "hwy/highway.h"
#include "kernel/cpu/row_task.h"
#include "kernel/cpu/strided_rows.h"

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

// Prefetches the lines of rows, a few per call, long before they are read. They
// are meant for L2, since L1 is smaller than a block of keys. On AMD's CPUs a
// prefetch into L1 is the faster way there, by up to 1.5 times; on Intel's one
// into L2, by up to 1.2 times. Where keys come from beyond L2, as in decode,
// prefetching is worth up to a factor of two.
class Prefetcher {
 public:
  // All lines of `rows`, spread over about `calls` calls of Next().
  Prefetcher(const StridedRows& rows, int64_t calls)
      : row_(static_cast<const char*>(rows.data)),
        row_bytes_(rows.row_bytes),
        stride_bytes_(rows.stride_bytes),
        rows_left_(rows.count) {
    const int64_t lines = rows.count * RoundUp(rows.row_bytes, kLine) / kLine;
    lines_ = calls > 0 ? (lines + calls - 1) / calls : 0;
  }

  // Whether all has been prefetched.
  bool Done() const { return rows_left_ == 0; }

  // Calls no function: that would spill a tile's registers.
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
  const char* row_;  // [rows_left_, row_bytes_], rows stride_bytes_ apart
  int64_t row_bytes_;
  int64_t stride_bytes_;
  int64_t rows_left_;
  int64_t lines_;       // per call
  int64_t column_ = 0;  // byte in the row
  bool to_l2_ = PrefetchesBestToL2();
};

// Prefetches rows that lie anywhere, all at once: the CPU keeps as many on
// their way as it can.
inline void PrefetchRow(const void* row, int64_t bytes) {
  const char* const line = static_cast<const char*>(row);
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(line + i, 0, 2);
}

struct NoPrefetch {
  void Next() {}
};

// What is read after the block that is being computed.
struct NextRows {
  StridedRows keys;
  StridedRows values;
};

// The prefetching of a block, shared by its tiles.
class BlockPrefetch {
 public:
  // `score_calls` and `value_calls`: how often all tiles of the block together
  // call Prefetcher::Next() during Q·K and during P·V.
  BlockPrefetch(const NextRows& next, bool has_mask, int64_t score_calls,
                int64_t value_calls)
      : next_(next),
        has_mask_(has_mask),
        keys_(next.keys, has_mask ? value_calls / 2 : score_calls),
        values_(next.values, has_mask ? value_calls / 2 : value_calls) {}

  // For Q·K of a tile, which makes `calls` calls and then reads `mask`.
  Prefetcher& DuringScores(const StridedRows& mask, int64_t calls) {
    if (mask.count == 0) return keys_;
    mask_ = Prefetcher(mask, calls);
    return mask_;
  }
  // For P·V of a tile.
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
