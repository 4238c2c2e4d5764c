// MathMode::kFast on CPUs with AMX: matrix products of BFLOAT16. An instruction
// makes 16 rows by 16 columns of 32 products each, up to fifteen times as fast
// as multiply-adds. As in bf16_pairs-inl.h, the instructions need neither
// Highway nor a compiler flag. Included once per SIMD target.
//
// What differs from BF16Pairs: an instruction takes 16 steps, 32 products, and
// adds those of even and of odd elements separately. P·V sums begin at every
// 32nd key of a block. Decode uses vectors that add in the same order
// (BF16EvenOdd), so that the bits do not depend on the number of rows.
#if defined(ATTENTION_KERNEL_CPU_BF16_TILES_INL_H_) == \
    defined(HWY_TARGET_TOGGLE)
#ifdef ATTENTION_KERNEL_CPU_BF16_TILES_INL_H_
#undef ATTENTION_KERNEL_CPU_BF16_TILES_INL_H_
#else
#define ATTENTION_KERNEL_CPU_BF16_TILES_INL_H_
#endif

#include <cmath>
#include <cstdint>
#include <limits>

#include "hwy/highway.h"
#include "kernel/attention.h"
#include "kernel/cpu/bf16_pairs-inl.h"
#include "kernel/cpu/convert-inl.h"
#include "kernel/cpu/math-inl.h"
#include "kernel/cpu/scratch.h"
#include "kernel/cpu/tile-inl.h"

#undef ATTENTION_HAVE_BF16_TILES
#if ATTENTION_HAVE_BF16_PAIRS && defined(__linux__) && defined(__x86_64__)
#define ATTENTION_HAVE_BF16_TILES 1
#else
#define ATTENTION_HAVE_BF16_TILES 0
#endif

#if ATTENTION_HAVE_BF16_TILES
#include <sys/syscall.h>
#include <unistd.h>

HWY_BEFORE_NAMESPACE();
namespace attention {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// While it lives, subnormal numbers count as zero, as in the tile registers.
class FlushSubnormals {
 public:
  FlushSubnormals() {
    asm volatile("stmxcsr %0" : "=m"(before_));
    Set(before_ | 0x8040);  // results and operands
  }
  FlushSubnormals(const FlushSubnormals&) = delete;
  FlushSubnormals& operator=(const FlushSubnormals&) = delete;
  ~FlushSubnormals() { Set(before_); }

 private:
  // Also a compiler barrier: computations do not move across it.
  static void Set(uint32_t control) {
    asm volatile("ldmxcsr %0" : : "m"(control) : "memory");
  }

  uint32_t before_ = 0;
};

// The sums of BF16Tiles without AMX, which gains nothing in decode: one sum of
// the products of even elements and one of odd ones, added at the end of each
// group.
struct BF16EvenOdd : BF16Pairs {
  static constexpr int64_t kSumGroup = 16;
  static_assert(kSumGroup == kLanes<T>);
  using Environment = FlushSubnormals;
  static constexpr bool kSplitsQueries = true;

  struct Factor {
    Vec<T> even;
    Vec<T> odd;
  };
  struct Sum {
    Vec<T> total;
    Vec<T> even;
    Vec<T> odd;
  };

  static HWY_INLINE Factor Split(Vec<T> pairs) {
    const Tag<T> d;
    const hn::RebindToUnsigned<Tag<T>> du;
    const auto bits = hn::BitCast(du, pairs);
    return {hn::BitCast(d, hn::ShiftLeft<16>(bits)),
            hn::BitCast(d, hn::And(bits, hn::Set(du, 0xffff0000u)))};
  }
  static HWY_INLINE Factor QueryAt(const float* elements, int64_t index) {
    const Tag<T> d;
    return {hn::Set(d, elements[2 * index]),
            hn::Set(d, elements[2 * index + 1])};
  }
  static HWY_INLINE Factor LoadValues(const hwy::bfloat16_t* values,
                                      int64_t stride, int64_t step) {
    const hwy::bfloat16_t* row = values + 2 * step * stride;
    return {LoadAs(Tag<T>(), row), LoadAs(Tag<T>(), row + stride)};
  }

