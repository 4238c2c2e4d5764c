// Attention of a task's rows: blocks of keys in ascending order, one partial
// per block, merged along the tree of blocks (partial-inl.h). Read
// Rows::AttendBlock and AttendTile first. Included once per SIMD target.
#if defined(ATTENTION_KERNEL_CPU_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ATTENTION_KERNEL_CPU_ROWS_INL_H_
#undef ATTENTION_KERNEL_CPU_ROWS_INL_H_
#else
#define ATTENTION_KERNEL_CPU_ROWS_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <type_traits>

#include "base/executor.h"
#include "hwy/highway.h"
#include "kernel/attention.h"
#include "kernel/cpu/convert-inl.h"
#include "kernel/cpu/convert.h"
#include "kernel/cpu/decode-inl.h"
#include "kernel/cpu/math-inl.h"
#include "kernel/cpu/partial-inl.h"
#include "kernel/cpu/partials.h"
#include "kernel/cpu/prefetch-inl.h"
#include "kernel/cpu/row_state.h"
#include "kernel/cpu/row_task.h"
#include "kernel/cpu/scaled-inl.h"
#include "kernel/cpu/scratch.h"
#include "kernel/cpu/selected_keys.h"
#include "kernel/cpu/softmax-inl.h"
#include "kernel/cpu/task_rows.h"
#include "kernel/cpu/tile-inl.h"
#include "kernel/plan/problem.h"

HWY_BEFORE_NAMESPACE();
namespace attention {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// The rows of one task, computed with Arithmetic (tile-inl.h).
template <TileArithmetic Arithmetic>
class Rows {
 public:
  using T = typename Arithmetic::T;
  using Decode = typename Arithmetic::Decode;

  // `memory` is a RowState's; if `begun`, it holds what earlier Rows left.
  Rows(const Problem& problem, const RowTask& task, char* memory, bool begun)
      : p_(problem),
        task_(problem, task),
        rows_(task_.count()),
        tiles_((rows_ + Arithmetic::kTileRows - 1) / Arithmetic::kTileRows),
        steps_(problem.head_size / Arithmetic::kElements),
        state_(StateIn(problem, rows_, memory, begun)),
        scratch_(problem, Arithmetic::kTileRows, kLanes<T>),
        selected_(scratch_.selected),
        stack_(state_, rows_, problem.first_block),
        scale_(static_cast<T>(problem.scale)),
        softcap_(problem.softcap > 0
                     ? std::max(static_cast<T>(problem.softcap),
                                std::numeric_limits<T>::denorm_min())
                     : T{0}) {
    const bool split_queries = Decode::kSplitsQueries && rows_ <= kDecodeRows;
    if (split_queries) decode_query_ += rows_ * steps_;
    if (!begun) LoadQueries(split_queries);
  }

  // Whether no row sees a key of `block` or a later one.
  bool SeesNoneFrom(int64_t block) const {
    return (task_.seen().end + kKeyBlock - 1) / kKeyBlock <= block;
  }

  // Pushes the partial of each block in [begin, end) that any row sees. False
  // if the turn was over before the last. For `next_keys` see RowFunctions.
  bool Attend(int64_t begin, int64_t end, const StridedRows& next_keys,
              const Turn& turn) {
    if constexpr (kExact) {
      if (p_.indices) return AttendSelected(begin, end, turn);
    }
    int64_t& next_block = state_.progress->next_block;
    begin = std::max({begin, task_.seen().begin / kKeyBlock, next_block});
    end = std::min(end, (task_.seen().end + kKeyBlock - 1) / kKeyBlock);
    for (int64_t block = begin; block < end; ++block) {
      const NextRows next =
          block + 1 < end ? RowsOf(block + 1) : NextRows{next_keys, {}};
      AttendBlock(block, next, stack_.Push(block));
      next_block = block + 1;
      if (next_block < end && turn.Over()) return false;
    }
    return true;
  }

  // Pushes the task's rows of a subtree's partial.
  void PushSubtree(const SubtreePartial<T>& subtree) {
    const PartialRows<T> to = stack_.Push(subtree.block_end - 1);
    for (int64_t r = 0; r < rows_; ++r) {
      const int64_t from = task_.Number(r);
      to.max[r] = subtree.max[from];
      to.sum[r] = subtree.sum[from];
      T* output = to.output + r * state_.output_stride;
      const T* values = subtree.output + from * p_.value_head_size;
      std::copy_n(values, p_.value_head_size, output);
      std::fill(output + p_.value_head_size, output + state_.output_stride,
                T{0});
    }
  }

