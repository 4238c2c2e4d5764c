// One code path for every row: blocks of keys in ascending order, a partial
// result a block, merged along the tree (partial-inl.h). Compiled once per SIMD
// target; read Rows::AttendBlock first.
#include "kernel/attention_simd.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>

#include "kernel/convert.h"
#include "kernel/scratch.h"
#include "kernel/simd_targets.h"

// Targets without fused multiply-add differ only in how slow they are: one of
// them, Highway's baseline, is enough.
#define HWY_DISABLED_TARGETS                                               \
  (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | \
   HWY_SVE2_128 | HWY_RVV)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernel/attention_simd.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernel/few_rows-inl.h"
#include "kernel/math-inl.h"
#include "kernel/partial-inl.h"
#include "kernel/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace attention {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Sums along a row of weights use this many lanes on every target.
constexpr int64_t kSumLanes = 16;

template <typename T>
constexpr T kInfinity = std::numeric_limits<T>::infinity();

// Calls f with an element of the C++ type of `type`: those that convert to T,
// or only T and, where kNarrow, the narrower ones.
template <typename T, bool kNarrow, class F>
HWY_INLINE void WithElementsOf(DataType type, const F& f) {
  if constexpr (kNarrow) {
    if (type == DataType::kFloat16) return f(hwy::float16_t());
    if (type == DataType::kBFloat16) return f(hwy::bfloat16_t());
    if (sizeof(T) == 8 && type == DataType::kFloat32) return f(float());
  }
  f(T());
}

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

// Natural logarithm of a positive finite number; the rest as std::log. Written
// out because the C library's bits depend on the CPU. Error below 1e-15 of the
// larger of result and 1.
double Log(double x) {
  if (!(x > 0) || x == kInfinity<double>) return std::log(x);
  int exponent;
  double m = std::frexp(x, &exponent);
  if (m < 0.70710678118654752440) {
    m *= 2;
    --exponent;
  }
  // log(m) = 2 atanh(z), |z| <= 0.172.
  const double z = (m - 1) / (m + 1);
  const double z2 = z * z;
  double series = 0;
  for (int n = 23; n >= 1; n -= 2) series = std::fma(series, z2, 1.0 / n);
  return std::fma(exponent, 0.69314718055994530942, 2 * z * series);
}

// Number of the first row of a task's sequence among all rows; see
// SubtreePartial.
inline int64_t FirstQuery(const Problem& p, const Sequence& s) {
  return s.query_begin + s.batch * p.query_length;
}

// The rows of one task.
template <typename T>
class Rows {
 public:
  Rows(const Problem& problem, const RowTask& task)
      : p_(problem),
        task_(task),
        sequence_(problem.GetSequence(task.sequence)),
        group_(problem.group()),
        rows_(task.row_end - task.row_begin),
        scratch_(problem, rows_, kLanes<T>),
        stack_(scratch_.levels.data(), rows_, scratch_.value_stride),
        scale_(static_cast<T>(problem.scale)),
        softcap_(problem.softcap > 0
                     ? std::max(static_cast<T>(problem.softcap),
                                std::numeric_limits<T>::denorm_min())
                     : T{0}) {
    seen_ = {p_.total_keys(), 0};
    for (int64_t r = 0; r < rows_; ++r) {
      visible_[r] = p_.Visible(sequence_, Query(r));
      if (visible_[r].begin < visible_[r].end) {
        seen_.begin = std::min(seen_.begin, visible_[r].begin);
        seen_.end = std::max(seen_.end, visible_[r].end);
      }
      LoadElements(p_.query.Row(sequence_.batch, Head(r),
                                sequence_.query_begin + Query(r)),
                   p_.query.type, p_.head_size,
                   scratch_.query + r * p_.head_size);
    }
  }

  // Pushes the partials of the blocks in [begin, end) that any row sees.
  void Attend(int64_t begin, int64_t end, const std::atomic<bool>* cancelled) {
    begin = std::max(begin, seen_.begin / kKeyBlock);
    end = std::min(end, (seen_.end + kKeyBlock - 1) / kKeyBlock);
    for (int64_t block = begin; block < end; ++block) {
      if (cancelled && cancelled->load(std::memory_order_relaxed)) return;
      AttendBlock(block, stack_.Push(block));
    }
  }

