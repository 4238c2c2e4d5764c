// The register tiles: packing of keys and values, Q·K and P·V. Included once
// per SIMD target.
//
// Vector lanes run over keys (scores) and over value columns (output), never
// along a sum. Each score is one chain of fused multiply-adds over the head
// size, each output element one chain over the keys of a block, both in
// ascending order: neither the tile's shape nor the vector's width can change a
// bit.
#if defined(ATTENTION_KERNEL_CPU_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ATTENTION_KERNEL_CPU_TILE_INL_H_
#undef ATTENTION_KERNEL_CPU_TILE_INL_H_
#else
#define ATTENTION_KERNEL_CPU_TILE_INL_H_
#endif

#include <concepts>
#include <cstdint>
#include <cstring>
#include <limits>

#include "hwy/highway.h"
#include "kernel/attention.h"
#include "kernel/cpu/convert-inl.h"
#include "kernel/cpu/math-inl.h"
#include "kernel/cpu/prefetch-inl.h"
#include "kernel/cpu/scaled-inl.h"
#include "kernel/cpu/scratch.h"

HWY_BEFORE_NAMESPACE();
namespace attention {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

#define ATTENTION_UNROLL _Pragma("GCC unroll 16")

// Keys side by side in a panel of packed keys: two vectors.
template <typename T>
constexpr int64_t kPanel = 2 * kLanes<T>;

// Rows of a register tile. The register file (32 registers on AVX-512 and NEON,
// 16 on AVX2) must hold two accumulators per row, two vectors of the other
// operand and one broadcast.
#if HWY_TARGET <= HWY_AVX3 || HWY_ARCH_ARM
constexpr int kTileRows = 14;
#else
constexpr int kTileRows = 6;
#endif
static_assert(kTileRows <= kMaxTileRows);

// Sums of one vector, to which steps are added one after the other.
template <typename T>
struct PlainSums {
  // A vector of steps as MulAdd() takes it, and what it adds to.
  using Factor = Vec<T>;
  using Sum = Vec<T>;
  // No end: sums are not closed in groups.
  static constexpr int64_t kSumGroup = std::numeric_limits<int64_t>::max();
  struct Environment {};
  static constexpr bool kSplitsQueries = false;

  static HWY_INLINE Factor Split(Vec<T> steps) { return steps; }
  // Step `index` of a query in every lane.
  static HWY_INLINE Factor QueryAt(const T* query, int64_t index) {
    return hn::Set(Tag<T>(), query[index]);
  }
  static HWY_INLINE Sum NoSum() { return hn::Zero(Tag<T>()); }
  static HWY_INLINE void EndGroup(Sum& /*sum*/) {}
  static HWY_INLINE Vec<T> Total(Sum sum) { return sum; }
};

// How a tile computes. A sum, Q·K over the head size or P·V over keys, is made
// of steps of kElements consecutive elements each. An arithmetic says what type
// a step has, and how steps are loaded, multiplied and added. Each has bits of
// its own:
//   Exact<float>, Exact<double>   one element per step, exact products
//   BF16Pairs (bf16_pairs-inl.h)  pairs of BFLOAT16, by AVX512_BF16
//   BF16Tiles (bf16_tiles-inl.h)  the same by AMX
//   BF16EvenOdd (the same file)   the bits of BF16Tiles in decode
// Beside the members below each has templates that a concept cannot list:
// WithKeysOf, WithValuesOf, LoadValues and PackValues (Exact describes them).
template <class A>
concept TileArithmetic =
    requires(typename A::T* numbers, Vec<typename A::T> v, typename A::Sum& sum,
             const typename A::Factor& factor) {
      // The precision, float or double; also the type that holds one step.
      typename A::T;
      // An object of it lives while sums are computed.
      typename A::Environment;
      // The arithmetic for decode (decode-inl.h), of the same bits.
      typename A::Decode;
      // Consecutive elements per step.
      { A::kElements } -> std::convertible_to<int64_t>;
      // Steps taken together. P·V sums begin at a multiple of so many steps in
      // a block, and Prefetcher::Next() is called once for them.
      { A::kStepsAtOnce } -> std::convertible_to<int64_t>;
      // Steps after which EndGroup() closes a group of a sum. Q·K in decode
      // calls it after every vector of steps.
      { A::kSumGroup } -> std::convertible_to<int64_t>;
      // Rows of a register tile.
      { A::kTileRows } -> std::convertible_to<int>;
      // Whether QueryAt() reads queries as single elements rather than steps.
      { A::kSplitsQueries } -> std::convertible_to<bool>;
      // A sum of products of two factors. Split() makes a factor of a vector of
      // steps, QueryAt() one of a query's step in every lane.
      { A::NoSum() } -> std::same_as<typename A::Sum>;
      { A::Split(v) } -> std::same_as<typename A::Factor>;
      { A::QueryAt(numbers, int64_t{}) } -> std::same_as<typename A::Factor>;
      { A::MulAdd(factor, factor, sum) } -> std::same_as<typename A::Sum>;
      { A::EndGroup(sum) };
      { A::Total(sum) } -> std::same_as<Vec<typename A::T>>;
      // exp(x) for x <= 0: a weight. StoreWeights() writes a vector of weights,
      // from key `key` on, as steps of a row.
      { A::Exp(v) } -> std::same_as<Vec<typename A::T>>;
      { A::StoreWeights(v, int64_t{}, numbers) };
    };

// Values of gathered rows where they lie: columns from `column` on.
template <typename Element>
struct GatheredValues {
  const void* const* rows;
  int64_t column;