  // Merges and pops the open partials of the subtree's blocks, the last ones,
  // into the task's rows of `subtree`.
  void PopSubtree(const SubtreePartial<T>& subtree) {
    const std::optional<PartialRows<T>> from =
        stack_.PopFrom(subtree.block_begin);
    for (int64_t r = 0; r < rows_; ++r) {
      const int64_t to = task_.Number(r);
      subtree.max[to] = from ? from->max[r] : -kInfinity<T>;
      subtree.sum[to] = from ? from->sum[r] : T{0};
      T* output = subtree.output + to * p_.value_head_size;
      if (from) {
        std::copy_n(from->output + r * state_.output_stride, p_.value_head_size,
                    output);
      } else {
        std::fill_n(output, p_.value_head_size, T{0});
      }
    }
  }

  // Merges all open partials and writes the outputs. False if the turn was over
  // before the end; the next call goes on.
  bool Finish(const AttentionOutputs& outputs, const Turn& turn) {
    const PartialRows<T> result = Folded();
    if (state_.progress->next_score < 0) {
      WriteOutputs(result, outputs);
      state_.progress->next_score = 0;
    }
    return p_.scores == Scores::kNone || ReturnScores(result, outputs, turn);
  }

 private:
  // The state in `memory`, with its progress reset unless it was begun.
  static RowState<T> StateIn(const Problem& problem, int64_t rows, char* memory,
                             bool begun) {
    RowState<T> state(problem, rows, kLanes<T>, memory);
    if (!begun) *state.progress = {};
    return state;
  }

  void LoadQueries(bool split_queries) {
    Arithmetic::template WithKeysOf<true>(
        p_.query.type, [&](auto step) HWY_ATTR {
          using From = decltype(step);
          for (int64_t r = 0; r < rows_; ++r) {
            LoadRow<T, From>(static_cast<const From*>(task_.QueryRow(r)),
                             steps_, state_.query + r * steps_);
          }
        });
    if (!split_queries) return;
    for (int64_t r = 0; r < rows_; ++r) {
      LoadElements(task_.QueryRow(r), p_.query.type, p_.head_size,
                   decode_query_ + r * p_.head_size);
    }
  }

  void WriteOutputs(const PartialRows<T>& result,
                    const AttentionOutputs& outputs) {
    if (p_.has_sinks()) AddSinks(result);
    for (int64_t r = 0; r < rows_; ++r) {
      Normalize(result, r);
      StoreRow(result.output + r * state_.output_stride, p_.value_head_size,
               p_.output.type, outputs.output, task_.OutputIndex(r));
      if (p_.return_log_sum_exp) {
        const T lse = static_cast<T>(static_cast<double>(result.max[r]) +
                                     Log(static_cast<double>(result.sum[r])));
        static_cast<T*>(outputs.log_sum_exp)[task_.LogSumExpIndex(r)] =
            Canonical(lse);
      }
    }
  }

  // The keys and values of a block up to the last that any row sees.
  NextRows RowsOf(int64_t block) const {
    const int64_t first = block * kKeyBlock;
    const KeyRange keys = task_.UpToSeen(first);
    return {task_.keys().Keys(first + keys.begin, first + keys.end),
            task_.keys().Values(first + keys.begin, first + keys.end)};
  }

  // Computes the partial of one block, tile by tile.
  void AttendBlock(int64_t block, const NextRows& next,
                   const PartialRows<T>& partial) {
    const int64_t first = block * kKeyBlock;
    const KeyRange keys =
        WholeSteps(first, {std::max<int64_t>(0, task_.seen().begin - first),
                           std::min(kKeyBlock, task_.seen().end - first)});
    const Block current = GetBlock(first, keys);
    BlockPrefetch prefetch = PrefetchDuring(keys, next);
    ForEachTile([&](int64_t row, int rows) {
      AttendTile(current, row, rows, partial, prefetch);
    });
  }

  BlockPrefetch PrefetchDuring(const KeyRange& keys,
                               const NextRows& next) const {
    const int64_t count = keys.end - keys.begin;
    const int64_t panels = (count + kPanel<T> - 1) / kPanel<T>;
    return BlockPrefetch(next, p_.mask.has_value(),
                         tiles_ * panels * CallsFor(steps_),
                         tiles_ * CallsFor(count / Arithmetic::kElements) *
                             (state_.output_stride / kPanel<T>));
  }