  // Takes the task's rows of a part.
  void Add(const SubtreePartial<T>& part) {
    const Partial<T>& to = stack_.Push(part.block_end - 1);
    for (int64_t r = 0; r < rows_; ++r) {
      const int64_t from = Number(r);
      to.max[r] = part.max[from];
      to.sum[r] = part.sum[from];
      T* output = to.output + r * scratch_.value_stride;
      const T* values = part.output + from * p_.value_head_size;
      std::copy_n(values, p_.value_head_size, output);
      std::fill(output + p_.value_head_size, output + scratch_.value_stride,
                T{0});
    }
  }

  // Merges what was pushed and stores it as the task's rows of `part`.
  void StorePart(const SubtreePartial<T>& part) {
    const Partial<T>& from = Folded();
    for (int64_t r = 0; r < rows_; ++r) {
      const int64_t to = Number(r);
      part.max[to] = from.max[r];
      part.sum[to] = from.sum[r];
      std::copy_n(from.output + r * scratch_.value_stride, p_.value_head_size,
                  part.output + to * p_.value_head_size);
    }
  }

  // Merges what was pushed and writes the outputs.
  void Finish(const AttentionOutputs& outputs,
              const std::atomic<bool>* cancelled) {
    const Partial<T>& result = Folded();
    if (!p_.sinks.empty()) AddSinks(result);
    for (int64_t r = 0; r < rows_; ++r) {
      Normalize(result, r);
      StoreElements(
          result.output + r * scratch_.value_stride, p_.value_head_size,
          p_.output.type, outputs.output,
          sequence_.batch * p_.output.batch_stride +
              Head(r) * p_.output.head_stride +
              (sequence_.query_begin + Query(r)) * p_.output.row_stride);
      if (p_.return_log_sum_exp) {
        const T lse = static_cast<T>(static_cast<double>(result.max[r]) +
                                     Log(static_cast<double>(result.sum[r])));
        static_cast<T*>(outputs.log_sum_exp)[LogSumExpIndex(r)] =
            Canonical(lse);
      }
    }
    if (p_.scores != Scores::kNone) ReturnScores(result, outputs, cancelled);
  }

 private:
  int64_t Query(int64_t row) const { return (task_.row_begin + row) / group_; }
  int64_t Head(int64_t row) const {
    return task_.kv_head * group_ + (task_.row_begin + row) % group_;
  }
  int64_t Number(int64_t row) const {
    return (FirstQuery(p_, sequence_) + Query(row)) * p_.query_heads +
           Head(row);
  }
  int64_t LogSumExpIndex(int64_t row) const {
    if (p_.ragged) return Number(row);
    return (sequence_.batch * p_.query_heads + Head(row)) * p_.query_length +
           Query(row);
  }

  // The partial of one block: the tiles of all rows, each over the keys that
  // its rows see.
  void AttendBlock(int64_t block, const Partial<T>& partial) {
    const int64_t first = block * kKeyBlock;
    const KeyRange keys = {std::max<int64_t>(0, seen_.begin - first),
                           std::min(kKeyBlock, seen_.end - first)};
    const Block current = GetBlock(first, keys);
    // The next block's, while this one's are in use.
    const int64_t tiles = (rows_ + kTileRows - 1) / kTileRows;
    const int64_t count = keys.end - keys.begin;
    Prefetch prefetch = {{current.next_keys, tiles * ((count + kPanel<T> - 1) /
                                                      kPanel<T>)*p_.head_size},
                         {current.next_values,
                          tiles * count * (scratch_.value_stride / kPanel<T>)}};
    for (int64_t r = 0; r < rows_; r += kTileRows) {
      const int tile_rows =
          static_cast<int>(std::min<int64_t>(kTileRows, rows_ - r));
      AttendTile(current, r, tile_rows, partial, prefetch);
    }
  }

  struct Prefetch {
    Prefetcher keys;
    Prefetcher values;
  };