  GatheredValues operator+(int64_t columns) const {
    return {rows, column + columns};
  }
};

// One element per step, exact products, sums rounded once per step.
template <typename Number>
struct Exact : PlainSums<Number> {
  using T = Number;
  static constexpr int64_t kElements = 1;
  static constexpr int64_t kStepsAtOnce = 1;
  static constexpr int kTileRows = HWY_NAMESPACE::kTileRows;
  using Decode = Exact;

  // Calls f with an object of the C++ type that queries and keys of `type`, or
  // values, are read as. kNarrow as in WithElementsOf().
  template <bool kNarrow, class F>
  static HWY_INLINE void WithKeysOf(DataType type, const F& f) {
    WithElementsOf<T, kNarrow>(type, f);
  }
  template <bool kNarrow, class F>
  static HWY_INLINE void WithValuesOf(DataType type, const F& f) {
    WithElementsOf<T, kNarrow>(type, f);
  }

  static HWY_INLINE Vec<T> FirstProduct(Vec<T> a, Vec<T> b) {
    return hn::Mul(a, b);
  }
  static HWY_INLINE Vec<T> MulAdd(Vec<T> a, Vec<T> b, Vec<T> sum) {
    return Fma(a, b, sum);
  }

  // A vector of step `step` of `values`, [steps, stride], row-major.
  template <typename From>
  static HWY_INLINE Vec<T> LoadValues(const From* values, int64_t stride,
                                      int64_t step) {
    return LoadAs(Tag<T>(), values + step * stride);
  }
  template <typename Element>
  static HWY_INLINE Vec<T> LoadValues(const ScaledValues<Element>& values,
                                      int64_t stride, int64_t step) {
    const Tag<T> d;
    return hn::Mul(LoadAs(d, values.data + step * stride),
                   hn::Set(d, values.factors[step]));
  }

  template <typename Element>
  static HWY_INLINE Vec<T> LoadValues(const GatheredValues<Element>& values,
                                      int64_t /*stride*/, int64_t step) {
    return LoadAs(Tag<T>(), static_cast<const Element*>(values.rows[step]) +
                                values.column);
  }

  // Packs one step, rows[kElements] of values, to to[columns], filled with
  // zeros up to a whole vector. A null row counts as zeros.
  template <typename From>
  static void PackValues(const From* const* rows, int64_t columns,
                         T* HWY_RESTRICT to) {
    LoadRow<T, From>(rows[0], columns, to);
  }

  // Column `column` of a step's value rows.
  static T ValueAt(const void* const* rows, DataType type, int64_t column) {
    return LoadElement<T>(rows[0], type, column);
  }

  static HWY_INLINE Vec<T> Exp(Vec<T> x) { return ExpNonPositive(Tag<T>(), x); }