  // Number of calls of Prefetcher::Next() during so many steps.
  static int64_t CallsFor(int64_t steps) {
    return RoundUp(steps, Arithmetic::kStepsAtOnce) / Arithmetic::kStepsAtOnce;
  }

  // `keys` of the block, widened to where a sum may begin and to whole steps,
  // but not past the sequence's last key.
  KeyRange WholeSteps(int64_t first, const KeyRange& keys) const {
    return {keys.begin / kKeysAtOnce * kKeysAtOnce,
            std::min(RoundUp(keys.end, Arithmetic::kElements),
                     task_.sequence().key_length - first)};
  }

  // Calls f(first row, number of rows) for each tile. Tiles share the rows
  // evenly: small ones cost more per row.
  template <class F>
  void ForEachTile(const F& f) {
    int64_t row = 0;
    for (int64_t left = tiles_; left > 0; --left) {
      const int64_t rows = (rows_ - row + left - 1) / left;
      f(row, static_cast<int>(rows));
      row += rows;
    }
  }

  // Where the tiles of a block read its keys and values. Keys are counted in
  // the block, from `first` of the sequence.
  struct Block {
    int64_t first;
    // decode-inl.h: reads `keys` and `values` where they lie. Else reads packed
    // keys from scratch, and value_data, in place or in scratch.
    bool decode;
    StridedRows keys;    // from a multiple of kSumLanes on
    StridedRows values;  // from the first visible step on
    // [steps, value_stride], row-major; the first step is that of key
    // value_begin.
    const T* value_data;
    int64_t value_begin;
    int64_t value_stride;
  };

  Block GetBlock(int64_t first, const KeyRange& keys) {
    Block block = {};
    block.first = first;
    const int64_t padded_begin = keys.begin / kSumLanes * kSumLanes;
    block.keys = task_.keys().Keys(first + padded_begin, first + keys.end);
    block.values = task_.keys().Values(first + keys.begin, first + keys.end);
    const bool whole_vectors = p_.value_head_size % kLanes<T> == 0;
    const bool own_types =
        !kDouble || (p_.key.type == kOwnType && p_.value.type == kOwnType);
    block.decode = rows_ <= kDecodeRows && block.keys.count > 0 &&
                   block.values.count > 0 &&
                   block.values.count % Arithmetic::kElements == 0 &&
                   whole_vectors && own_types;
    if (block.decode) return block;
    if (p_.scaled) {
      Unscale(first, {keys.begin / kPanel<T> * kPanel<T>, keys.end});
      block.values =
          Unscaled(scratch_.unscaled_values, p_.value_head_size, keys);
    }
    PackKeys(first, keys);
    if (block.values.count > 0 && whole_vectors && p_.value.type == kOwnType) {
      block.value_data = static_cast<const T*>(block.values.data);
      block.value_stride =
          block.values.stride_bytes / static_cast<int64_t>(sizeof(T));
    } else {
      PackValues(first, keys);
      block.value_data = scratch_.values + keys.begin / Arithmetic::kElements *
                                               scratch_.value_stride;
      block.value_stride = scratch_.value_stride;
    }
    block.value_begin = keys.begin;
    return block;
  }

  // The rows of keys [keys.begin, keys.end) of the block at `first` as numbers,
  // in scratch.
  void Unscale(int64_t first, const KeyRange& keys) {
    UnscaleRows(
        *p_.scaled, task_.keys().Keys(first + keys.begin, first + keys.end),
        p_.head_size, scratch_.unscaled_keys + keys.begin * p_.head_size);
    UnscaleRows(*p_.scaled,
                task_.keys().Values(first + keys.begin, first + keys.end),
                p_.value_head_size,
                scratch_.unscaled_values + keys.begin * p_.value_head_size);
  }
  static StridedRows Unscaled(const float* rows, int64_t columns,
                              const KeyRange& keys) {
    const int64_t bytes = columns * static_cast<int64_t>(sizeof(float));
    return {rows + keys.begin * columns, keys.end - keys.begin, bytes, bytes};
  }

  // Key `j` of the block at `first`, and its value; once they are unscaled.
  const void* KeyAt(int64_t first, int64_t j) const {
    return p_.scaled ? scratch_.unscaled_keys + j * p_.head_size
                     : task_.keys().Key(first + j);
  }
  const void* ValueAt(int64_t first, int64_t j) const {
    return p_.scaled ? scratch_.unscaled_values + j * p_.value_head_size
                     : task_.keys().Value(first + j);
  }

