#include "kernel/tasks.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace attention {
namespace {

// Elements of a task's output: together with a block of keys and values and
// its partials it should stay in a core's cache.
constexpr int64_t kTaskOutput = 448 * 128;
// Multiply-adds of a task's rows with a block of keys, at the most: a few
// milliseconds, after which the thread may be wanted elsewhere.
constexpr int64_t kBlockWork = int64_t{1} << 28;
// Multiply-adds below which a piece is not cut further: packing its keys, which
// every piece does for itself, would show.
constexpr double kLeastWork = 4e6;

// Multiply-adds, about.
double Work(const Problem& p, const RowTask& task) {
  const Sequence s = p.GetSequence(task.sequence);
  const auto seen = [&](int64_t row) {
    const KeyRange range = p.Visible(s, row / p.group());
    return static_cast<double>(range.end - range.begin);
  };
  return (seen(task.row_begin) + seen(task.row_end - 1)) / 2 *
         static_cast<double>(task.row_end - task.row_begin) *
         static_cast<double>(p.head_size + p.value_head_size);
}

// Cuts a task into at most `pieces` of whole register tiles and nearly equal
// size.
void Cut(const RowTask& task, int64_t pieces, std::vector<RowTask>* to) {
  const int64_t rows = task.row_end - task.row_begin;
  const int64_t piece = RoundUp((rows + pieces - 1) / pieces, kMaxTileRows);
  for (int64_t row = task.row_begin; row < task.row_end; row += piece) {
    to->push_back({task.sequence, task.kv_head, row,
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

// The largest tasks, those of a key/value head side by side.
std::vector<RowTask> LargestTasks(const Problem& p) {
  const int64_t most = RowLimit(p);
  std::vector<RowTask> tasks;
  for (int64_t b = 0; b < p.batch; ++b) {
    const int64_t rows = p.GetSequence(b).query_length * p.group();
    if (rows == 0) continue;
    for (int64_t head = 0; head < p.kv_heads; ++head) {
      Cut({b, head, 0, rows}, (rows + most - 1) / most, &tasks);
    }
  }
  return tasks;
}

}  // namespace

int64_t NumRows(const Problem& p) {
  return (p.ragged ? p.query_length : p.batch * p.query_length) * p.query_heads;
}

int64_t MostTaskRows(const Problem& p) {
  int64_t longest = 0;
  if (NumRows(p) > 0) {
    for (int64_t b = 0; b < p.batch; ++b) {
      longest = std::max(longest, p.GetSequence(b).query_length);
    }
  }
  // Overflows only where there is no memory for the query.
  return std::min(RowLimit(p), longest * p.group());
}

int64_t MostTasks(const Problem& p) {
  const int64_t rows = NumRows(p);
  if (rows == 0) return 0;
  return std::min(rows, rows / kMaxTileRows + p.batch * p.kv_heads);
}

std::vector<RowTask> CutRows(const Problem& p, int threads) {
  if (NumRows(p) == 0) return {};
  const std::vector<RowTask> largest = LargestTasks(p);
  struct Item {
    double work;
    size_t index;  // in `largest`
  };
  std::vector<Item> items;
  items.reserve(largest.size());
  double left = 0;
  for (size_t i = 0; i < largest.size(); ++i) {
    items.push_back({Work(p, largest[i]), i});
    left += items.back().work;
  }
  // Equal ones stay in order: the next task finds the head's keys in the cache.
  std::sort(items.begin(), items.end(), [](const Item& a, const Item& b) {
    return a.work != b.work ? a.work > b.work : a.index < b.index;
  });
  std::vector<RowTask> tasks;
  tasks.reserve(largest.size());
  for (const Item& item : items) {
    const double most = std::max(left / (2 * threads), kLeastWork);
    Cut(largest[item.index], 1 + static_cast<int64_t>(item.work / most),
        &tasks);
    left -= item.work;
  }
  return tasks;
}

}  // namespace attention