  static HWY_INLINE void StoreWeights(Vec<T> weights, int64_t key, T* row) {
    hn::Store(weights, Tag<T>(), row + key);
  }
};

// Transposes rows[N], where N is the number of lanes.
template <typename T>
HWY_INLINE void Transpose([[maybe_unused]] Vec<T>* HWY_RESTRICT rows) {
#if HWY_TARGET != HWY_SCALAR
  const Tag<T> d;
  constexpr int64_t N = kLanes<T>;
  constexpr int64_t kPerBlock = 16 / sizeof(T);  // elements of 128 bits
  // Squares inside the 128-bit blocks.
  Vec<T> t[N];
  if constexpr (sizeof(T) == 4) {
    const hn::Repartition<double, Tag<T>> dd;
    ATTENTION_UNROLL
    for (int64_t i = 0; i < N; i += 4) {
      const auto a =
          hn::BitCast(dd, hn::InterleaveLower(d, rows[i], rows[i + 1]));
      const auto b =
          hn::BitCast(dd, hn::InterleaveUpper(d, rows[i], rows[i + 1]));
      const auto c =
          hn::BitCast(dd, hn::InterleaveLower(d, rows[i + 2], rows[i + 3]));
      const auto e =
          hn::BitCast(dd, hn::InterleaveUpper(d, rows[i + 2], rows[i + 3]));
      t[i] = hn::BitCast(d, hn::InterleaveLower(dd, a, c));
      t[i + 1] = hn::BitCast(d, hn::InterleaveUpper(dd, a, c));
      t[i + 2] = hn::BitCast(d, hn::InterleaveLower(dd, b, e));
      t[i + 3] = hn::BitCast(d, hn::InterleaveUpper(dd, b, e));
    }
  } else {
    ATTENTION_UNROLL
    for (int64_t i = 0; i < N; i += 2) {
      t[i] = hn::InterleaveLower(d, rows[i], rows[i + 1]);
      t[i + 1] = hn::InterleaveUpper(d, rows[i], rows[i + 1]);
    }
  }
  // Then the blocks.
  if constexpr (N == kPerBlock) {
    ATTENTION_UNROLL
    for (int64_t i = 0; i < N; ++i) rows[i] = t[i];
  }
#if HWY_TARGET <= HWY_AVX2 && HWY_ARCH_X86
  if constexpr (N == 2 * kPerBlock) {
    ATTENTION_UNROLL
    for (int64_t k = 0; k < kPerBlock; ++k) {
      rows[k] = hn::ConcatLowerLower(d, t[kPerBlock + k], t[k]);
      rows[kPerBlock + k] = hn::ConcatUpperUpper(d, t[kPerBlock + k], t[k]);
    }
  }
#endif
#if HWY_TARGET <= HWY_AVX3 && HWY_ARCH_X86
  if constexpr (N == 4 * kPerBlock) {
    // Highway has no shuffle of blocks from two vectors in one instruction.
    const auto even = [](Vec<T> a, Vec<T> b) HWY_ATTR {
      if constexpr (sizeof(T) == 4) {
        return Vec<T>{_mm512_shuffle_f32x4(a.raw, b.raw, 0x88)};
      } else {
        return Vec<T>{_mm512_shuffle_f64x2(a.raw, b.raw, 0x88)};
      }
    };
    const auto odd = [](Vec<T> a, Vec<T> b) HWY_ATTR {
      if constexpr (sizeof(T) == 4) {
        return Vec<T>{_mm512_shuffle_f32x4(a.raw, b.raw, 0xdd)};
      } else {
        return Vec<T>{_mm512_shuffle_f64x2(a.raw, b.raw, 0xdd)};
      }
    };
    ATTENTION_UNROLL
    for (int64_t k = 0; k < kPerBlock; ++k) {
      const Vec<T> a = even(t[k], t[kPerBlock + k]);
      const Vec<T> b = odd(t[k], t[kPerBlock + k]);
      const Vec<T> c = even(t[2 * kPerBlock + k], t[3 * kPerBlock + k]);
      const Vec<T> e = odd(t[2 * kPerBlock + k], t[3 * kPerBlock + k]);
      rows[k] = even(a, c);
      rows[kPerBlock + k] = even(b, e);
      rows[2 * kPerBlock + k] = odd(a, c);
      rows[3 * kPerBlock + k] = odd(b, e);
    }
  }
#endif
#endif  // one lane is its own transpose
}

// Loads a square, from `column` on, of which only `present` rows and `columns`
// columns exist; the rest is zero.
template <typename T, typename From>
HWY_NOINLINE void LoadPartialSquare(const From* const* rows, int64_t column,
                                    int64_t present, int64_t columns,
                                    Vec<T>* HWY_RESTRICT square) {
  constexpr int64_t N = kLanes<T>;
  for (int64_t i = 0; i < N; ++i) {
    From rest[N] = {};
    if (i < present) {
      std::memcpy(rest, rows[i] + column, columns * sizeof(From));
    }
    square[i] = LoadAs(Tag<T>(), rest);
  }
}

// Packs a panel of keys: to[k][j] is step k of key j, zero for j >= count. `to`
// is [steps, kPanel], row-major; keys[j] is the row of key j.
template <typename T, typename From>
void PackPanel(const From* const* keys, int64_t count, int64_t steps,
               T* HWY_RESTRICT to) {
  const Tag<T> d;
  constexpr int64_t N = kLanes<T>;
  for (int64_t half = 0; half < 2; ++half, to += N) {
    const From* const* rows = keys + half * N;
    const int64_t present = HWY_MIN(HWY_MAX(count - half * N, int64_t{0}), N);
    for (int64_t k = 0; k < steps; k += N) {
      Vec<T> square[N];
      const int64_t columns = HWY_MIN(N, steps - k);
      if (present == N && columns == N) {
        ATTENTION_UNROLL
        for (int64_t j = 0; j < N; ++j) square[j] = LoadAs(d, rows[j] + k);
      } else {
        LoadPartialSquare<T>(rows, k, present, columns, square);
      }
      Transpose<T>(square);
      if (columns == N) {
        ATTENTION_UNROLL
        for (int64_t i = 0; i < N; ++i) {
          hn::Store(square[i], d, to + (k + i) * kPanel<T>);
        }
      } else {
        for (int64_t i = 0; i < columns; ++i) {
          hn::Store(square[i], d, to + (k + i) * kPanel<T>);
        }
      }
    }
  }
}

// sum * scale, where -0 becomes 0: so it does not matter whether the sum began
// with 0 or with the first product.
template <typename T>
HWY_INLINE Vec<T> Scaled(Vec<T> sum, T scale) {
  const Tag<T> d;
  return Fma(sum, hn::Set(d, scale), hn::Zero(d));
}

// scores[r][j] = scale * dot(query row r, key j) for a panel of packed keys.
// `query` is [kRows, steps], `panel` [steps, kPanel], `scores` [kRows,
// kKeyBlock], all row-major.
template <TileArithmetic Arithmetic, int kRows,
          typename T = typename Arithmetic::T>
HWY_INLINE void ScoreTile(const T* HWY_RESTRICT query, int64_t steps,
                          const T* HWY_RESTRICT panel, T scale,
                          T* HWY_RESTRICT scores, Prefetcher& prefetch) {
  const Tag<T> d;
  constexpr int64_t N = kLanes<T>;
  Vec<T> sum[kRows][2];
  Vec<T> key0 = hn::Load(d, panel);
  Vec<T> key1 = hn::Load(d, panel + N);
  ATTENTION_UNROLL
  for (int r = 0; r < kRows; ++r) {
    const Vec<T> q = hn::Set(d, query[r * steps]);
    sum[r][0] = Arithmetic::FirstProduct(q, key0);
    sum[r][1] = Arithmetic::FirstProduct(q, key1);
  }
  for (int64_t k = 1; k < steps; ++k) {
    prefetch.Next();
    key0 = hn::Load(d, panel + k * 2 * N);
    key1 = hn::Load(d, panel + k * 2 * N + N);
    ATTENTION_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const Vec<T> q = hn::Set(d, query[r * steps + k]);
      sum[r][0] = Arithmetic::MulAdd(q, key0, sum[r][0]);
      sum[r][1] = Arithmetic::MulAdd(q, key1, sum[r][1]);
    }
  }
  ATTENTION_UNROLL
  for (int r = 0; r < kRows; ++r) {
    hn::Store(Scaled<T>(sum[r][0], scale), d, scores + r * kKeyBlock);
    hn::Store(Scaled<T>(sum[r][1], scale), d, scores + r * kKeyBlock + N);
  }
}