  void AttendTile(const Block& block, int64_t row, int rows,
                  const PartialRows<T>& partial, BlockPrefetch& prefetch) {
    const int64_t first = block.first;
    KeyRange visible[Arithmetic::kTileRows];  // to each row
    KeyRange keys = {kKeyBlock, 0};           // to any row
    for (int r = 0; r < rows; ++r) {
      visible[r] = task_.VisibleInBlock(first, row + r);
      if (visible[r].begin < visible[r].end) {
        keys = {std::min(keys.begin, visible[r].begin),
                std::max(keys.end, visible[r].end)};
      }
    }
    T* output = partial.output + row * state_.output_stride;
    if (keys.begin >= keys.end) {
      std::fill_n(partial.max + row, rows, -kInfinity<T>);
      std::fill_n(partial.sum + row, rows, T{0});
      std::fill_n(output, rows * state_.output_stride, T{0});
      return;
    }
    keys = WholeSteps(first, keys);
    // Softmax works on whole groups of kSumLanes.
    const KeyRange padded = {keys.begin / kSumLanes * kSumLanes,
                             RoundUp(keys.end, kSumLanes)};
    Score(block, row, rows, keys, prefetch);
    bool hidden = false;  // whether any of `keys` is, from any row
    for (int r = 0; r < rows; ++r) {
      hidden |= visible[r].begin > keys.begin || visible[r].end < keys.end;
      T* scores = scratch_.scores + r * kKeyBlock;
      if (softcap_ > 0) Cap(softcap_, padded, scores);
      hidden |= AddBias(task_, first, row + r, visible[r], padded,
                        scratch_.bias, scores);
      partial.max[row + r] = Max(task_, first, row + r, padded, scores);
    }
    // Not in the loop above: a vector's reduction has a long latency, but here
    // those of several rows overlap.
    for (int r = 0; r < rows; ++r) {
      partial.sum[row + r] = Exponentiate<Arithmetic>(
          partial.max[row + r], padded, scratch_.scores + r * kKeyBlock);
    }
    Accumulate(block, rows, keys, output, prefetch);
    if (hidden && !AllFinite(output, rows)) {
      if (p_.scaled && block.decode) Unscale(first, keys);
      for (int r = 0; r < rows; ++r) {
        AccumulateVisible(first, row + r, scratch_.scores + r * kKeyBlock,
                          output + r * state_.output_stride);
      }
    }
  }

  // scale * Q·K of the tile's rows and keys, into scratch.
  void Score(const Block& block, int64_t row, int rows, const KeyRange& keys,
             BlockPrefetch& prefetch) {
    const T* query = state_.query + row * steps_;
    if (!block.decode) {
      const int64_t begin = keys.begin / kPanel<T> * kPanel<T>;
      const int64_t end = RoundUp(keys.end, kPanel<T>);
      StridedRows mask;
      if (p_.mask) mask = task_.MaskRows(block.first, row, rows, keys);
      ScoreBlock(arithmetic_, rows, query, steps_, scratch_.keys_packed, begin,
                 end, scale_, scratch_.scores,
                 prefetch.DuringScores(
                     mask, (end - begin) / kPanel<T> * CallsFor(steps_)));
      return;
    }
    T* scores = scratch_.scores + keys.begin / kSumLanes * kSumLanes;
    const auto score = [&](auto step) HWY_ATTR {
      ScoreDecode<Decode, decltype(step)>(rows, decode_query_, steps_,
                                          block.keys, scale_, scores,
                                          block.values);
    };
    if constexpr (kMayBeScaled) {
      if (p_.scaled) return WithScaledElementsOf(*p_.scaled, score);
    }
    Arithmetic::template WithKeysOf<!kDouble>(p_.key.type, score);
  }

  // P·V over `keys`, with the weights P in scratch, into `output`.
  void Accumulate(const Block& block, int rows, const KeyRange& keys, T* output,
                  BlockPrefetch& prefetch) {
    constexpr int64_t kStep = Arithmetic::kElements;
    const T* weights = scratch_.scores + keys.begin / kStep;
    if (!block.decode) {
      AccumulateBlock(arithmetic_, rows, weights,
                      (keys.end - keys.begin + kStep - 1) / kStep,
                      block.value_data + (keys.begin - block.value_begin) /
                                             kStep * block.value_stride,
                      block.value_stride, state_.output_stride, output,
                      state_.output_stride, prefetch.DuringValues());
      return;
    }
    const auto accumulate = [&](auto element) HWY_ATTR {
      AccumulateDecode<Decode, decltype(element)>(rows, weights, block.values,
                                                  output, state_.output_stride,
                                                  prefetch.next().keys);
    };
    if constexpr (kMayBeScaled) {
      if (p_.scaled) return WithScaledElementsOf(*p_.scaled, accumulate);
    }
    Arithmetic::template WithValuesOf<!kDouble>(p_.value.type, accumulate);
  }