  // How the tiles of a block get at its keys and values.
  struct Block {
    int64_t first;  // key
    // Few rows read both where they lie; more read keys packed in scratch and
    // values in place or from scratch.
    bool in_place;
    RowStretch keys;         // if in_place: from the first lane on
    RowStretch values;       // if in_place: from the first key on
    RowStretch next_keys;    // of the next block
    RowStretch next_values;  // of the next block
    const T* value_data;     // else: row of key value_begin
    int64_t value_begin;
    int64_t value_stride;
  };

  Block GetBlock(int64_t first, const KeyRange& keys) {
    Block block = {};
    block.first = first;
    const KeyRange lanes = {keys.begin / kSumLanes * kSumLanes, keys.end};
    block.keys = Stretch(p_.past_key, p_.key, p_.head_size, first, lanes);
    block.values =
        Stretch(p_.past_value, p_.value, p_.value_head_size, first, keys);
    const bool whole_vectors = p_.value_head_size % kLanes<T> == 0;
    const bool own_types =
        !kWide || (p_.key.type == kOwnType && p_.value.type == kOwnType);
    block.in_place = rows_ <= kFewRows && block.keys.count > 0 &&
                     block.values.count > 0 && whole_vectors && own_types;
    const int64_t next = first + kKeyBlock;
    const KeyRange next_range = {
        0, std::clamp<int64_t>(seen_.end - next, 0, kKeyBlock)};
    block.next_keys =
        Stretch(p_.past_key, p_.key, p_.head_size, next, next_range);
    block.next_values =
        Stretch(p_.past_value, p_.value, p_.value_head_size, next, next_range);
    if (block.in_place) return block;
    PackKeys(first, keys);
    if (block.values.count > 0 && whole_vectors && p_.value.type == kOwnType) {
      block.value_data = static_cast<const T*>(block.values.data);
      block.value_stride =
          block.values.stride_bytes / static_cast<int64_t>(sizeof(T));
    } else {
      PackValues(first, keys);
      block.value_data = scratch_.values + keys.begin * scratch_.value_stride;
      block.value_stride = scratch_.value_stride;
    }
    block.value_begin = keys.begin;
    return block;
  }

  // Keys of the block at `first` that query row `row` sees.
  KeyRange VisibleInBlock(int64_t first, int64_t row) const {
    const int64_t begin =
        std::clamp<int64_t>(visible_[row].begin - first, 0, kKeyBlock);
    return {begin,
            std::clamp<int64_t>(visible_[row].end - first, begin, kKeyBlock)};
  }

  void AttendTile(const Block& block, int64_t row, int rows,
                  const Partial<T>& partial, Prefetch& prefetch) {
    const int64_t first = block.first;
    KeyRange keys = {kKeyBlock, 0};     // any of the rows sees
    bool hidden = p_.mask.has_value();  // does any row not see some of them?
    for (int r = 0; r < rows; ++r) {
      const KeyRange visible = VisibleInBlock(first, row + r);
      if (visible.begin < visible.end) {
        keys = {std::min(keys.begin, visible.begin),
                std::max(keys.end, visible.end)};
      }
    }
    T* output = partial.output + row * scratch_.value_stride;
    if (keys.begin >= keys.end) {
      std::fill_n(partial.max + row, rows, -kInfinity<T>);
      std::fill_n(partial.sum + row, rows, T{0});
      std::fill_n(output, rows * scratch_.value_stride, T{0});
      return;
    }
    // Sums run over whole groups of lanes.
    const KeyRange lanes = {keys.begin / kSumLanes * kSumLanes,
                            RoundUp(keys.end, kSumLanes)};
    Score(block, row, rows, keys, prefetch);
    for (int r = 0; r < rows; ++r) {
      const KeyRange visible = VisibleInBlock(first, row + r);
      hidden = hidden || visible.begin > keys.begin || visible.end < keys.end;
      T* scores = scratch_.scores + r * kKeyBlock;
      if (softcap_ > 0) Cap(scores, lanes);
      AddBias(first, row + r, scores, lanes, visible);
      partial.max[row + r] = Max(first, row + r, scores, lanes, visible);
      partial.sum[row + r] = Exponentiate(scores, lanes, partial.max[row + r]);
    }
    Weigh(block, rows, keys, output, prefetch);
    if (hidden && !AllFinite(output, rows)) {
      for (int r = 0; r < rows; ++r) {
        WeightVisible(first, row + r, scratch_.scores + r * kKeyBlock,
                      output + r * scratch_.value_stride);
      }
    }
  }