// P·V: output[r][c] = sum over steps j in [0, steps) of weights[r][j] *
// values[j][c], for kVectors vectors of columns c. `weights` is [kRows,
// kKeyBlock], row-major. Values is a pointer to them, or ScaledValues. Calls
// prefetch.Next() for each step.
template <TileArithmetic Arithmetic, int kRows, int kVectors, class Values,
          class Prefetch, typename T = typename Arithmetic::T>
HWY_INLINE void AccumulateTile(const T* HWY_RESTRICT weights, int64_t steps,
                               Values values, int64_t value_stride,
                               T* HWY_RESTRICT output, int64_t output_stride,
                               Prefetch prefetch) {
  const Tag<T> d;
  constexpr int64_t N = kLanes<T>;
  typename Arithmetic::Sum sum[kRows][kVectors];
  ATTENTION_UNROLL
  for (int r = 0; r < kRows; ++r) {
    ATTENTION_UNROLL
    for (int v = 0; v < kVectors; ++v) sum[r][v] = Arithmetic::NoSum();
  }
  for (int64_t j = 0; j < steps;) {
    const int64_t group_end = j + HWY_MIN(steps - j, Arithmetic::kSumGroup);
    for (; j < group_end; ++j) {
      prefetch.Next();
      typename Arithmetic::Factor value[kVectors];
      ATTENTION_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        value[v] = Arithmetic::LoadValues(values + v * N, value_stride, j);
      }
      ATTENTION_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const auto weight =
            Arithmetic::Split(hn::Set(d, weights[r * kKeyBlock + j]));
        ATTENTION_UNROLL
        for (int v = 0; v < kVectors; ++v) {
          sum[r][v] = Arithmetic::MulAdd(weight, value[v], sum[r][v]);
        }
      }
    }
    ATTENTION_UNROLL
    for (int r = 0; r < kRows; ++r) {
      ATTENTION_UNROLL
      for (int v = 0; v < kVectors; ++v) Arithmetic::EndGroup(sum[r][v]);
    }
  }
  ATTENTION_UNROLL
  for (int r = 0; r < kRows; ++r) {
    ATTENTION_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      hn::Store(Arithmetic::Total(sum[r][v]), d,
                output + r * output_stride + v * N);
    }
  }
}