  // Packs the panels of keys [keys.begin, keys.end) of the block at `first`.
  void PackKeys(int64_t first, const KeyRange& keys) {
    Arithmetic::template WithKeysOf<true>(p_.key.type, [&](auto step) HWY_ATTR {
      using From = decltype(step);
      for (int64_t j = keys.begin / kPanel<T> * kPanel<T>; j < keys.end;
           j += kPanel<T>) {
        const int64_t count = std::min(kPanel<T>, keys.end - j);
        const From* rows[kPanel<T>];
        for (int64_t i = 0; i < count; ++i) {
          rows[i] = static_cast<const From*>(KeyAt(first, j + i));
        }
        PackPanel<T, From>(rows, count, steps_,
                           scratch_.keys_packed + j * steps_);
      }
    });
  }

  // Attend() for indices: reads only the keys that they select. All rows of the
  // task share a list, and so see the same of its keys. A block without any is
  // not pushed.
  bool AttendSelected(int64_t begin, int64_t end, const Turn& turn) {
    int64_t& next_block = state_.progress->next_block;
    begin = std::max({begin, task_.seen().begin / kKeyBlock, next_block});
    end = std::min(end, (task_.seen().end + kKeyBlock - 1) / kKeyBlock);
    if (begin >= end) return true;
    selected_.Select(task_.List(), *p_.indices,
                     {std::max(task_.seen().begin, begin * kKeyBlock),
                      std::min(task_.seen().end, end * kKeyBlock)});
    Gathered two[2];  // the block computed, and the one after it
    Gathered* current = &two[0];
    Gathered* next = &two[1];
    Gather(selected_.NextBlock(begin, end), end, current);
    while (current->block < end) {
      Gather(selected_.NextBlock(current->block + 1, end), end, next);
      AttendGathered(*current, stack_.Push(current->block));
      next_block = current->block + 1;
      std::swap(current, next);
      if (current->block < end && turn.Over()) return false;
    }
    return true;
  }

  // The selected keys of a block, and where they lie.
  struct Gathered : GatheredKeys {
    int64_t block;
    const void* key_rows[kKeyBlock];
    const void* value_rows[kKeyBlock];
  };

  // Finds those of `block`, unless it is `end`, and prefetches them.
  void Gather(int64_t block, int64_t end, Gathered* gathered) {
    gathered->block = block;
    if (block == end) return;
    gathered->count = selected_.List(block, gathered->keys);
    const int64_t first = block * kKeyBlock;
    const KeyRuns& runs = task_.keys();
    for (int64_t c = 0; c < gathered->count; ++c) {
      const int64_t key = first + gathered->keys[c];
      gathered->key_rows[c] = runs.Key(key);
      gathered->value_rows[c] = runs.Value(key);
      PrefetchRow(gathered->key_rows[c], runs.key_row_bytes());
      PrefetchRow(gathered->value_rows[c], runs.value_row_bytes());
    }
  }