  // Scores of the tile's rows and keys, scaled, into scratch.
  void Score(const Block& block, int64_t row, int rows, const KeyRange& keys,
             Prefetch& prefetch) {
    const T* query = scratch_.query + row * p_.head_size;
    if (!block.in_place) {
      ScoreBlock<T>(rows, query, p_.head_size, scratch_.keys_packed,
                    keys.begin / kPanel<T> * kPanel<T>,
                    RoundUp(keys.end, kPanel<T>), scale_, scratch_.scores,
                    prefetch.keys);
      return;
    }
    T* scores = scratch_.scores + keys.begin / kSumLanes * kSumLanes;
    WithElementsOf<T, !kWide>(p_.key.type, [&](auto element) HWY_ATTR {
      ScoreFewRows<T, decltype(element)>(rows, query, p_.head_size, block.keys,
                                         scale_, scores, block.values);
    });
  }

  // Weighted sums of the values of `keys`, of the weights in scratch.
  void Weigh(const Block& block, int rows, const KeyRange& keys, T* output,
             Prefetch& prefetch) {
    const T* weights = scratch_.scores + keys.begin;
    if (!block.in_place) {
      WeightBlock<T>(rows, weights, keys.end - keys.begin,
                     block.value_data +
                         (keys.begin - block.value_begin) * block.value_stride,
                     block.value_stride, scratch_.value_stride, output,
                     scratch_.value_stride, prefetch.values);
      return;
    }
    WithElementsOf<T, !kWide>(p_.value.type, [&](auto element) HWY_ATTR {
      WeightFewRows<T, decltype(element)>(rows, weights, block.values, output,
                                          scratch_.value_stride,
                                          block.next_keys);
    });
  }

  const void* KeyRow(const Operand& past, const Operand& current,
                     int64_t key) const {
    if (key < p_.past_length) {
      return past.Row(sequence_.batch, task_.kv_head, key);
    }
    return current.Row(sequence_.batch, task_.kv_head,
                       sequence_.key_begin + key - p_.past_length);
  }

  // Rows [range.begin, range.end) of the block at `first`; none if they lie on
  // both sides of the end of the past.
  RowStretch Stretch(const Operand& past, const Operand& current,
                     int64_t columns, int64_t first,
                     const KeyRange& range) const {
    if (range.begin >= range.end) return {};
    const bool in_past = first + range.end <= p_.past_length;
    if (!in_past && first + range.begin < p_.past_length) return {};
    const Operand& operand = in_past ? past : current;
    const auto size = static_cast<int64_t>(SizeOf(operand.type));
    return {KeyRow(past, current, first + range.begin), range.end - range.begin,
            columns * size, operand.row_stride * size};
  }

  // Packs the panels of keys [keys.begin, keys.end) of the block at `first`.
  void PackKeys(int64_t first, const KeyRange& keys) {
    WithElementsOf<T, true>(p_.key.type, [&](auto element) HWY_ATTR {
      using From = decltype(element);
      for (int64_t j = keys.begin / kPanel<T> * kPanel<T>; j < keys.end;
           j += kPanel<T>) {
        const int64_t count = std::min(kPanel<T>, keys.end - j);
        const From* rows[kPanel<T>];
        for (int64_t i = 0; i < count; ++i) {
          rows[i] = static_cast<const From*>(
              KeyRow(p_.past_key, p_.key, first + j + i));
        }
        PackPanel<T, From>(rows, count, p_.head_size,
                           scratch_.keys_packed + j * p_.head_size);
      }
    });
  }

  // Packs values [keys.begin, keys.end) of the block at `first`.
  void PackValues(int64_t first, const KeyRange& keys) {
    WithElementsOf<T, true>(p_.value.type, [&](auto element) HWY_ATTR {
      using From = decltype(element);
      for (int64_t j = keys.begin; j < keys.end; ++j) {
        PackValue<T, From>(static_cast<const From*>(
                               KeyRow(p_.past_value, p_.value, first + j)),
                           p_.value_head_size,
                           scratch_.values + j * scratch_.value_stride);
      }
    });
  }