  static HWY_INLINE Sum NoSum() {
    const Vec<T> zero = hn::Zero(Tag<T>());
    return {zero, zero, zero};
  }
  static HWY_INLINE Sum MulAdd(const Factor& a, const Factor& b,
                               const Sum& sum) {
    return {sum.total, Fma(a.even, b.even, sum.even),
            Fma(a.odd, b.odd, sum.odd)};
  }
  static HWY_INLINE void EndGroup(Sum& sum) {
    sum.total = hn::Add(sum.total, hn::Add(sum.even, sum.odd));
    sum.even = sum.odd = hn::Zero(Tag<T>());
  }
  static HWY_INLINE Vec<T> Total(const Sum& sum) { return sum.total; }
};

// Multiplies with the CPU's tile registers, and remembers the shape they are
// set to. Registers 0 to 3 hold sums, 4 and 5 the first operand, 6 the second.
class BF16Tiles : public BF16Pairs {
 public:
  static constexpr int64_t kStepsAtOnce = 16;
  static constexpr int kTileRows = 32;
  using Decode = BF16EvenOdd;

  // Columns of a register, as many as a vector has lanes.
  static constexpr int64_t kColumns = 16;

  BF16Tiles() = default;
  BF16Tiles(const BF16Tiles&) = delete;
  BF16Tiles& operator=(const BF16Tiles&) = delete;
  // Releases the registers: else every context switch would save them.
  ~BF16Tiles() {
    if (rows_ > 0) asm volatile("tilerelease");
  }

  // Whether the CPU has AMX and the operating system permits it.
  static bool Supported() {
    static const bool supported = [] {
      constexpr int kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
      constexpr int kTileData = 18;               // XFEATURE_XTILEDATA
      return __builtin_cpu_supports("avx512bf16") != 0 &&
             __builtin_cpu_supports("amx-tile") != 0 &&
             __builtin_cpu_supports("amx-bf16") != 0 &&
             syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
    }();
    return supported;
  }

  // The operands of a product and its sums, row-major. The columns of the
  // second and of the sums come in groups of kColumns; second(t) and sums(t)
  // point to group t.
  //   first      [rows, steps], rows first_stride apart
  //   second(t)  [steps, kColumns], rows second_stride apart
  //   sums(t)    [rows, kColumns], rows sums_stride apart
  template <class Second, class Sums>
  struct Operands {
    const float* first;
    int64_t first_stride;
    Second second;
    int64_t second_stride;
    Sums sums;
    int64_t sums_stride;
  };

  // sums = first * second for `rows` rows, at most kTileRows, and `groups`
  // groups of columns. Calls prefetch.Next() once per kStepsAtOnce steps and
  // two groups.
  template <class Operands, class Prefetch>
  HWY_INLINE void Multiply(int rows, int64_t groups, int64_t steps,
                           const Operands& operands, Prefetch& prefetch) {
    int64_t t = 0;
    if (rows <= kRegisterRows) {
      for (; t + 4 <= groups; t += 4) {
        MultiplyGroups<1, 4>(rows, t, steps, operands, prefetch);
      }
      for (; t + 2 <= groups; t += 2) {
        MultiplyGroups<1, 2>(rows, t, steps, operands, prefetch);
      }
      if (t < groups) {
        MultiplyGroups<1, 1>(rows, t, steps, operands, prefetch);
      }
    } else {
      for (; t + 2 <= groups; t += 2) {
        MultiplyGroups<2, 2>(rows, t, steps, operands, prefetch);
      }
      if (t < groups) {
        MultiplyGroups<2, 1>(rows, t, steps, operands, prefetch);
      }
    }
  }

 private:
  static constexpr int kRegisterRows = 16;