  // Computes the partial of one block from its selected keys alone, with the
  // bits of AttendBlock().
  void AttendGathered(Gathered& gathered, const PartialRows<T>& partial) {
    const int64_t first = gathered.block * kKeyBlock;
    if (p_.scaled) {
      for (int64_t c = 0; c < gathered.count; ++c) {
        UnscaleTo(c, first + gathered.keys[c]);
        gathered.key_rows[c] = scratch_.unscaled_keys + c * p_.head_size;
        gathered.value_rows[c] =
            scratch_.unscaled_values + c * p_.value_head_size;
      }
    }
    const GatheredRows keys = {gathered.key_rows, gathered.count};
    const GatheredRows values = {gathered.value_rows, gathered.count};
    const bool decode =
        rows_ <= kDecodeRows && p_.value_head_size % kLanes<T> == 0 &&
        (!kDouble || (p_.key.type == kOwnType && p_.value.type == kOwnType));
    if (!decode) {
      PackKeyRows(keys);
      PackValueRows(values);
    }
    ForEachTile([&](int64_t row, int rows) {
      T* output = partial.output + row * state_.output_stride;
      ScoreGathered(decode, row, rows, keys);
      bool hidden = false;
      for (int r = 0; r < rows; ++r) {
        T* scores = scratch_.scores + r * kKeyBlock;
        if (softcap_ > 0) Cap(softcap_, gathered.padded(), scores);
        hidden |= AddGatheredBias(task_, first, row + r, gathered,
                                  scratch_.bias, scores);
        partial.max[row + r] =
            MaxGathered(task_, first, row + r, gathered, scores);
      }
      for (int r = 0; r < rows; ++r) {
        partial.sum[row + r] = ExponentiateGathered(
            partial.max[row + r], gathered, scratch_.scores + r * kKeyBlock);
      }
      AccumulateGatheredRows(decode, rows, values, output);
      if (hidden && !AllFinite(output, rows)) {
        for (int r = 0; r < rows; ++r) {
          AccumulateUnmasked(first, row + r, gathered, values,
                             scratch_.scores + r * kKeyBlock,
                             output + r * state_.output_stride);
        }
      }
    });
  }

  // Score() and Accumulate() for gathered keys; unless `decode`, these are
  // packed.
  void ScoreGathered(bool decode, int64_t row, int rows,
                     const GatheredRows& keys) {
    const T* query = state_.query + row * steps_;
    if (!decode) {
      Prefetcher no_prefetch({}, 0);
      ScoreBlock(arithmetic_, rows, query, steps_, scratch_.keys_packed, 0,
                 RoundUp(keys.count, kPanel<T>), scale_, scratch_.scores,
                 no_prefetch);
      return;
    }
    Arithmetic::template WithKeysOf<!kDouble>(
        p_.key.type, [&](auto element) HWY_ATTR {
          ScoreDecode<Arithmetic, decltype(element)>(rows, query, steps_, keys,
                                                     scale_, scratch_.scores,
                                                     StridedRows{});
        });
  }
  void AccumulateGatheredRows(bool decode, int rows, const GatheredRows& values,
                              T* output) {
    if (!decode) {
      Prefetcher no_prefetch({}, 0);
      AccumulateBlock(arithmetic_, rows, scratch_.scores, values.count,
                      scratch_.values, scratch_.value_stride,
                      state_.output_stride, output, state_.output_stride,
                      no_prefetch);
      return;
    }
    Arithmetic::template WithValuesOf<!kDouble>(
        p_.value.type, [&](auto element) HWY_ATTR {
          AccumulateGathered<Arithmetic, decltype(element)>(
              rows, scratch_.scores, values, p_.value_head_size, output,
              state_.output_stride);
        });
  }

  // Key `key` of the sequence and its value as numbers, number `c` in scratch.
  void UnscaleTo(int64_t c, int64_t key) {
    UnscaleRows(*p_.scaled, task_.keys().Keys(key, key + 1), p_.head_size,
                scratch_.unscaled_keys + c * p_.head_size);
    UnscaleRows(*p_.scaled, task_.keys().Values(key, key + 1),
                p_.value_head_size,
                scratch_.unscaled_values + c * p_.value_head_size);
  }

  // AccumulateVisible() for gathered keys.
  void AccumulateUnmasked(int64_t first, int64_t row,
                          const GatheredKeys& gathered,
                          const GatheredRows& values, const T* weights,
                          T* output) {
    std::fill_n(output, state_.output_stride, T{0});
    for (int64_t c = 0; c < gathered.count; ++c) {
      if (!task_.template Unmasked<T>(first, row, gathered.keys[c])) continue;
      AccumulateSteps(arithmetic_, weights + c, values.rows + c, p_.value.type,
                      p_.value_head_size, output);
    }
  }

  void PackKeyRows(const GatheredRows& keys) {
    Arithmetic::template WithKeysOf<true>(p_.key.type, [&](auto step) HWY_ATTR {
      using From = decltype(step);
      for (int64_t c = 0; c < keys.count; c += kPanel<T>) {
        const int64_t count = std::min(kPanel<T>, keys.count - c);
        const From* rows[kPanel<T>];
        for (int64_t i = 0; i < count; ++i) {
          rows[i] = keys.template Row<From>(c + i);
        }
        PackPanel<T, From>(rows, count, steps_,
                           scratch_.keys_packed + c * steps_);
      }
    });
  }
  void PackValueRows(const GatheredRows& values) {
    Arithmetic::template WithValuesOf<true>(
        p_.value.type, [&](auto element) HWY_ATTR {
          using From = decltype(element);
          for (int64_t c = 0; c < values.count; ++c) {
            const From* const row = values.template Row<From>(c);
            Arithmetic::PackValues(&row, p_.value_head_size,
                                   scratch_.values + c * scratch_.value_stride);
          }
        });
  }