// ScoreTile over the panels of keys [begin, end), multiples of kPanel, for
// `rows` rows in [1, kTileRows]. panels[j * steps] begins key j's panel.
template <TileArithmetic Arithmetic, int kRows = kTileRows,
          typename T = typename Arithmetic::T>
void ScoreBlock(Arithmetic& arithmetic, int rows, const T* query, int64_t steps,
                const T* panels, int64_t begin, int64_t end, T scale, T* scores,
                Prefetcher& prefetch) {
  if constexpr (kRows > 1) {
    if (rows < kRows) {
      return ScoreBlock<Arithmetic, kRows - 1>(arithmetic, rows, query, steps,
                                               panels, begin, end, scale,
                                               scores, prefetch);
    }
  }
  Prefetcher local = prefetch;
  for (int64_t j = begin; j < end; j += kPanel<T>) {
    ScoreTile<Arithmetic, kRows>(query, steps, panels + j * steps, scale,
                                 scores + j, local);
  }
  prefetch = local;
}

// AccumulateTile for `rows` rows in [1, kTileRows] and `columns` columns, a
// multiple of the vector's lanes.
template <TileArithmetic Arithmetic, int kRows = kTileRows,
          typename T = typename Arithmetic::T>
void AccumulateBlock(Arithmetic& arithmetic, int rows, const T* weights,
                     int64_t steps, const T* values, int64_t value_stride,
                     int64_t columns, T* output, int64_t output_stride,
                     Prefetcher& prefetch) {
  if constexpr (kRows > 1) {
    if (rows < kRows) {
      return AccumulateBlock<Arithmetic, kRows - 1>(
          arithmetic, rows, weights, steps, values, value_stride, columns,
          output, output_stride, prefetch);
    }
  }
  Prefetcher local = prefetch;
  constexpr int64_t N = kLanes<T>;
  int64_t c = 0;
  for (; c + 2 * N <= columns; c += 2 * N) {
    AccumulateTile<Arithmetic, kRows, 2, const T*, Prefetcher&>(
        weights, steps, values + c, value_stride, output + c, output_stride,
        local);
  }
  prefetch = local;
  if (c < columns) {
    AccumulateTile<Arithmetic, kRows, 1>(weights, steps, values + c,
                                         value_stride, output + c,
                                         output_stride, NoPrefetch());
  }
}

// Adds kStepsAtOnce steps of P·V to one row, in the order of AccumulateBlock:
// output[c] += sum over the steps' keys j of (weight of j) * values[j][c].
// `weights` is [kStepsAtOnce]; a null row values[j] counts as zeros.
template <TileArithmetic Arithmetic, typename T = typename Arithmetic::T>
void AccumulateSteps(Arithmetic& /*arithmetic*/, const T* weights,
                     const void* const* values, DataType type, int64_t columns,
                     T* output) {
  static_assert(Arithmetic::kStepsAtOnce == 1);
  const Tag<T> d;
  const Vec<T> weight = hn::Set(d, *weights);
  for (int64_t c = 0; c < columns; ++c) {
    const Vec<T> value = hn::Set(d, Arithmetic::ValueAt(values, type, c));
    output[c] =
        hn::GetLane(Arithmetic::MulAdd(weight, value, hn::Set(d, output[c])));
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace attention
HWY_AFTER_NAMESPACE();

#endif  // ATTENTION_KERNEL_CPU_TILE_INL_H_