  // Calls f<0>(), ... f<kCount - 1>().
  template <int kCount, class F>
  static HWY_INLINE void ForEach(const F& f) {
    if constexpr (kCount > 0) {
      ForEach<kCount - 1>(f);
      f.template operator()<kCount - 1>();
    }
  }

  // Gives the registers their shape and clears them.
  void SetShape(int rows, int steps) {
    if (rows == rows_ && steps == steps_) return;
    rows_ = rows;
    steps_ = steps;
    struct alignas(64) Shape {
      uint8_t palette = 1;
      uint8_t unused[15] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } shape;
    const auto set = [&shape](int i, int rows, int row_bytes) {
      shape.rows[i] = static_cast<uint8_t>(rows);
      shape.row_bytes[i] = static_cast<uint16_t>(row_bytes);
    };
    const bool two = rows > kRegisterRows;
    const int upper = two ? kRegisterRows : rows;
    const int lower = two ? rows - kRegisterRows : rows;
    set(0, upper, 64);
    set(1, upper, 64);
    set(2, lower, 64);
    set(3, lower, 64);
    set(4, upper, 4 * steps);
    set(5, lower, 4 * steps);
    set(6, steps, 64);
    asm volatile("ldtilecfg %0" : : "m"(shape));
  }

  template <int kRegister>
  static HWY_INLINE void Load(const float* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2"
                 :
                 : "r"(from), "r"(4 * stride), "i"(kRegister)
                 : "memory");
  }
  template <int kRegister>
  static HWY_INLINE void Store(float* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)"
                 :
                 : "r"(to), "r"(4 * stride), "i"(kRegister)
                 : "memory");
  }

  // For kGroups groups from `group` on. Register 2 * i + t holds the sums of
  // rows [i * kRegisterRows, (i + 1) * kRegisterRows) and group `group` + t.
  template <int kTiles, int kGroups, class Operands, class Prefetch>
  HWY_INLINE void MultiplyGroups(int rows, int64_t group, int64_t steps,
                                 const Operands& o, Prefetch& prefetch) {
    const auto step = [&](int64_t k) HWY_ATTR {
      ForEach<kTiles>([&]<int i>() HWY_ATTR {
        Load<4 + i>(o.first + i * kRegisterRows * o.first_stride + k,
                    o.first_stride);
      });
      ForEach<kGroups>([&]<int t>() HWY_ATTR {
        Load<6>(o.second(group + t) + k * o.second_stride, o.second_stride);
        ForEach<kTiles>([]<int i>() HWY_ATTR {
          asm volatile("tdpbf16ps %%tmm6, %%tmm%c0, %%tmm%c1"
                       :
                       : "i"(4 + i), "i"(2 * i + t));
        });
      });
      for (int t = 0; t < kGroups; t += 2) prefetch.Next();
    };
    // Calls f<register>(its place in memory) for each register of sums.
    const auto for_each_sum = [&](const auto& f) HWY_ATTR {
      ForEach<kTiles>([&]<int i>() HWY_ATTR {
        ForEach<kGroups>([&]<int t>() HWY_ATTR {
          f.template operator()<2 * i + t>(o.sums(group + t) +
                                           i * kRegisterRows * o.sums_stride);
        });
      });
    };
    const auto clear = []<int sum>(const float* /*place*/) HWY_ATTR {
      asm volatile("tilezero %%tmm%c0" : : "i"(sum));
    };
    const auto load = [&]<int sum>(const float* place)
                          HWY_ATTR { Load<sum>(place, o.sums_stride); };
    const auto store = [&]<int sum>(float* place)
                           HWY_ATTR { Store<sum>(place, o.sums_stride); };
    SetShape(rows, kStepsAtOnce);
    for_each_sum(clear);
    int64_t k = 0;
    for (; k + kStepsAtOnce <= steps; k += kStepsAtOnce) step(k);
    for_each_sum(store);
    if (k == steps) return;
    // The remaining steps need another shape, and setting it clears the sums.
    SetShape(rows, static_cast<int>(steps - k));
    for_each_sum(load);
    step(k);
    for_each_sum(store);
  }

  int rows_ = 0;
  int steps_ = 0;
};