  // Packs the steps of values [keys.begin, keys.end) of the block at `first`.
  void PackValues(int64_t first, const KeyRange& keys) {
    Arithmetic::template WithValuesOf<true>(
        p_.value.type, [&](auto element) HWY_ATTR {
          using From = decltype(element);
          constexpr int64_t kStep = Arithmetic::kElements;
          for (int64_t j = keys.begin; j < keys.end; j += kStep) {
            const From* rows[kStep] = {};
            for (int64_t i = 0; i < std::min(kStep, keys.end - j); ++i) {
              rows[i] = static_cast<const From*>(ValueAt(first, j + i));
            }
            Arithmetic::PackValues(
                rows, p_.value_head_size,
                scratch_.values + j / kStep * scratch_.value_stride);
          }
        });
  }

  bool AllFinite(const T* output, int rows) const {
    const Tag<T> d;
    const Vec<T> limit = hn::Set(d, std::numeric_limits<T>::max());
    for (int64_t i = 0; i < rows * state_.output_stride; i += kLanes<T>) {
      // False also where it compares NaN.
      if (!hn::AllTrue(d, hn::Le(hn::Abs(hn::Load(d, output + i)), limit))) {
        return false;
      }
    }
    return true;
  }

  // Accumulate for one row of the task, without the keys that it does not see:
  // their weight is 0, but 0 * NaN and 0 * infinity are NaN.
  void AccumulateVisible(int64_t first, int64_t row, const T* weights,
                         T* output) {
    const KeyRange visible = task_.VisibleInBlock(first, row);
    std::fill_n(output, state_.output_stride, T{0});
    for (int64_t begin = visible.begin / kKeysAtOnce * kKeysAtOnce;
         begin < visible.end; begin += kKeysAtOnce) {
      const void* values[kKeysAtOnce] = {};
      bool any = false;
      for (int64_t i = 0; i < kKeysAtOnce; ++i) {
        const int64_t j = begin + i;
        if (j < visible.begin || j >= visible.end) continue;
        if (!task_.template Unmasked<T>(first, row, j)) continue;
        values[i] = ValueAt(first, j);
        any = true;
      }
      if (!any) continue;
      AccumulateSteps(arithmetic_, weights + begin / Arithmetic::kElements,
                      values, p_.value.type, p_.value_head_size, output);
    }
  }

  // All open partials merged; the identity if there are none.
  PartialRows<T> Folded() {
    if (const auto folded = stack_.Fold()) return *folded;
    const PartialRows<T> identity = stack_.Push(0);
    std::fill_n(identity.max, rows_, -kInfinity<T>);
    std::fill_n(identity.sum, rows_, T{0});
    std::fill_n(identity.output, rows_ * state_.output_stride, T{0});
    return identity;
  }

  // A sink is a key with a score and no value. Merges it as a partial of its
  // own, behind all blocks.
  void AddSinks(const PartialRows<T>& result) {
    const PartialRows<T> sinks = stack_.Push(p_.total_keys() / kKeyBlock + 1);
    for (int64_t r = 0; r < rows_; ++r) {
      sinks.max[r] = task_.template Sink<T>(r);
      sinks.sum[r] = sinks.max[r] == -kInfinity<T> ? T{0} : T{1};
    }
    std::fill_n(sinks.output, rows_ * state_.output_stride, T{0});
    Merge(result, sinks, rows_, state_.output_stride);
    stack_.Pop();
  }

  static bool SawNone(const PartialRows<T>& result, int64_t row) {
    return result.sum[row] == 0 && result.max[row] == -kInfinity<T>;
  }

  // Divides a row by its sum; gives zeros if the row saw no key. Adds 0, which
  // turns -0 into 0: else the sign would depend on whether keys of weight 0
  // were accumulated.
  void Normalize(const PartialRows<T>& result, int64_t row) const {
    const T sum = result.sum[row];
    T* output = result.output + row * state_.output_stride;
    if (SawNone(result, row)) {
      std::fill_n(output, p_.value_head_size, T{0});
      return;
    }
    const Tag<T> d;
    for (int64_t c = 0; c < p_.value_head_size; c += kLanes<T>) {
      const Vec<T> quotient = hn::Div(hn::Load(d, output + c), hn::Set(d, sum));
      hn::Store(hn::Add(quotient, hn::Zero(d)), d, output + c);
    }
  }

