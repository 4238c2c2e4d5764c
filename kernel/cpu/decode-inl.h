// Tiles for decode: at most kDecodeRows query rows. Every key and value is used
// about once, so nothing is packed. Squares of keys are transposed in registers
// and go straight into multiply-adds. The order of every sum is that of
// tile-inl.h, and so are the bits. Included once per SIMD target.
#if defined(ATTENTION_KERNEL_CPU_DECODE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ATTENTION_KERNEL_CPU_DECODE_INL_H_
#undef ATTENTION_KERNEL_CPU_DECODE_INL_H_
#else
#define ATTENTION_KERNEL_CPU_DECODE_INL_H_
#endif

#include <cstdint>

#include "hwy/highway.h"
#include "kernel/cpu/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace attention {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Up to so many rows this is faster than packing.
constexpr int kDecodeRows = kTileRows < 8 ? kTileRows : 8;

// scores[r][j] = scale * dot(query row r, key j) for the rows j of `keys`,
// written up to a whole vector. `query` is [kRows, steps] as QueryAt() reads
// it, `scores` [kRows, kKeyBlock], both row-major. Prefetches `next`. From is
// the type of the keys' elements, which may be scaled; Keys is StridedRows or
// GatheredRows.
template <TileArithmetic Arithmetic, int kRows, typename From, class Keys,
          typename T = typename Arithmetic::T>
void ScoreDecodeTile(const T* HWY_RESTRICT query, int64_t steps,
                     const Keys& keys, T scale, T* HWY_RESTRICT scores,
                     const StridedRows& next) {
  const Tag<T> d;
  constexpr int64_t N = kLanes<T>;
  Prefetcher prefetcher(next,
                        RoundUp(keys.count, N) / N * (RoundUp(steps, N) / N));
  [[maybe_unused]] const typename Arithmetic::Environment environment;
  constexpr bool kScaled = kIsScaledElement<From>;
  [[maybe_unused]] float factors[kScaled ? kKeyBlock : 1];
  if constexpr (kScaled) LoadFactors(keys, factors);
  for (int64_t j = 0; j < keys.count; j += N) {
    const int64_t present = HWY_MIN(N, keys.count - j);
    typename Arithmetic::Sum sum[kRows];
    ATTENTION_UNROLL
    for (int r = 0; r < kRows; ++r) sum[r] = Arithmetic::NoSum();
    for (int64_t k = 0; k < steps; k += N) {
      prefetcher.Next();
      const int64_t columns = HWY_MIN(N, steps - k);
      Vec<T> square[N];
      if (present == N && columns == N) {
        ATTENTION_UNROLL
        for (int64_t i = 0; i < N; ++i) {
          square[i] = LoadAs(d, keys.template Row<From>(j + i) + k);
        }
      } else {
        const From* rows[N];
        for (int64_t i = 0; i < present; ++i) {
          rows[i] = keys.template Row<From>(j + i);
        }
        LoadPartialSquare<T>(rows, k, present, columns, square);
      }
      Transpose<T>(square);
      const auto add = [&](int64_t i) HWY_ATTR {
        if constexpr (kScaled) {
          square[i] = hn::Mul(square[i], hn::LoadU(d, factors + j));
        }
        const auto key = Arithmetic::Split(square[i]);
        ATTENTION_UNROLL
        for (int r = 0; r < kRows; ++r) {
          const auto q = Arithmetic::QueryAt(query, r * steps + k + i);
          sum[r] = Arithmetic::MulAdd(q, key, sum[r]);
        }
      };
      if (columns == N) {
        ATTENTION_UNROLL
        for (int64_t i = 0; i < N; ++i) add(i);
      } else {
        for (int64_t i = 0; i < columns; ++i) add(i);
      }
      ATTENTION_UNROLL
      for (int r = 0; r < kRows; ++r) Arithmetic::EndGroup(sum[r]);
    }
    ATTENTION_UNROLL
    for (int r = 0; r < kRows; ++r) {
      hn::Store(Scaled<T>(Arithmetic::Total(sum[r]), scale), d,
                scores + r * kKeyBlock + j);
    }
  }
}

// P·V: output[r] = sum over the rows j of `values` of weights[r][j] *
// values[j]. The rows are whole steps, Dv is a multiple of a vector's lanes.
// `weights` is [kRows, kKeyBlock], `output` [kRows, output_stride], both
// row-major. Prefetches `next`.
template <TileArithmetic Arithmetic, int kRows, typename From,
          typename T = typename Arithmetic::T>