// ScoreBlock of tile-inl.h.
inline void ScoreBlock(BF16Tiles& tiles, int rows, const float* query,
                       int64_t steps, const float* panels, int64_t begin,
                       int64_t end, float scale, float* scores,
                       Prefetcher& prefetch) {
  const Tag<float> d;
  constexpr int64_t N = BF16Tiles::kColumns;
  static_assert(kPanel<float> == 2 * N);
  Prefetcher local = prefetch;
  const auto panel = [&](int64_t t) HWY_ATTR {
    return panels + (begin + t / 2 * kPanel<float>)*steps + t % 2 * N;
  };
  const auto sums = [&](int64_t t) HWY_ATTR { return scores + begin + t * N; };
  tiles.Multiply(
      rows, (end - begin) / N, steps,
      BF16Tiles::Operands{query, steps, panel, kPanel<float>, sums, kKeyBlock},
      local);
  prefetch = local;
  const FlushSubnormals flush;
  for (int64_t r = 0; r < rows; ++r) {
    float* row = scores + r * kKeyBlock;
    for (int64_t j = begin; j < end; j += N) {
      hn::Store(Scaled<float>(hn::Load(d, row + j), scale), d, row + j);
    }
  }
}

// AccumulateBlock of tile-inl.h.
inline void AccumulateBlock(BF16Tiles& tiles, int rows, const float* weights,
                            int64_t steps, const float* values,
                            int64_t value_stride, int64_t columns,
                            float* output, int64_t output_stride,
                            Prefetcher& prefetch) {
  constexpr int64_t N = BF16Tiles::kColumns;
  Prefetcher local = prefetch;
  const auto value = [&](int64_t t) HWY_ATTR { return values + t * N; };
  const auto sums = [&](int64_t t) HWY_ATTR { return output + t * N; };
  tiles.Multiply(rows, columns / N, steps,
                 BF16Tiles::Operands{weights, kKeyBlock, value, value_stride,
                                     sums, output_stride},
                 local);
  prefetch = local;
}

// AccumulateSteps of tile-inl.h.
inline void AccumulateSteps(BF16Tiles& tiles, const float* weights,
                            const void* const* values, DataType type,
                            int64_t columns, float* output) {
  constexpr int64_t N = BF16Tiles::kColumns;
  constexpr int64_t kSteps = BF16Tiles::kStepsAtOnce;
  alignas(64) float weight[kSteps] = {};
  for (int64_t k = 0; k < kSteps; ++k) {
    // After a row's last weight memory may hold anything, NaN included.
    const bool any = values[2 * k] != nullptr || values[2 * k + 1] != nullptr;
    if (any) weight[k] = weights[k];
  }
  NoPrefetch no_prefetch;
  for (int64_t first = 0; first < columns; first += N) {
    alignas(64) float square[kSteps * N] = {};
    alignas(64) float sums[N];
    const int64_t count = HWY_MIN(N, columns - first);
    for (int64_t k = 0; k < kSteps; ++k) {
      for (int64_t c = 0; c < count; ++c) {
        square[k * N + c] = BF16Tiles::ValueAt(values + 2 * k, type, first + c);
      }
    }
    const auto value = [&](int64_t /*t*/) HWY_ATTR { return square; };
    const auto sum = [&](int64_t /*t*/) HWY_ATTR { return sums; };
    tiles.Multiply(1, 1, kSteps,
                   BF16Tiles::Operands{weight, N, value, N, sum, N},
                   no_prefetch);
    for (int64_t c = 0; c < count; ++c) {
      // As the registers add: a subnormal sum is zero.
      const float sum = output[first + c] + sums[c];
      output[first + c] =
          std::abs(sum) < std::numeric_limits<float>::min() ? 0 : sum;
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace attention
HWY_AFTER_NAMESPACE();
#endif  // ATTENTION_HAVE_BF16_TILES

#endif  // ATTENTION_KERNEL_CPU_BF16_TILES_INL_H_