  void Cap(T* scores, const KeyRange& lanes) const {
    const Tag<T> d;
    const Vec<T> cap = hn::Set(d, softcap_);
    for (int64_t j = lanes.begin; j < lanes.end; j += kLanes<T>) {
      const Vec<T> s = hn::Load(d, scores + j);
      hn::Store(hn::Mul(cap, Tanh(d, hn::Div(s, cap))), d, scores + j);
    }
  }

  // Mask tensor, ALiBi, and -inf outside the visible keys.
  void AddBias(int64_t first, int64_t row, T* scores, const KeyRange& lanes,
               const KeyRange& visible) {
    if (p_.mask) AddMask(first, row, scores, lanes);
    if (!p_.alibi_slopes.empty()) AddAlibi(first, row, scores, lanes);
    std::fill(scores + lanes.begin,
              scores + std::max(visible.begin, lanes.begin), -kInfinity<T>);
    std::fill(scores + std::min(visible.end, lanes.end), scores + lanes.end,
              -kInfinity<T>);
  }

  // bias = what the mask tensor adds to the scores of keys [lanes.begin,
  // lanes.end) of the block.
  void LoadBias(int64_t first, int64_t row, const KeyRange& lanes, T* bias) {
    const MaskOperand& mask = *p_.mask;
    const int64_t covered =
        std::clamp<int64_t>(mask.length - first, lanes.begin, lanes.end);
    std::fill(bias + covered, bias + lanes.end, -kInfinity<T>);
    // What is not there may not even be pointed to.
    if (covered == lanes.begin) return;
    const int64_t index = sequence_.batch * mask.batch_stride +
                          Head(row) * mask.head_stride +
                          Query(row) * mask.row_stride + first;
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

  void AddMask(int64_t first, int64_t row, T* scores, const KeyRange& lanes) {
    const Tag<T> d;
    const Vec<T> masked = hn::Set(d, -kInfinity<T>);
    LoadBias(first, row, lanes, scratch_.bias);
    for (int64_t j = lanes.begin; j < lanes.end; j += kLanes<T>) {
      const Vec<T> bias = hn::Load(d, scratch_.bias + j);
      const Vec<T> sum = hn::Add(hn::Load(d, scores + j), bias);
      // Not the sum: the score under a mask may be NaN.
      hn::Store(hn::IfThenElse(hn::Eq(bias, masked), masked, sum), d,
                scores + j);
    }
  }

  void AddAlibi(int64_t first, int64_t row, T* scores, const KeyRange& lanes) {
    const Tag<T> d;
    const Vec<T> slope =
        hn::Set(d, static_cast<T>(-p_.alibi_slopes[Head(row)]));
    const int64_t position = Query(row) + sequence_.offset;
    for (int64_t j = lanes.begin; j < lanes.end; j += kLanes<T>) {
      const Vec<T> distance = hn::Abs(hn::Add(
          hn::Set(d, static_cast<T>(first + j - position)), hn::Iota(d, T{0})));
      hn::Store(Fma(slope, distance, hn::Load(d, scores + j)), d, scores + j);
    }
  }

  // The largest of a row's scores.
  T Max(int64_t first, int64_t row, const T* scores, const KeyRange& lanes,
        const KeyRange& visible) const {
    const Tag<T> d;
    Vec<T> largest = hn::Set(d, -kInfinity<T>);
    for (int64_t j = lanes.begin; j < lanes.end; j += kLanes<T>) {
      largest = hn::Max(largest, hn::Load(d, scores + j));
    }
    const T max = LargestLane<T>(largest);
    if (max == -kInfinity<T> && SeesAny(first, row, visible)) {
      // Every score is -inf, but not by a mask: unless other blocks hold larger
      // ones the row is 0 / 0. The lowest finite number tells it from a row
      // that sees nothing, and weighs as little.
      return std::numeric_limits<T>::lowest();
    }
    return max;
  }

  // Turns a row of scores into weights exp(score - max); returns their sum.
  T Exponentiate(T* scores, const KeyRange& lanes, T max) const {
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

  // Whether the mask tensor lets `row` see key `j` of the block at `first`.
  bool Unmasked(int64_t first, int64_t row, int64_t j) const {
    if (!p_.mask) return true;
    const MaskOperand& mask = *p_.mask;
    if (first + j >= mask.length) return false;
    const int64_t index = sequence_.batch * mask.batch_stride +
                          Head(row) * mask.head_stride +
                          Query(row) * mask.row_stride + first + j;
    const T bias = LoadElement<T>(mask.data, mask.type, index);
    return mask.type == DataType::kBool ? bias != 0 : bias != -kInfinity<T>;
  }

  bool SeesAny(int64_t first, int64_t row, const KeyRange& visible) const {
    for (int64_t j = visible.begin; j < visible.end; ++j) {
      if (Unmasked(first, row, j)) return true;
    }
    return false;
  }

  bool AllFinite(const T* output, int rows) const {
    const Tag<T> d;
    const Vec<T> limit = hn::Set(d, std::numeric_limits<T>::max());
    for (int64_t i = 0; i < rows * scratch_.value_stride; i += kLanes<T>) {
      // False also where it compares NaN.
      if (!hn::AllTrue(d, hn::Le(hn::Abs(hn::Load(d, output + i)), limit))) {
        return false;
      }
    }
    return true;
  }

  // WeightTile for one row, leaving out the keys it does not see: their weight
  // is 0, but 0 * NaN is not.
  void WeightVisible(int64_t first, int64_t row, const T* weights,
                     T* output) const {
    const KeyRange visible = VisibleInBlock(first, row);
    std::fill_n(output, scratch_.value_stride, T{0});
    for (int64_t j = visible.begin; j < visible.end; ++j) {
      if (!Unmasked(first, row, j)) continue;
      const void* value = KeyRow(p_.past_value, p_.value, first + j);
      for (int64_t c = 0; c < p_.value_head_size; ++c) {
        output[c] = std::fma(
            weights[j], LoadElement<T>(value, p_.value.type, c), output[c]);
      }
    }
  }

  // What was pushed, merged; the identity if nothing was.
  const Partial<T>& Folded() {
    if (const Partial<T>* folded = stack_.Fold()) return *folded;
    const Partial<T>& identity = stack_.Push(0);
    std::fill_n(identity.max, rows_, -kInfinity<T>);
    std::fill_n(identity.sum, rows_, T{0});
    std::fill_n(identity.output, rows_ * scratch_.value_stride, T{0});
    return identity;
  }

  // A sink is a key with a score and no value: merged as a partial of its own.
  void AddSinks(const Partial<T>& result) {
    const Partial<T>& sinks = stack_.Push(p_.total_keys() / kKeyBlock + 1);
    for (int64_t r = 0; r < rows_; ++r) {
      sinks.max[r] = static_cast<T>(p_.sinks[Head(r)]);
      sinks.sum[r] = sinks.max[r] == -kInfinity<T> ? T{0} : T{1};
    }
    std::fill_n(sinks.output, rows_ * scratch_.value_stride, T{0});
    Merge(result, sinks, rows_, scratch_.value_stride);
  }

  static bool SawNone(const Partial<T>& result, int64_t row) {
    return result.sum[row] == 0 && result.max[row] == -kInfinity<T>;
  }

  // Divides a row by its sum; zeros if it saw nothing. Adding 0 makes -0 and 0
  // one, as keys of weight 0 do or do not.
  void Normalize(const Partial<T>& result, int64_t row) const {
    const T sum = result.sum[row];
    T* output = result.output + row * scratch_.value_stride;
    if (SawNone(result, row)) {
      std::fill_n(output, p_.value_head_size, T{0});
      return;
    }
    for (int64_t c = 0; c < p_.value_head_size; ++c) {
      output[c] = output[c] / sum + T{0};
    }
  }

  // Computes every score of the rows again, up to the stage asked for.
  void ReturnScores(const Partial<T>& result, const AttentionOutputs& outputs,
                    const std::atomic<bool>* cancelled) {
    for (int64_t first = 0; first < p_.total_keys(); first += kKeyBlock) {
      if (cancelled && cancelled->load(std::memory_order_relaxed)) return;
      const KeyRange keys = {0, std::min(kKeyBlock, p_.total_keys() - first)};
      PackKeys(first, keys);
      Prefetcher no_prefetch({}, 0);
      for (int64_t row = 0; row < rows_; row += kTileRows) {
        const int tile_rows =
            static_cast<int>(std::min<int64_t>(kTileRows, rows_ - row));
        ScoreBlock<T>(tile_rows, scratch_.query + row * p_.head_size,
                      p_.head_size, scratch_.keys_packed, 0,
                      RoundUp(keys.end, kPanel<T>), scale_, scratch_.scores,
                      no_prefetch);
        for (int64_t r = row; r < row + tile_rows; ++r) {
          T* scores = scratch_.scores + (r - row) * kKeyBlock;
          ToStage(first, r, scores, {0, RoundUp(keys.end, kSumLanes)}, result);
          StoreElements(
              scores, keys.end, p_.query.type, outputs.scores,
              ((sequence_.batch * p_.query_heads + Head(r)) * p_.query_length +
               Query(r)) *
                      p_.total_keys() +
                  first);
        }
      }
    }
  }

  void ToStage(int64_t first, int64_t row, T* scores, const KeyRange& lanes,
               const Partial<T>& result) {
    const Tag<T> d;
    if (p_.scores == Scores::kRaw) return;
    if (softcap_ > 0) Cap(scores, lanes);
    if (p_.scores == Scores::kCapped) return;
    AddBias(first, row, scores, lanes, VisibleInBlock(first, row));
    if (p_.scores == Scores::kBiased) return;
    const T sum = SawNone(result, row) ? T{1} : result.sum[row];
    for (int64_t j = lanes.begin; j < lanes.end; j += kLanes<T>) {
      const Vec<T> weight = hn::Div(ExpDifference(d, hn::Load(d, scores + j),
                                                  hn::Set(d, result.max[row])),
                                    hn::Set(d, sum));
      hn::Store(weight, d, scores + j);
    }
  }

  // The type that needs no conversion.
  static constexpr bool kWide = sizeof(T) == 8;
  static constexpr DataType kOwnType =
      kWide ? DataType::kFloat64 : DataType::kFloat32;

  const Problem& p_;
  const RowTask& task_;
  const Sequence sequence_;
  const int64_t group_;
  const int64_t rows_;
  Scratch<T> scratch_;
  PartialStack<T> stack_;
  const T scale_;
  const T softcap_;
  KeyRange visible_[kTaskRows];  // of each row
  KeyRange seen_;                // by any row
};

template <typename T>
void ComputeRowsT(const Problem& problem, const RowTask& task,
                  const AttentionOutputs& outputs,
                  const std::atomic<bool>* cancelled) {
  Rows<T> rows(problem, task);
  rows.Attend(0, std::numeric_limits<int64_t>::max(), cancelled);
  rows.Finish(outputs, cancelled);
}

template <typename T>
void ComputePartT(const Problem& problem, const RowTask& task,
                  const SubtreePartial<T>& part,
                  const std::atomic<bool>* cancelled) {
  Rows<T> rows(problem, task);
  rows.Attend(part.block_begin, part.block_end, cancelled);
  rows.StorePart(part);
}

template <typename T>
void MergePartsT(const Problem& problem, const RowTask& task,
                 absl::Span<const SubtreePartial<T>> parts,
                 const AttentionOutputs& outputs,
                 const std::atomic<bool>* cancelled) {
  Rows<T> rows(problem, task);
  for (const SubtreePartial<T>& part : parts) rows.Add(part);
  rows.Finish(outputs, cancelled);
}

// HWY_EXPORT takes no templates.
void ComputeRowsF(const Problem& problem, const RowTask& task,
                  const AttentionOutputs& outputs,
                  const std::atomic<bool>* cancelled) {
  ComputeRowsT<float>(problem, task, outputs, cancelled);
}
void ComputeRowsD(const Problem& problem, const RowTask& task,
                  const AttentionOutputs& outputs,
                  const std::atomic<bool>* cancelled) {
  ComputeRowsT<double>(problem, task, outputs, cancelled);
}
void ComputePartF(const Problem& problem, const RowTask& task,
                  const SubtreePartial<float>& part,
                  const std::atomic<bool>* cancelled) {
  ComputePartT<float>(problem, task, part, cancelled);
}
void ComputePartD(const Problem& problem, const RowTask& task,
                  const SubtreePartial<double>& part,
                  const std::atomic<bool>* cancelled) {
  ComputePartT<double>(problem, task, part, cancelled);
}
void MergePartsF(const Problem& problem, const RowTask& task,
                 absl::Span<const SubtreePartial<float>> parts,
                 const AttentionOutputs& outputs,
                 const std::atomic<bool>* cancelled) {
  MergePartsT<float>(problem, task, parts, outputs, cancelled);
}
void MergePartsD(const Problem& problem, const RowTask& task,
                 absl::Span<const SubtreePartial<double>> parts,
                 const AttentionOutputs& outputs,
                 const std::atomic<bool>* cancelled) {
  MergePartsT<double>(problem, task, parts, outputs, cancelled);
}

const char* TargetNameHere() { return hwy::TargetName(HWY_TARGET); }

}  // namespace HWY_NAMESPACE
}  // namespace attention
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace attention {

HWY_EXPORT(ComputeRowsF);
HWY_EXPORT(ComputeRowsD);
HWY_EXPORT(ComputePartF);
HWY_EXPORT(ComputePartD);
HWY_EXPORT(MergePartsF);
HWY_EXPORT(MergePartsD);
HWY_EXPORT(TargetNameHere);

template <>
void ComputeRows<float>(const Problem& problem, const RowTask& task,
                        const AttentionOutputs& outputs,
                        const std::atomic<bool>* cancelled) {
  HWY_DYNAMIC_DISPATCH(ComputeRowsF)(problem, task, outputs, cancelled);
}
template <>
void ComputeRows<double>(const Problem& problem, const RowTask& task,
                         const AttentionOutputs& outputs,
                         const std::atomic<bool>* cancelled) {
  HWY_DYNAMIC_DISPATCH(ComputeRowsD)(problem, task, outputs, cancelled);
}
template <>
void ComputePart<float>(const Problem& problem, const RowTask& task,
                        const SubtreePartial<float>& part,
                        const std::atomic<bool>* cancelled) {
  HWY_DYNAMIC_DISPATCH(ComputePartF)(problem, task, part, cancelled);
}
template <>
void ComputePart<double>(const Problem& problem, const RowTask& task,
                         const SubtreePartial<double>& part,
                         const std::atomic<bool>* cancelled) {
  HWY_DYNAMIC_DISPATCH(ComputePartD)(problem, task, part, cancelled);
}
template <>
void MergeParts<float>(const Problem& problem, const RowTask& task,
                       absl::Span<const SubtreePartial<float>> parts,
                       const AttentionOutputs& outputs,
                       const std::atomic<bool>* cancelled) {
  HWY_DYNAMIC_DISPATCH(MergePartsF)(problem, task, parts, outputs, cancelled);
}
template <>
void MergeParts<double>(const Problem& problem, const RowTask& task,
                        absl::Span<const SubtreePartial<double>> parts,
                        const AttentionOutputs& outputs,
                        const std::atomic<bool>* cancelled) {
  HWY_DYNAMIC_DISPATCH(MergePartsD)(problem, task, parts, outputs, cancelled);
}

absl::string_view SimdTarget() {
  return HWY_DYNAMIC_DISPATCH(TargetNameHere)();
}

bool HasFastMath() { return false; }

std::vector<std::string> SimdTargets() {
  std::vector<std::string> names;
  for (int64_t target : hwy::SupportedAndGeneratedTargets()) {
    names.emplace_back(hwy::TargetName(target));
  }
  return names;
}

bool SetSimdTargetForTest(absl::string_view name) {
  hwy::SetSupportedTargetsForTest(0);
  if (name.empty()) {
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    return true;
  }
  for (int64_t target : hwy::SupportedAndGeneratedTargets()) {
    if (hwy::TargetName(target) == name) {
      hwy::SetSupportedTargetsForTest(target);
      hwy::GetChosenTarget().Update(hwy::SupportedTargets());
      return true;
    }
  }
  return false;
}

}  // namespace attention
#endif  // HWY_ONCE
