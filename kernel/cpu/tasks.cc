#include "kernel/cpu/tasks.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace attention {
namespace {

// Most elements of a task's output: it should stay in a core's cache, together
// with the task's partials and a block of keys and values.
constexpr int64_t kTaskOutput = 448 * 128;
// Most multiply-adds of a task per block of keys: a few milliseconds. A turn
// can only end between blocks.
constexpr int64_t kBlockWork = int64_t{1} << 28;
// Least multiply-adds of a task that is cut from a larger one: each packs all
// its keys again, and below this it would show.
constexpr double kLeastWork = 4e6;

// Multiply-adds of a task, about.
double Work(const Problem& p, const RowTask& task) {
  const Sequence s = p.GetSequence(task.sequence);
  const auto seen = [&](int64_t row) {
    const KeyRange range = p.Visible(s, row / p.group());
    const int64_t keys = range.end - range.begin;
    return static_cast<double>(p.indices ? std::min(keys, p.indices->count)
                                         : keys);
  };
  return (seen(task.row_begin) + seen(task.row_end - 1)) / 2 *
         static_cast<double>(task.row_end - task.row_begin) *
         static_cast<double>(p.head_size + p.value_head_size);
}

// Cuts a task into at most `pieces` of nearly equal size, in whole tiles.
template <typename Sink>
void ForEachPiece(const RowTask& task, int64_t pieces, Sink sink) {
  const int64_t rows = task.row_end - task.row_begin;
  const int64_t piece = RoundUp((rows + pieces - 1) / pieces, kMaxTileRows);
  for (int64_t row = task.row_begin; row < task.row_end; row += piece) {
    sink(RowTask{task.sequence, task.kv_head, row,
                 std::min(task.row_end, row + piece)});
  }
}

int64_t InWholeTiles(int64_t rows) {
  return rows / kMaxTileRows * kMaxTileRows;
}

// Most rows that a task may have.
int64_t RowLimit(const Problem& p) {
  const int64_t for_cache = std::clamp(
      InWholeTiles(kTaskOutput / p.value_head_size), kTaskRows / 4, kTaskRows);
  const int64_t for_time =
      InWholeTiles(kBlockWork / kKeyBlock / (p.head_size + p.value_head_size));
  return std::clamp<int64_t>(for_time, kMaxTileRows, for_cache);
}

// How many runs of rows there are that no task may go beyond.
int64_t Cuts(const Problem& p, int64_t rows) {
  return p.indices ? rows / p.rows_per_list() : p.batch * p.kv_heads;
}

}  // namespace

int64_t NumRows(const Problem& p) {
  return (p.ragged ? p.query_length : p.batch * p.query_length) * p.query_heads;
}

int64_t MostTaskRows(const Problem& p) {
  // Overflows only where there is no memory for the query.
  return NumRows(p) == 0 ? 0
         : p.indices     ? std::min(RowLimit(p), p.rows_per_list())
                         : std::min(RowLimit(p), p.longest_query * p.group());
}

int64_t MostTasks(const Problem& p) {
  const int64_t rows = NumRows(p);
  if (rows == 0) return 0;
  return std::min(rows, rows / kMaxTileRows + Cuts(p, rows));
}

RowCutter::RowCutter(const Problem& problem, int threads)
    : problem_(problem), threads_(threads), most_rows_(RowLimit(problem)) {}

bool RowCutter::TurnIsOver(const Turn& turn) {
  // About 50 us.
  constexpr int64_t kSteps = 1024;
  if (++since_asked_ < kSteps) return false;
  since_asked_ = 0;
  return turn.Over();
}

// More work gives a smaller bucket.
int RowCutter::BucketOf(double work) {
  int exponent;
  // In [0.5, 1), or 0 for work 0.
  const double fraction = std::frexp(work, &exponent);
  const int eighths =
      8 * exponent + static_cast<int>(std::max(0.0, 16 * fraction - 8));
  return kBuckets - 1 - std::clamp(eighths, 0, kBuckets - 1);
}

bool RowCutter::ListLargest(int64_t pair, const Turn& turn) {
  const int64_t sequence = pair / problem_.kv_heads;
  const int64_t kv_head = pair % problem_.kv_heads;
  const int64_t rows =
      problem_.GetSequence(sequence).query_length * problem_.group();
  if (rows == 0) return true;
  if (!problem_.indices) {
    ListPieces({sequence, kv_head, 0, rows});
    return true;
  }
  while (row_ < rows) {
    const int64_t begin = row_;
    row_ += problem_.rows_per_list();
    ListPieces({sequence, kv_head, begin, row_});
    if (row_ < rows && TurnIsOver(turn)) return false;
  }
  row_ = 0;
  return true;
}

void RowCutter::ListPieces(const RowTask& task) {
  const int64_t rows = task.row_end - task.row_begin;
  ForEachPiece(task, (rows + most_rows_ - 1) / most_rows_,
               [&](const RowTask& piece) {
                 large_.push_back({piece, Work(problem_, piece)});
                 remaining_work_ += large_.back().work;
                 ++buckets_[BucketOf(large_.back().work)];
                 ++since_asked_;
               });
}

bool RowCutter::Run(const Turn& turn) {
  const int64_t rows = NumRows(problem_);
  if (rows == 0) return true;
  const int64_t pairs = problem_.batch * problem_.kv_heads;
  if (large_.empty() && pair_ == 0) {
    large_.reserve(std::min(rows, rows / most_rows_ + Cuts(problem_, rows)));
  }
  while (pair_ < pairs) {
    if (!ListLargest(pair_, turn)) return false;
    ++pair_;
    if (TurnIsOver(turn)) return false;
  }
  if (sorted_ == 0) {
    order_ = std::make_unique_for_overwrite<size_t[]>(large_.size());
    size_t before = 0;
    for (size_t& bucket : buckets_) {
      before += std::exchange(bucket, before);
    }
    tasks_.reserve(MostTasks(problem_));
  }
  // The sort is stable: neighbouring tasks share a head, and its keys are in
  // the cache.
  while (sorted_ < large_.size()) {
    order_[buckets_[BucketOf(large_[sorted_].work)]++] = sorted_;
    ++sorted_;
    if (TurnIsOver(turn)) return false;
  }
  while (cut_ < large_.size()) {
    const Large& large = large_[order_[cut_++]];
    const double most = std::max(remaining_work_ / (2 * threads_), kLeastWork);
    ForEachPiece(large.task, 1 + static_cast<int64_t>(large.work / most),
                 [&](const RowTask& task) { tasks_.push_back(task); });
    remaining_work_ -= large.work;
    if (TurnIsOver(turn)) return false;
  }
  std::vector<Large>().swap(large_);
  order_.reset();
  return true;
}

std::vector<RowTask> CutRows(const Problem& p, int threads) {
  RowCutter cutter(p, threads);
  cutter.Run(Turn(nullptr));
  return cutter.TakeTasks();
}

}  // namespace attention