void AccumulateDecodeTile(const T* HWY_RESTRICT weights,
                          const StridedRows& values, T* HWY_RESTRICT output,
                          int64_t output_stride, const StridedRows& next) {
  constexpr int64_t N = kLanes<T>;
  constexpr int64_t kSize = sizeof(From);
  // As many accumulators as hide the latency of a multiply-add and fit.
  constexpr int kFit =
      2 * kTileRows * sizeof(Vec<T>) / sizeof(typename Arithmetic::Sum);
  constexpr int kVectors = kRows * 4 <= kFit ? 4 : kRows * 2 <= kFit ? 2 : 1;
  const int64_t stride = values.stride_bytes / kSize;
  const int64_t columns = values.row_bytes / kSize;
  const int64_t steps = values.count / Arithmetic::kElements;
  Prefetcher prefetcher(next, columns / (kVectors * N) * steps);
  [[maybe_unused]] const typename Arithmetic::Environment environment;
  const auto accumulate = [&](auto data) HWY_ATTR {
    using Values = decltype(data);
    int64_t c = 0;
    for (; c + kVectors * N <= columns; c += kVectors * N) {
      AccumulateTile<Arithmetic, kRows, kVectors, Values, Prefetcher&>(
          weights, steps, data + c, stride, output + c, output_stride,
          prefetcher);
    }
    for (; c < columns; c += N) {
      AccumulateTile<Arithmetic, kRows, 1>(weights, steps, data + c, stride,
                                           output + c, output_stride,
                                           NoPrefetch());
    }
  };
  const From* const data = static_cast<const From*>(values.data);
  if constexpr (kIsScaledElement<From>) {
    float factors[kKeyBlock];
    LoadFactors(values, factors);
    accumulate(ScaledValues<From>{data, factors});
  } else {
    accumulate(data);
  }
}

// The same for gathered rows of values.
template <TileArithmetic Arithmetic, int kRows, typename From,
          typename T = typename Arithmetic::T>
void AccumulateGatheredTile(const T* HWY_RESTRICT weights,
                            const GatheredRows& values, int64_t columns,
                            T* HWY_RESTRICT output, int64_t output_stride) {
  constexpr int64_t N = kLanes<T>;
  constexpr int kVectors = kRows * 4 <= 2 * kTileRows   ? 4
                           : kRows * 2 <= 2 * kTileRows ? 2
                                                        : 1;
  const GatheredValues<From> data = {values.rows, 0};
  int64_t c = 0;
  for (; c + kVectors * N <= columns; c += kVectors * N) {
    AccumulateTile<Arithmetic, kRows, kVectors>(weights, values.count, data + c,
                                                0, output + c, output_stride,
                                                NoPrefetch());
  }
  for (; c < columns; c += N) {
    AccumulateTile<Arithmetic, kRows, 1>(weights, values.count, data + c, 0,
                                         output + c, output_stride,
                                         NoPrefetch());
  }
}

// ScoreDecodeTile and AccumulateDecodeTile for `rows` rows in [1, kDecodeRows].
template <TileArithmetic Arithmetic, typename From, int kRows = kDecodeRows,
          class Keys, typename T = typename Arithmetic::T>
void ScoreDecode(int rows, const T* query, int64_t steps, const Keys& keys,
                 T scale, T* scores, const StridedRows& next) {
  if constexpr (kRows > 1) {
    if (rows < kRows) {
      return ScoreDecode<Arithmetic, From, kRows - 1>(rows, query, steps, keys,
                                                      scale, scores, next);
    }
  }
  ScoreDecodeTile<Arithmetic, kRows, From>(query, steps, keys, scale, scores,
                                           next);
}

template <TileArithmetic Arithmetic, typename From, int kRows = kDecodeRows,
          typename T = typename Arithmetic::T>
void AccumulateDecode(int rows, const T* weights, const StridedRows& values,
                      T* output, int64_t output_stride,
                      const StridedRows& next) {
  if constexpr (kRows > 1) {
    if (rows < kRows) {
      return AccumulateDecode<Arithmetic, From, kRows - 1>(
          rows, weights, values, output, output_stride, next);
    }
  }
  AccumulateDecodeTile<Arithmetic, kRows, From>(weights, values, output,
                                                output_stride, next);
}

template <TileArithmetic Arithmetic, typename From, int kRows = kDecodeRows,
          typename T = typename Arithmetic::T>
void AccumulateGathered(int rows, const T* weights, const GatheredRows& values,
                        int64_t columns, T* output, int64_t output_stride) {
  if constexpr (kRows > 1) {
    if (rows < kRows) {
      return AccumulateGathered<Arithmetic, From, kRows - 1>(
          rows, weights, values, columns, output, output_stride);
    }
  }
  AccumulateGatheredTile<Arithmetic, kRows, From>(weights, values, columns,
                                                  output, output_stride);
}

}  // namespace HWY_NAMESPACE
}  // namespace attention
HWY_AFTER_NAMESPACE();

#endif  // ATTENTION_KERNEL_CPU_DECODE_INL_H_