  // Computes every score of the rows a second time, up to the stage asked for.
  // False if the turn was over before the end.
  bool ReturnScores(const PartialRows<T>& result,
                    const AttentionOutputs& outputs, const Turn& turn) {
    int64_t& next_score = state_.progress->next_score;
    if (p_.indices) {
      selected_.Select(task_.List(), *p_.indices, {0, p_.total_keys()});
    }
    while (next_score < p_.total_keys()) {
      const int64_t first = next_score;
      const KeyRange keys = {0, std::min(kKeyBlock, p_.total_keys() - first)};
      if (p_.scaled) Unscale(first, keys);
      PackKeys(first, keys);
      Prefetcher no_prefetch({}, 0);
      ForEachTile([&](int64_t row, int rows) {
        ScoreBlock(arithmetic_, rows, state_.query + row * steps_, steps_,
                   scratch_.keys_packed, 0, RoundUp(keys.end, kPanel<T>),
                   scale_, scratch_.scores, no_prefetch);
        for (int64_t r = row; r < row + rows; ++r) {
          T* scores = scratch_.scores + (r - row) * kKeyBlock;
          ToStage(first, r, scores, {0, RoundUp(keys.end, kSumLanes)}, result);
          StoreRow(scores, keys.end, p_.query.type, outputs.scores,
                   task_.LogSumExpIndex(r) * p_.total_keys() + first);
        }
      });
      next_score += kKeyBlock;
      if (next_score < p_.total_keys() && turn.Over()) return false;
    }
    return true;
  }

  // Takes a row's scale * Q·K to the stage asked for.
  void ToStage(int64_t first, int64_t row, T* scores, const KeyRange& padded,
               const PartialRows<T>& result) {
    const Tag<T> d;
    if (p_.scores == Scores::kRaw) return;
    if (softcap_ > 0) Cap(softcap_, padded, scores);
    if (p_.scores == Scores::kCapped) return;
    AddBias(task_, first, row, task_.VisibleInBlock(first, row), padded,
            scratch_.bias, scores);
    if (p_.indices) {
      for (int64_t j = padded.begin; j < padded.end; ++j) {
        if (!selected_.Has(first + j)) scores[j] = -kInfinity<T>;
      }
    }
    if (p_.scores == Scores::kBiased) return;
    const T sum = SawNone(result, row) ? T{1} : result.sum[row];
    for (int64_t j = padded.begin; j < padded.end; j += kLanes<T>) {
      const Vec<T> weight = hn::Div(ExpDifference(d, hn::Load(d, scores + j),
                                                  hn::Set(d, result.max[row])),
                                    hn::Set(d, sum));
      hn::Store(weight, d, scores + j);
    }
  }

  // P·V sums begin at a multiple of this in a block.
  static constexpr int64_t kKeysAtOnce =
      Arithmetic::kElements * Arithmetic::kStepsAtOnce;

  static constexpr bool kDouble = sizeof(T) == 8;
  // Only this arithmetic gathers keys.
  static constexpr bool kExact = std::is_same_v<Arithmetic, Exact<T>>;
  // Scaled rows are FLOAT32 for the plan.
  static constexpr bool kMayBeScaled = std::is_same_v<Arithmetic, Exact<float>>;
  // The type of keys and values that needs no conversion.
  static constexpr DataType kOwnType =
      kDouble ? DataType::kFloat64 : DataType::kFloat32;

  const Problem& p_;
  const TaskRows task_;
  const int64_t rows_;
  const int64_t tiles_;
  const int64_t steps_;  // per query and key: D / kElements
  RowState<T> state_;
  Scratch<T> scratch_;
  SelectedKeys selected_;  // with indices
  // [rows, steps], or [rows, D] if Decode::kSplitsQueries, row-major.
  T* decode_query_ = state_.query;
  PartialStack<T> stack_;
  const T scale_;
  const T softcap_;
  Arithmetic arithmetic_;
};

}  // namespace HWY_NAMESPACE
}  // namespace attention
HWY_AFTER_NAMESPACE();

#endif  // ATTENTION_KERNEL_CPU_ROWS_INL_H_
